"""What frameworks send to `/v1/realtime`, and what they act on."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.web.media import Format

pytestmark = pytest.mark.unit


def _message(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": "user", "content": list(content), **fields},
    }


async def _updated(socket: Any, **session: Any) -> dict[str, Any]:
    await socket.send({"type": "session.update", "session": session})
    return (await socket.until("session.updated"))["session"]


async def test_one_refused_field_does_not_drop_the_others(connect):
    _, socket = await connect()
    shown = await _updated(
        socket,
        instructions="Be brief.",
        tools=[{"type": "function", "name": "x"}],
        safety_identifier="me",
        audio={"input": {"format": {"type": "audio/pcm", "rate": 1}, "echo": 1}, "output": {"voice": "alloy"}},
        output_modalities=["text"],
    )
    assert (await socket.until("error"))["error"]["param"] == "session.audio.input.format.rate"
    assert (shown["instructions"], shown["tools"], shown["output_modalities"]) == ("Be brief.", [], ["text"])
    assert shown["wan"]["ignored"] == ["audio.input.echo", "audio.output.voice", "safety_identifier", "tools"]


async def test_a_checkpoint_that_names_its_prompts_is_given_no_other(connect):
    """F1."""
    fake, socket = await connect(parameters={"prompts": '["english", "german"]'})
    assert (await socket.until("session.created"))["session"]["instructions"] == "english"
    shown = await _updated(socket, instructions="You are a tutor. Be brief.")
    assert (shown["instructions"], shown["wan"]["prompts"]) == ("english", ["english", "german"])
    assert (await _updated(socket, instructions="german"))["instructions"] == "german"
    await socket.send({"type": "response.create"})
    while not fake.seen:
        await asyncio.sleep(0.02)
    assert fake.seen[0].options["prompt"] == "german"


async def test_turn_detection_is_shown_with_what_clients_act_on(connect):
    """F7."""
    _, socket = await connect()
    shown = await _updated(socket, turn_detection={"type": "semantic_vad", "interrupt_response": False, "odd": 1})
    assert shown["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": False,
    }
    assert (await _updated(socket, turn_detection={"type": "none"}))["audio"]["input"]["turn_detection"] is None


@pytest.mark.parametrize("beta", [False, True])
async def test_telephones(connect, beta):
    """F10."""
    loud = np.full(1280, 0.25, np.float32)
    fake, socket = await connect(
        {"OpenAI-Beta": "realtime=v1"} if beta else None,
        answer=lambda seen: ("speak", "", np.full(2560, 0.25, np.float32), seen.frames),
    )
    if beta:
        shown = await _updated(socket, input_audio_format="g711_ulaw", output_audio_format="g711_alaw")
        assert (shown["input_audio_format"], shown["output_audio_format"]) == ("g711_ulaw", "g711_alaw")
    else:
        given = {"input": {"format": {"type": "audio/pcmu"}}, "output": {"format": {"type": "audio/pcma"}}}
        shown = await _updated(socket, audio=given)
        assert shown["audio"]["output"]["format"] == {"type": "audio/pcma"}
    sound = base64.b64encode(Format("pcmu", 8000).encode(loud)).decode()
    for _ in range(3):
        await socket.send({"type": "input_audio_buffer.append", "audio": sound})
    delta = (await socket.until("response.audio.delta" if beta else "response.output_audio.delta"))["delta"]
    while len(fake.seen) < 2:
        await asyncio.sleep(0.02)
    assert np.median(fake.seen[1].pcm) == pytest.approx(0.25, abs=0.01)
    heard = Format("pcma", 8000).decode(base64.b64decode(delta))
    assert heard.size == pytest.approx(1280, abs=100)
    assert heard[-1] == pytest.approx(0.25, abs=0.01)


async def test_history_is_remembered_and_only_what_is_asked_goes_to_the_model(connect):
    """F5, F13: a framework that reconnects sends its whole history again."""
    fake, socket = await connect()
    said = [{"type": "output_text", "text": "four comes after three"}]
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
    for item in (
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "be kind"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "three"}]},
        {"type": "message", "role": "assistant", "content": said, "id": "old"},
        call,
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "forget this"}], "id": "gone"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "seven"}]},
    ):
        await socket.send({"type": "conversation.item.create", "item": item})
        assert (await socket.until("conversation.item.done"))["item"]["type"] == item["type"]
    await socket.send({"type": "conversation.item.retrieve", "item_id": "old"})
    assert (await socket.until("conversation.item.retrieved"))["item"]["content"] == said
    await socket.send({"type": "conversation.item.delete", "item_id": "gone"})
    assert (await socket.until("conversation.item.deleted"))["item_id"] == "gone"
    assert not fake.seen
    await socket.send({"type": "response.create"})
    while len(fake.seen) < 3:
        await asyncio.sleep(0.02)
    assert [seen.text for seen in fake.seen if seen.text] == ["seven"]


async def test_a_page_of_text_is_kept_and_not_spelled_into_the_model(connect):
    """F3a: 130 characters made the tutor babble for 32 digits; 780 for more than 25 s, and a cancel did not stop it."""
    fake, socket = await connect(parameters={"text_bytes": "16"})
    await socket.send(_message({"type": "input_text", "text": "It was the best of times. " * 80}))
    item = (await socket.until("conversation.item.done"))["item"]
    assert item["wan"]["untold"].startswith("text: expected at most 16 bytes")
    await socket.send({"type": "response.create"})
    assert (await socket.until("response.done"))["response"]["output"] == [], "at once: the model was told nothing"
    await socket.send(_message({"type": "input_text", "text": "seven"}))
    assert "wan" not in (await socket.until("conversation.item.done"))["item"]
    await socket.send({"type": "response.create"})
    while len(fake.seen) < 3:
        await asyncio.sleep(0.02)
    assert [seen.text for seen in fake.seen if seen.text] == ["seven"]


async def test_a_refused_item_leaves_its_id_free(connect):
    """5.6."""
    fake, socket = await connect()
    bad = _message({"type": "input_audio", "audio": "n*"}, {"type": "input_text", "text": "hi"}, id="mine")
    assert (await socket.error(bad))["code"] == "invalid_audio"
    assert (await socket.error(_message({"type": "input_text", "text": "y" * 70_000}, id="mine")))["param"] == "item"
    await socket.send(_message({"type": "input_text", "text": "hi"}, id="mine"))
    assert (await socket.until("conversation.item.done"))["item"]["id"] == "mine"
    assert not fake.seen


async def test_an_event_that_breaks_the_gateway_is_answered(connect, monkeypatch):
    """5.6."""
    _, socket = await connect()
    error = await socket.error({"type": "session.update", "session": {"modalities": [{}]}, "event_id": "e"})
    assert (error["code"], error["event_id"]) == ("invalid_value", "e")
    monkeypatch.setattr("client.web.realtime.session.RealtimeSession.ask", lambda *_: 1 / 0)
    error = await socket.error({"type": "response.create", "event_id": "f"})
    assert (error["type"], error["code"], error["event_id"]) == ("server_error", "server_error", "f")


def _speaks(first: int, last: int):
    return lambda s: ("speak" if first <= s.index < last else "listen", f" {s.index}", s.pcm, s.frames)


@pytest.mark.parametrize("detection", [None, {"type": "server_vad", "create_response": False}])
@pytest.mark.parametrize("asked_at", [4, 12])  # while it is being said, and when it is over
async def test_what_the_model_says_is_held_until_it_is_asked_for(connect, detection, asked_at):
    """F8."""
    fake, socket = await connect(answer=_speaks(2, 8))
    await _updated(socket, turn_detection=detection)
    await socket.send({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(4800)).decode()})
    while len(fake.seen) < asked_at:
        await asyncio.sleep(0.02)
    await socket.send({"type": "response.create", "response": {"metadata": {"mine": "1"}}})
    seen = []
    async with asyncio.timeout(20):
        while not seen or seen[-1]["type"] != "response.done":
            seen.append(await socket.ws.receive_json())
    made = [event["type"] for event in seen if event["type"].startswith("response.")]
    assert made[0] == "response.created"
    response = seen[-1]["response"]
    assert (response["status"], response["metadata"]) == ("completed", {"mine": "1"})
    assert response["output"][0]["content"][0]["transcript"] == "2 3 4 5 6 7 8"
    assert response["usage"]["output_tokens"] == 7


async def test_responses_as_clients_ask_for_them(connect):
    """F9, F14."""
    _, socket = await connect(answer=_speaks(6, 8))
    error = await socket.error({"type": "response.create", "response": {"conversation": "none"}})
    assert error["param"] == "response.conversation"
    error = await socket.error({"type": "response.create", "response": {"output_modalities": ["smell"]}})
    assert error["param"] == "response.output_modalities"
    await socket.send({"type": "response.create", "response": {"output_modalities": ["text"]}})
    assert (await socket.until("response.output_text.delta"))["delta"] == "6"
    assert (await socket.until("response.done"))["response"]["output_modalities"] == ["text"]
    error = await socket.error({"type": "response.cancel"})
    assert error["message"].startswith("Cancellation failed")
    for verb in ("retrieve", "delete", "truncate"):
        error = await socket.error({"type": f"conversation.item.{verb}", "item_id": "x"})
        assert error["code"] == f"item_{verb}_invalid_item_id"


async def test_truncating_what_is_being_said_stops_it(connect):
    """F7: with interrupt_response true a framework's interrupt is a truncate only."""
    _, socket = await connect(answer=lambda s: ("speak", "", s.pcm, s.frames))
    await socket.send({"type": "response.create"})
    item = (await socket.until("response.output_audio.delta"))["item_id"]
    await socket.send({"type": "conversation.item.truncate", "item_id": item, "content_index": 0, "audio_end_ms": 10})
    assert (await socket.until("response.done"))["response"]["status"] == "cancelled"
    assert (await socket.until("conversation.item.truncated"))["audio_end_ms"] == 10


