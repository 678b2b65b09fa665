"""`/v1/live/sessions`: the Live API's events, by the official SDK and by a client that sends whatever it is told to."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from openai.types.live import (
    CommentaryAppendedEvent,
    DelegationCreatedEvent,
    ErrorEvent,
    OutputAudioDeltaEvent,
    OutputTranscriptDeltaEvent,
    SessionClosedEvent,
    SessionStartedEvent,
)
from sdk import connect_sdk, until

from client.web.live.config import LiveConfig
from client.web.media import Format

pytestmark = pytest.mark.unit
RATE = 24_000


def _speech(seconds: float, form: Format = Format()) -> str:  # noqa: B008
    wave = 0.25 * np.sin(np.arange(round(seconds * form.rate)) * 2 * np.pi * 300 / form.rate)
    return base64.b64encode(form.encode(wave.astype(np.float32))).decode()


class Socket:
    def __init__(self, ws: Any) -> None:
        self.ws = ws

    async def send(self, kind: str, **fields: Any) -> None:
        await self.ws.send_str(json.dumps({"type": kind, **fields}))

    async def until(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while (event := await self.ws.receive_json())["type"] != kind:
                pass
        return event

    async def error(self, kind: str, **fields: Any) -> dict[str, Any]:
        await self.send(kind, **fields)
        return (await self.until("error"))["error"]


@pytest.fixture
async def connect(start_fake, start_gate):
    """`fake, gate, socket = await connect()`: connected, nothing sent."""

    async def start(**fake_options: Any):
        fake, _ = await start_fake(**fake_options)
        gate = await start_gate(fake.url)
        return fake, gate, Socket(await gate.http.ws_connect(f"{gate.url}/v1/live/sessions"))

    return start


async def test_the_sdk_starts_talks_listens_mutes_and_closes(start_fake, start_gate, lively):
    fake, _ = await start_fake(answer=lively(), heard={2: " two"}, parameters={"prompts": '["english", "german"]'})
    gate = await start_gate(fake.url)
    sdk = connect_sdk(gate)
    async with sdk.live.connect() as connection:
        session: Any = {"model": "gpt-live-1", "instructions": "Be brief.", "audio": {"output": {"voice": "marin"}}}
        await connection.session.start(session=session, event_id="evt_start")
        seen: list[Any] = []
        started = await until(connection, "session.started", seen)
        assert isinstance(started, SessionStartedEvent)
        assert started.client_event_id == "evt_start"
        assert (started.session.status, started.session.instructions) == ("active", "english")
        assert started.session.audio.format.rate == RATE
        for _ in range(8):
            await connection.session.input_audio.append(audio=_speech(0.1))
            await asyncio.sleep(0.1)
        words = await until(connection, "session.output_transcript.delta", seen)
        assert isinstance(words, OutputTranscriptDeltaEvent)
        assert words.end_ms - words.start_ms == 160
        voice = await until(connection, "session.output_audio.delta", seen)
        assert isinstance(voice, OutputAudioDeltaEvent)
        assert voice.start_ms == words.start_ms
        heard = [event for event in seen if event.type == "session.input_transcript.delta"]
        assert [(event.delta, event.start_ms, event.end_ms) for event in heard] == [(" two", 320, 480)]
        notes = [event.message for event in seen if event.type == "info"]
        assert [note.partition(":")[0] for note in notes] == ["session.audio.output.voice", "session.instructions"]
        assert [event for event in seen if event.type == "error"] == []
        sounds = [event for event in seen if event.type == "session.output_audio.delta"]
        assert [s.start_ms for s in sounds] == list(range(0, 160 * len(sounds), 160)), "every unit, silence too"
        pcm = np.concatenate([np.frombuffer(base64.b64decode(s.delta), "<i2") for s in sounds])
        assert pcm.size == pytest.approx(len(sounds) * 3840, abs=100)

        await connection.session.input_audio.mute(event_id="evt_mute")
        assert (await until(connection, "session.input_audio.muted")).client_event_id == "evt_mute"
        sent = len(fake.seen)
        await connection.session.input_audio.append(audio=_speech(0.5))
        while len(fake.seen) < sent + 4:
            await asyncio.sleep(0.02)
        assert np.abs(np.concatenate([unit.pcm for unit in fake.seen[sent + 1 :]])).max() == 0
        await connection.session.input_audio.unmute()
        await until(connection, "session.input_audio.unmuted")

        await connection.session.close(event_id="evt_close")
        closed = await until(connection, "session.closed")
        assert isinstance(closed, SessionClosedEvent)
        assert (closed.reason, closed.client_event_id) == ("close_requested", "evt_close")
        assert closed.usage.seconds == pytest.approx(len(fake.seen) * 0.16, abs=1)
    assert fake.seen[0].options == {"hold_open": True, "resume": True, "prompt": "english"}
    assert fake.seen[-1].end
    await sdk.close()


@pytest.mark.parametrize("form", [Format("pcm", 16_000), Format("pcmu", 8000), Format("pcma", 8000)])
async def test_sound_in_the_formats_of_the_api(connect, form):
    _, _, socket = await connect()  # the fake says what it hears
    shown = {"type": f"audio/{form.kind}", "rate": form.rate}
    await socket.send("session.start", session={"model": "x", "audio": {"format": shown}})
    assert (await socket.until("session.started"))["session"]["audio"]["format"] == shown
    await socket.send("session.input_audio.append", audio=_speech(0.64, form))
    loudest = 0.0
    for _ in range(8):
        delta = (await socket.until("session.output_audio.delta"))["delta"]
        loudest = max(loudest, float(np.abs(form.decode(base64.b64decode(delta))).max()))
    assert loudest == pytest.approx(0.25, abs=0.02)


BAD: list[tuple[dict[str, Any] | None, str, str]] = [
    (None, "invalid_value", "session"),
    ({}, "missing_required_parameter", "session.model"),
    ({"model": 5}, "invalid_value", "session.model"),
    ({"model": "x", "dance": 1}, "unknown_parameter", "session.dance"),
    ({"model": "x", "audio": 1}, "invalid_value", "session.audio"),
    ({"model": "x", "audio": {"input": {}}}, "unknown_parameter", "session.audio.input"),
    ({"model": "x", "audio": {"format": {"type": "audio/mp3"}}}, "invalid_value", "session.audio.format.type"),
    (
        {"model": "x", "audio": {"format": {"type": "audio/pcm", "rate": 8000}}},
        "invalid_value",
        "session.audio.format.rate",
    ),
    (
        {"model": "x", "audio": {"format": {"type": "audio/pcm", "x": 1}}},
        "unknown_parameter",
        "session.audio.format.x",
    ),
    ({"model": "x", "audio": {"output": {"voice": 7}}}, "invalid_value", "session.audio.output.voice"),
    ({"model": "x", "delegation": {"type": "me"}}, "invalid_value", "session.delegation.type"),
    ({"model": "x", "delegation": {"type": "client", "y": 1}}, "unknown_parameter", "session.delegation.y"),
    ({"model": "x", "input": [{}] * 129}, "invalid_value", "session.input"),
    ({"model": "x", "input": [{"role": "system"}]}, "invalid_value", "session.input[0].role"),
    ({"model": "x", "input": [{"role": "user", "content": []}]}, "invalid_value", "session.input[0].content"),
    (
        {"model": "x", "input": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        "invalid_value",
        "session.input[0].content[0]",
    ),
    ({"model": "x", "store": "yes"}, "invalid_value", "session.store"),
    ({"model": "x", "triggers": [{}]}, "unsupported_parameter", "session.triggers"),
    ({"model": "x", "client": {"data_channel": {}}}, "unsupported_parameter", "session.client"),
    ({"model": "x", "wan": {"video": {"output": "gif"}}}, "invalid_value", "session.wan.video.output"),
    ({"model": "x", "wan": {"seed": -1}}, "invalid_value", "session.wan.seed"),
]


async def test_a_configuration_that_is_wrong_starts_nothing_and_may_be_mended(connect):
    fake, _, socket = await connect()
    assert (await socket.error("session.input_audio.append", audio="AAAA"))["code"] == "session_not_started"
    for given, code, param in BAD:
        error = await socket.error("session.start", session=given, event_id="e")
        assert (error["code"], error["param"], error["client_event_id"]) == (code, param, "e")
    assert not fake.seen
    config = {
        "model": "x",
        "delegation": {"type": "responses", "responses": {"model": "y"}},
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
        "store": True,
        "wan": {"seed": 7},
    }
    await socket.send("session.start", session=config)
    session = (await socket.until("session.started"))["session"]
    assert (session["delegation"], session["store"], session["wan"]["seed"]) == ({"type": "client"}, False, 7)
    notes = [(await socket.until("info"))["message"].partition(":")[0] for _ in range(3)]
    assert notes == ["session.input", "session.store", "session.delegation"]
    assert (await socket.error("session.start", session={"model": "x"}))["code"] == "session_already_started"


async def test_commands_that_cannot_be_obeyed(connect):
    _, _, socket = await connect()
    await socket.send("session.start", session={"model": "x", "delegation": {"type": "responses", "responses": {}}})
    await socket.until("session.started")
    for kind, fields, code in [
        ("session.update", {"session": {"instructions": "x"}}, "immutable_parameter"),
        ("session.update", {"session": {"audio": {}}}, "immutable_parameter"),
        ("session.update", {"session": {"x": 1}}, "unknown_parameter"),
        ("session.update", {"session": {"delegation": {"type": "client"}}}, "invalid_value"),
        ("session.update", {"session": 5}, "invalid_value"),
        ("session.update", {"session": {"wan": {"seed": 1}}}, "immutable_parameter"),
        ("session.update", {"session": {"wan": {"video": {"x": 1}}}}, "unknown_parameter"),
        ("session.update", {"session": {"wan": {"video": {"output": "png"}}}}, "invalid_value"),
        ("session.commentary.append", {"content": " "}, "invalid_value"),
        ("session.commentary.append", {"content": "a", "delegation_id": "x"}, "invalid_value"),
        ("session.thinking.append", {"content": "y" * 5000, "delegation_id": None}, "text_too_long"),
        ("session.input_audio.append", {"audio": "!"}, "invalid_audio"),
        ("wan.video.append", {"image": "AAAA"}, "invalid_image"),
        ("session.output_audio.fixture.play", {"audio": "AAAA"}, "unsupported_event"),
        ("response.create", {}, "unsupported_event"),
        ("decision.create", {}, "unsupported_event"),
        ("session.dance", {}, "unknown_event"),
    ]:
        assert (await socket.error(kind, **fields))["code"] == code, kind
    tools = {"type": "responses", "responses": {"tools": [{"type": "function", "name": "weather"}]}}
    await socket.send("session.update", session={"delegation": tools}, event_id="u")
    assert (await socket.until("session.updated"))["client_event_id"] == "u"
    await socket.send("session.update", session={"wan": {"video": {"output": "jpeg"}}})
    assert (await socket.until("session.updated"))["session"]["wan"]["video"]["output"] == "jpeg"
    await socket.until("wan.video.delta")


async def test_text_is_given_to_the_model_and_what_it_delegates_to_the_application(start_fake, start_gate):
    def answer(seen: Any) -> Any:
        text = "one moment<ask>" if seen.index == 2 else f"It is {seen.text}" if seen.text else ""
        return "speak", text, seen.pcm, seen.frames

    fake, _ = await start_fake(answer=answer, parameters={"delegation": "<ask>"})
    gate = await start_gate(fake.url)
    sdk = connect_sdk(gate)
    async with sdk.live.connect() as connection:
        await connection.session.start(session={"model": "x"})
        seen: list[Any] = []
        created = await until(connection, "session.delegation.created", seen)
        assert isinstance(created, DelegationCreatedEvent)
        assert (created.delegation.target, created.offset_ms) == ("client", 320)
        assert [e.delta for e in seen if e.type == "session.output_transcript.delta"] == ["one moment"]
        await connection.session.commentary.append(content="sunny", delegation_id=created.delegation.id, event_id="c")
        done = await until(connection, "session.commentary.appended")
        assert isinstance(done, CommentaryAppendedEvent)
        assert (done.client_event_id, done.start_ms) == ("c", done.end_ms)
        said = await until(connection, "session.output_transcript.delta")
        assert (said.delta, said.start_ms) == ("It is sunny", done.start_ms)
    await sdk.close()


async def test_a_text_that_the_server_refuses_is_an_error_of_its_own_event(connect):
    refuse = dict.fromkeys(range(99), "INVALID_ARGUMENT: text: expected at most 1 more tokens (0 wait), got 3")
    _, _, socket = await connect(refuse=refuse)
    await socket.send("session.start", session={"model": "x"})
    await socket.until("session.started")
    error = await socket.error("session.thinking.append", content="abc", delegation_id=None, event_id="t")
    assert (error["code"], error["client_event_id"]) == ("text_too_long", "t")
    await socket.until("session.output_audio.delta")


async def test_a_sideband_hears_both_sides_steers_and_learns_the_end(start_fake, start_gate, lively):
    fake, _ = await start_fake(answer=lively(always=True))
    gate = await start_gate(fake.url)
    sdk = connect_sdk(gate)
    async with sdk.live.connect() as connection:
        form: Any = {"type": "audio/pcmu", "rate": 8000}
        await connection.session.start(session={"model": "x", "audio": {"format": form}})
        started = await until(connection, "session.started")
        async with sdk.live.sideband.connect(session_id=started.session.id) as side:
            assert (await until(side, "session.started")).session.id == started.session.id
            await connection.session.input_audio.append(audio=_speech(0.2, Format("pcmu", 8000)))
            heard = await until(side, "session.input_audio.append")
            assert len(base64.b64decode(heard.audio)) == pytest.approx(2 * 0.2 * RATE, rel=0.05)
            voice = await until(side, "session.output_audio.delta")
            assert len(base64.b64decode(voice.delta)) == pytest.approx(7680, abs=100)  # the filter starts up
            assert voice.end_ms - voice.start_ms == 160
            await side.send({"type": "session.input_audio.append", "audio": "AAAA"})
            assert isinstance(await until(side, "error"), ErrorEvent)
            await side.send({"type": "session.input_audio.mute", "event_id": "m"})
            assert (await until(connection, "session.input_audio.muted")).client_event_id == "m"
        async with sdk.live.sideband.connect(session_id=started.session.id) as side:
            await until(side, "session.started")
            await connection.close()
            assert (await until(side, "session.closed")).reason == "connection_lost"
    assert len(gate.desk.book) == 0, "a Live session ends with its connection"
    await sdk.close()


async def test_hanging_up_and_what_is_not_to_be_had(connect):
    _, gate, socket = await connect()
    sdk = OpenAI(base_url=f"{gate.url}/v1", api_key="-", max_retries=0)
    await socket.send("session.start", session={"model": "x"})
    key = (await socket.until("session.started"))["session"]["id"]
    refused = {
        ("GET", f"{key}/fork"): (400, "fork: sessions are not stored"),
        ("POST", f"{key}/fork"): (400, "fork: sessions are not stored"),
        ("GET", f"{key}/content"): (400, "content: sessions are not recorded"),
        ("POST", f"{key}/refer"): (400, "refer: there is no SIP"),
        ("POST", ""): (400, "body: expected a JSON object"),
        ("GET", "nobody/attach"): (404, "session_id:"),
    }
    for (method, path), (status, reason) in refused.items():
        async with gate.http.request(method, f"{gate.url}/v1/live/sessions/{path}".rstrip("/")) as response:
            body = await response.json(content_type=None)
            assert response.status == status
            assert body["error"]["message"].startswith(reason)
    await asyncio.to_thread(sdk.live.sessions.hangup, key)
    closed = await socket.until("session.closed")
    assert closed["reason"] == "close_requested"
    assert (await socket.ws.receive()).data == 1000


async def test_pictures_both_ways(connect):
    fake, _, socket = await connect()
    session = {"model": "x", "wan": {"video": {"output": "jpeg"}}}
    await socket.send("session.start", session=session)
    await socket.until("session.started")
    first = await socket.until("wan.video.delta")
    assert (first["frames"], first["end_ms"] - first["start_ms"]) == (4, 160)
    await socket.send("wan.video.append", image=first["delta"])
    await socket.until("wan.video.delta")
    assert fake.seen[0].frames.shape == (4, 64, 64, 3)


async def test_sound_that_comes_in_a_burst_is_cut_and_said_so(connect):
    _, _, socket = await connect()
    await socket.send("session.start", session={"model": "x"})
    await socket.send("session.input_audio.append", audio=_speech(5.0))
    assert (await socket.until("info"))["code"] == "input_audio_dropped"


async def test_a_server_that_has_no_room_is_an_error_before_the_start(connect):
    _, _, socket = await connect(errors={0: "RESOURCE_EXHAUSTED: sessions: expected at most 4"})
    error = await socket.error("session.start", session={"model": "x"}, event_id="s")
    assert (error["type"], error["code"], error["client_event_id"]) == ("server_error", "resource_exhausted", "s")
    assert (await socket.ws.receive()).data == 1000


def test_the_prompt_in_force():
    def choose(asked: str) -> str:
        return "english"

    assert LiveConfig.read({"model": "x"}, choose).model_options() == {"prompt": "english"}
    assert LiveConfig.read({"model": "x", "instructions": None}, str).model_options() == {}
