"""Client events of `/v1/realtime` that are wrong, odd or out of turn: each is answered with an error that names it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.stream import UnitShape
from client.web import events
from client.web.events import EventError, EventReader
from client.web.media import Format
from client.web.rates import Bucket
from client.web.realtime.items import KEPT, Item, Items

pytestmark = pytest.mark.unit


def _message(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": "user", "content": list(content), **fields},
    }


BAD = [
    ("{", "invalid_json", None),
    ("[]", "invalid_json", None),
    ({"type": 5}, "unknown_event", "type"),
    ({"type": "session.dance"}, "unknown_event", "type"),
    ({"type": "session.update"}, "invalid_value", "session"),
    ({"type": "session.update", "session": {"instructions": 5}}, "invalid_value", "session.instructions"),
    ({"type": "session.update", "session": {"type": "transcription"}}, "invalid_value", "session.type"),
    ({"type": "session.update", "session": {"modalities": ["smell"]}}, "invalid_value", "session.modalities"),
    (
        {"type": "session.update", "session": {"input_audio_format": "mp3"}},
        "invalid_value",
        "session.input_audio_format",
    ),
    (
        {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 1}}}}},
        "invalid_value",
        "session.audio.input.format.rate",
    ),
    ({"type": "session.update", "session": {"audio": {"input": 1}}}, "invalid_value", "session.audio.input"),
    ({"type": "session.update", "session": {"wan": {"seed": "x"}}}, "invalid_value", "session.wan.seed"),
    (
        {"type": "session.update", "session": {"wan": {"video": {"output": "gif"}}}},
        "invalid_value",
        "session.wan.video",
    ),
    (
        {"type": "session.update", "session": {"turn_detection": {"type": "x"}}},
        "invalid_value",
        "session.turn_detection",
    ),
    ({"type": "session.resume", "session_id": "a", "last_event_id": "b"}, "invalid_value", "session_id"),
    ({"type": "input_audio_buffer.append"}, "invalid_audio", "audio"),
    ({"type": "input_audio_buffer.append", "audio": "not base64"}, "invalid_audio", "audio"),
    ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
    ({"type": "wan.video.append", "image": base64.b64encode(b"gif").decode()}, "invalid_image", "image"),
    (_message({"type": "input_text", "text": "hi"}, role="tool"), "invalid_value", "item"),
    ({"type": "conversation.item.create", "item": {"type": "message", "role": ["user"]}}, "invalid_value", "item"),
    (_message(), "invalid_value", "item.content"),
    (_message({"type": "input_text", "text": " "}), "invalid_value", "item.content[0]"),
    (_message({"type": "input_image", "image_url": "x"}), "invalid_value", "item.content[0]"),
    (_message({"type": "input_text", "text": "hi"}, id="x" * 65), "invalid_value", "item.id"),
    (_message({"type": "input_text", "text": "y" * 70_000}), "invalid_value", "item"),
    ({"type": "conversation.item.truncate", "item_id": 5}, "item_truncate_invalid_item_id", "item_id"),
    ({"type": "response.cancel"}, "response_cancel_not_active", None),
]


async def test_every_bad_event_is_answered_and_the_session_goes_on(connect):
    _, socket = await connect()
    for number, (event, code, param) in enumerate(BAD):
        tagged = event if isinstance(event, str) else {**event, "event_id": f"evt_{number}"}
        error = await socket.error(tagged)
        assert (error["code"], (error["param"] or "").startswith(param or "")) == (code, True), (event, error)
        assert error["event_id"] == (None if isinstance(event, str) else f"evt_{number}")
    error = await socket.error({"type": "response.create", "event_id": 7})
    assert (error["code"], error["event_id"]) == ("invalid_value", None)
    await socket.send(_message({"type": "input_text", "text": "still here"}))
    assert (await socket.until("conversation.item.done"))["item"]["content"][0]["text"] == "still here"
    half = {"type": "function_call_output", "call_id": "a \ud83d", "output": "b \udc00"}
    await socket.send({"type": "conversation.item.create", "item": half})
    assert (await socket.until("conversation.item.done"))["item"]["output"] == "b ?"
    await socket.send({"type": "input_audio_buffer.append", "audio": "A" * (5 << 20)})
    assert (await socket.until("error"))["error"]["message"].startswith("audio: expected at most 60 s ahead")


async def test_what_is_too_large_is_refused_before_it_is_read(connect, monkeypatch):
    """One event of three million values took the loop, and with it all conversations, for two seconds."""
    _, socket = await connect()
    names = {f"name {number}": 1 for number in range(2000)}
    await socket.send({"type": "session.update", "session": names})
    assert len((await socket.until("session.updated"))["session"]["wan"]["ignored"]) <= 65
    loads = json.loads
    monkeypatch.setattr("json.loads", lambda data, **more: pytest.fail("read") if len(data) > 9e4 else loads(data))
    error = await socket.error('{"type": "x", "a": [' + "[]," * 30_000 + "[]]}")
    assert (error["code"], error["message"]) == ("invalid_json", "expected at most 20000 commas, got 30001")
    monkeypatch.undo()
    monkeypatch.setattr("client.web.media.Format.decode", lambda *_: pytest.fail("decoded"))
    error = await socket.error({"type": "input_audio_buffer.append", "audio": "A" * (5 << 20)})
    assert error["message"].startswith("audio: expected at most 60 s ahead of real time")
    monkeypatch.undo()
    parts = [{"type": "input_audio", "audio": "A" * (3 << 20)}] * 2
    decoded: list[Any] = []
    decode = Format.decode
    monkeypatch.setattr("client.web.media.Format.decode", lambda *given: decoded.append(given) or decode(*given))
    error = await socket.error(_message(*parts))
    assert (error["param"], len(decoded)) == ("item.content[1].audio", 1)


async def test_a_large_picture_is_read_in_pieces_between_which_others_have_their_turn(monkeypatch):
    """20 MB of base64 held the loop for 0.14 s."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 90)).save(out, "PNG")
    call: Any = SimpleNamespace(pixels=Bucket(1e6, 1e6), shape=UnitShape(2560, 64, 64))
    refuse: Any = None  # nothing is refused
    reader, turns, until_read = EventReader(call, refuse), 0, []
    given = base64.b64encode(out.getvalue() + bytes(15 << 20)).decode()

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    open_image = events.media.open_image
    monkeypatch.setattr("client.web.media.open_image", lambda data: until_read.append(turns) or open_image(data))
    beside = asyncio.create_task(others())
    shown = await reader.picture(given, "image")
    beside.cancel()
    assert shown[0, 5, 5].tolist() == [200, 30, 90]
    assert until_read[0] >= len(given) // events.PIECE