async def test_pictures_come_in_items_and_not_too_many(connect, monkeypatch):
    monkeypatch.setattr("client.web.call.call.PIXELS_PER_SECOND", 1.0)
    fake, socket = await connect()
    out = io.BytesIO()
    Image.new("RGB", (1920, 1920), (10, 250, 10)).save(out, "PNG")
    image = base64.b64encode(out.getvalue()).decode()
    await socket.send(_message({"type": "input_image", "image_url": f"data:image/png;base64,{image}"}))
    await socket.until("conversation.item.done")
    for _ in range(9):
        await socket.send({"type": "wan.video.append", "image": image})
    assert (await socket.until("error"))["error"]["code"] == "rate_limit_exceeded"
    while not fake.seen:
        await asyncio.sleep(0.02)
    assert fake.seen[0].frames[0, 0, 0].tolist() == [10, 250, 10]


async def test_a_server_that_goes_away_says_how_long_it_stays(connect):
    _, socket = await connect(leaves={1: 30.0})
    await socket.send({"type": "response.create"})
    assert (await socket.until("wan.server.leaving"))["seconds"] == 30.0


async def test_a_server_that_comes_back_is_told(connect):
    fake, socket = await connect(leave_at=5)
    await socket.send({"type": "response.create"})
    assert (await socket.until("wan.server.resumed"))["lost_units"] >= 1
    sent = len(fake.seen)
    while len(fake.seen) < sent + 3:
        await asyncio.sleep(0.02)