async def test_base64_is_what_it_was_however_it_is_cut(monkeypatch):
    monkeypatch.setattr(events, "PIECE", 7)
    for size in range(40):
        data = bytes(range(7, 7 + size))
        plain = base64.b64encode(data).decode()
        for given in (plain, plain.rstrip("="), "data:image/png;base64," + plain, "\n ".join(plain) + " "):
            if plain:
                assert await events._base64(given, "x") == data, given
    for bad in ("", None, 5, "A", "AAAA=", "AAAAA", "AA==AAAA" * 3, "AAAAAAAA=AAA", "AAAA" * 9 + "-AAA", "AAAAAAAé"):
        with pytest.raises(ValueError, match="x: expected base64"):
            await events._base64(bad, "x")


async def test_a_prompt_is_fixed_once_the_model_has_begun(connect):
    fake, socket = await connect()
    await socket.send({"type": "session.update", "session": {"instructions": "a", "wan": {"seed": 9}}})
    await socket.send({"type": "response.create"})
    await socket.until("response.created")
    await socket.send({"type": "session.update", "session": {"instructions": "b", "output_modalities": ["text"]}})
    session = (await socket.until("session.updated"))["session"]
    assert (session["instructions"], session["output_modalities"]) == ("a", ["text"]), "what is in force"
    error = await socket.error({"type": "session.update", "session": {"wan": {"seed": 10}}})
    assert (error["code"], error["param"]) == ("session_started", "session.wan.seed")
    await socket.send({"type": "session.update", "session": {"instructions": "a", "turn_detection": None}})
    session = (await socket.until("session.updated"))["session"]
    assert session["audio"]["input"]["turn_detection"] is None
    error = await socket.error({"type": "session.resume", "session_id": session["id"], "last_event_id": "event_1"})
    assert error["code"] == "session_started"
    while not fake.seen:
        await asyncio.sleep(0.02)
    assert fake.seen[0].options == {"hold_open": True, "resume": True, "prompt": "a", "seed": 9}


async def test_items_before_the_instructions_do_not_begin_the_model(connect):
    """Frameworks hand over their context first, a system message and what was said, and then the persona."""
    fake, socket = await connect()
    for role, kind, text in (
        ("system", "input_text", "You are kind."),
        ("user", "input_text", "hello"),
        ("assistant", "output_text", "hello to you"),
        ("user", "input_text", "count"),
    ):
        item = {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}
        await socket.send({"type": "conversation.item.create", "item": item})
        await socket.until("conversation.item.done")
    await asyncio.sleep(0.5)
    assert not fake.seen
    await socket.send({"type": "session.update", "session": {"instructions": "be brief", "wan": {"seed": 9}}})
    assert (await socket.until("session.updated"))["session"]["instructions"] == "be brief"
    await socket.send({"type": "response.create"})
    while not fake.seen:
        await asyncio.sleep(0.02)
    assert fake.seen[0].options == {"hold_open": True, "resume": True, "prompt": "be brief", "seed": 9}


async def test_audio_of_another_rate_arrives_at_the_models_rate_however_it_was_cut_and_coded(connect):
    fake, socket = await connect()
    rate, tone = 48_000, 440
    await socket.send(
        {
            "type": "session.update",
            "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": rate}, "turn_detection": None}}},
        }
    )
    wave = (10_000 * np.sin(np.arange(rate // 2) * 2 * np.pi * tone / rate)).astype("<i2").tobytes()
    for start in range(0, len(wave), 9601):  # in the middle of samples
        piece = base64.encodebytes(wave[start : start + 9601]).decode().rstrip("=\n")
        piece = f"data:audio/pcm;base64,{piece}" if start else piece
        await socket.send({"type": "input_audio_buffer.append", "audio": piece})
    await socket.send({"type": "input_audio_buffer.commit"})
    committed = await socket.until("input_audio_buffer.committed")
    assert (await socket.until("conversation.item.done"))["item"]["id"] == committed["item_id"]
    while len(fake.seen) < 3:
        await asyncio.sleep(0.02)
    heard = np.concatenate([seen.pcm for seen in fake.seen[:3]])[1000:7000]
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(heard.size)))
    assert np.argmax(spectrum) * 16_000 / heard.size == pytest.approx(tone, abs=5)
    assert np.abs(heard).max() == pytest.approx(10_000 / 32_768, rel=0.05)


async def test_cleared_audio_is_not_heard_and_more_than_a_minute_ahead_is_refused(connect):
    fake, socket = await connect()
    loud = base64.b64encode(np.full(24_000 * 25, 9000, "<i2").tobytes()).decode()
    for _ in range(2):
        await socket.send({"type": "input_audio_buffer.append", "audio": loud})
    error = await socket.error({"type": "input_audio_buffer.append", "audio": loud})
    assert error["message"].startswith("audio: expected at most 60 s ahead of real time")
    await socket.send({"type": "input_audio_buffer.clear"})
    await socket.until("input_audio_buffer.cleared")
    sent = len(fake.seen)
    while len(fake.seen) < sent + 4:
        await asyncio.sleep(0.02)
    assert not fake.seen[-1].pcm.any()


async def test_a_conversation_that_fails_says_so_and_closes(connect):
    _, socket = await connect(errors={2: "INTERNAL: perform: the engine failed"})
    await socket.send({"type": "response.create"})
    done = await socket.until("response.done")
    assert done["response"]["status_details"]["error"]["code"] == "internal"
    error = (await socket.until("error"))["error"]
    assert (error["type"], error["message"]) == ("server_error", "perform: the engine failed")
    message = await socket.ws.receive(timeout=10)
    assert socket.ws.close_code == 1000, message


async def test_the_beta_header_and_a_second_response(connect):
    _, socket = await connect(headers={"OpenAI-Beta": "realtime=v1"})
    session = (await socket.until("session.created"))["session"]
    assert session["output_audio_format"] == "pcm16"
    assert "audio" not in session
    await socket.send({"type": "response.create"})
    error = await socket.error({"type": "response.create", "event_id": "two"})
    assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "two")
    await socket.send({"type": "output_audio_buffer.clear"})
    assert (await socket.until("response.done"))["response"]["status"] == "cancelled"
    await socket.until("output_audio_buffer.cleared")


async def test_the_session_object_names_what_is_simulated(connect):
    for headers in ({}, {"OpenAI-Beta": "realtime=v1"}):
        _, socket = await connect(headers)
        shown = (await socket.until("session.created"))["session"]
        assert shown["wan"]["capabilities"]["speech_events"].startswith("simulated")
        assert shown["wan"]["video"] == {"output": None, "width": 64, "height": 64, "fps": 25}


def test_items_are_bounded_and_playback_cannot_be_more_than_was_sent():
    items = Items()
    for number in range(KEPT + 5):
        items.add(Item(f"i{number}", "assistant", "audio", pieces=[(0.0, "a "), (160.0, "b ")], audio_ms=320.0))
    assert items.last == f"i{KEPT + 4}"
    with pytest.raises(EventError, match="an item of this conversation, got 'i4'"):
        items.get("i4", "retrieve")
    assert items.heard("i9", 160).heard_text == "a "
    for bad in (321.5, -1, True, "x", None):
        with pytest.raises(EventError, match="audio_end_ms"):
            items.heard("i9", bad)
