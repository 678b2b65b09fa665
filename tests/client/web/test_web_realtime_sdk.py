"""The official `openai` SDK, unmodified, talks to `/v1/realtime` in both spellings."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import numpy as np
import pytest
from openai.types.realtime import (
    InputAudioBufferCommittedEvent,
    RealtimeErrorEvent,
    ResponseAudioDeltaEvent,
    ResponseAudioTranscriptDeltaEvent,
    ResponseDoneEvent,
    SessionCreatedEvent,
    SessionUpdatedEvent,
)
from PIL import Image
from sdk import connect_sdk, until

from client.web.door.access import Access

pytestmark = pytest.mark.unit
SECRET = "correct horse battery staple"


def _speech(seconds: float, rate: int = 24_000) -> str:
    wave = 8000 * np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * 300 / rate)
    return base64.b64encode(wave.astype("<i2").tobytes()).decode()


@pytest.fixture
async def start_sdk(start_fake, start_gate, lively):
    """`fake, gate, sdk = await start_sdk()`"""

    async def start(answer: Any = None, access: Access | None = None, **fake_options):
        fake, _ = await start_fake(answer=answer or lively(), **fake_options)
        gate = await start_gate(fake.url, access=access)
        return fake, gate, connect_sdk(gate, SECRET)

    return start


async def test_connect_configure_talk_listen_cancel_and_see_an_error(start_sdk):
    fake, gate, sdk = await start_sdk()
    async with sdk.realtime.connect(model="duplex") as connection:
        created = await connection.recv()
        assert isinstance(created, SessionCreatedEvent)
        assert "decides by itself" in created.session.wan["capabilities"]["full_duplex"]
        assert created.session.audio.output.format.rate == 24_000
        await connection.session.update(session={"type": "realtime", "instructions": "Be kind.", "voice": "alloy"})
        updated = await connection.recv()
        assert isinstance(updated, SessionUpdatedEvent)
        assert updated.session.instructions == "Be kind."
        await connection.input_audio_buffer.append(audio=_speech(0.8))
        seen: list[Any] = []
        delta = await until(connection, "response.output_audio.delta", seen)
        assert isinstance(delta, ResponseAudioDeltaEvent)
        assert isinstance(next(e for e in seen if "transcript" in e.type), ResponseAudioTranscriptDeltaEvent)
        assert [e.type for e in seen[:12]] == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
            "response.output_audio_transcript.delta",
            "response.output_audio.delta",
        ]
        assert isinstance(seen[2], InputAudioBufferCommittedEvent)
        pcm = [np.frombuffer(base64.b64decode(delta.delta), "<i2")]
        for _ in range(3):
            event = await until(connection, "response.output_audio.delta")
            pcm.append(np.frombuffer(base64.b64decode(event.delta), "<i2"))
        assert sum(p.size for p in pcm) == pytest.approx(4 * 3840, abs=100)
        assert np.abs(np.concatenate(pcm)).max() > 1000

        await connection.response.cancel(event_id="evt_cancel")
        done = await until(connection, "response.done")
        assert isinstance(done, ResponseDoneEvent)
        assert (done.response.status, done.response.status_details.reason) == ("cancelled", "client_cancelled")
        assert done.response.id == delta.response_id
        assert done.response.output[0].content[0].transcript.startswith("I hear")

        await connection.send({"type": "response.dance", "event_id": "evt_bad"})
        after: list[Any] = []
        error = await until(connection, "error", after)
        assert isinstance(error, RealtimeErrorEvent)
        assert (error.error.event_id, error.error.code) == ("evt_bad", "unknown_event")
        sent = len(fake.seen)
        while len(fake.seen) < sent + 5:
            await asyncio.sleep(0.05)
        await connection.response.cancel(event_id="evt_again")
        error = await until(connection, "error", after)
        assert (error.error.event_id, error.error.code) == ("evt_again", "response_cancel_not_active")
        assert [e.type for e in after] == ["error", "error"], "nothing of the cancelled response comes late"
    assert fake.seen[0].options == {"hold_open": True, "resume": True, "prompt": "Be kind."}
    assert fake.seen[0].pcm.size == 2560
    found = [call for call in gate.desk.book._calls.values() if call.started]
    assert found[0].fence.fenced >= 4
    await sdk.close()


async def test_the_beta_spelling(start_sdk):
    _, _, sdk = await start_sdk()
    async with sdk.beta.realtime.connect(model="gpt-4o-realtime-preview") as connection:
        created = await connection.recv()
        assert created.session.input_audio_format == "pcm16"
        await connection.session.update(session={"modalities": ["text", "audio"], "output_audio_format": "pcm16"})
        assert (await connection.recv()).session.modalities == ["text", "audio"]
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
        )
        await connection.response.create()
        seen: list[Any] = []
        await until(connection, "response.audio.delta", seen)
        assert [e.type for e in seen] == [
            "conversation.item.created",
            "response.created",
            "response.output_item.added",
            "conversation.item.created",
            "response.content_part.added",
            "response.audio_transcript.delta",
            "response.audio.delta",
        ]
        await connection.response.cancel()
        done = await until(connection, "response.done")
        assert done.response.output[0].content[0].type == "audio"
    await sdk.close()


async def test_barge_in_ends_the_response_and_says_why(start_sdk):
    _, _, sdk = await start_sdk()
    async with sdk.realtime.connect(model="duplex") as connection:
        await connection.input_audio_buffer.append(audio=_speech(0.5))
        await until(connection, "response.output_audio.delta")
        await connection.input_audio_buffer.append(audio=_speech(0.5))
        seen: list[Any] = []
        done = await until(connection, "response.done", seen)
        assert (done.response.status, done.response.status_details.reason) == ("cancelled", "turn_detected")
        assert "input_audio_buffer.speech_started" in [e.type for e in seen]
    await sdk.close()


async def test_text_out_and_a_response_that_the_model_does_not_give(start_sdk, monkeypatch):
    monkeypatch.setattr("client.web.realtime.session.SILENT_UNITS", 3)
    _, _, sdk = await start_sdk(
        answer=lambda s: ("speak" if 10 <= s.index < 13 else "listen", f"{s.index} ", s.pcm, s.frames)
    )
    async with sdk.realtime.connect(model="duplex") as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await connection.response.create(response={"metadata": {"turn": "1"}})
        done = await until(connection, "response.done")
        assert (done.response.status, done.response.output) == ("completed", [])
        assert done.response.metadata == {"turn": "1"}
        seen: list[Any] = []
        done = await until(connection, "response.done", seen)
        assert done.response.status == "completed"
        assert done.response.output[0].content[0].text == "10 11 12 13 "
        assert not [e for e in seen if "audio" in e.type]
        assert next(e.delta for e in seen if e.type == "response.output_text.delta") == "10 "
    await sdk.close()


async def test_pictures_playback_and_items(start_sdk, lively):
    fake, _, sdk = await start_sdk(answer=lively(always=True))
    async with sdk.realtime.connect(model="duplex") as connection:
        await connection.session.update(
            session={"type": "realtime", "wan": {"video": {"output": "jpeg"}, "seed": 4, "solver_steps": 2}}
        )
        out = io.BytesIO()
        Image.new("RGB", (320, 200), (250, 10, 10)).save(out, "PNG")
        await connection.send({"type": "wan.video.append", "image": base64.b64encode(out.getvalue()).decode()})
        video = await until(connection, "wan.video.delta")
        strip = Image.open(io.BytesIO(base64.b64decode(video.delta)))
        assert (strip.size, video.frames, video.unit) == ((64, 256), 4, 0)
        seen: list[Any] = []
        for _ in range(3):
            await until(connection, "response.output_audio.delta", seen)
        item_id = seen[-1].item_id
        await connection.send({"type": "playback.ack", "item_id": item_id, "audio_end_ms": 200})
        acked = await until(connection, "playback.acked")
        assert acked.audio_end_ms == 200
        await connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=10**6, event_id="e1")
        error = await until(connection, "error")
        assert (error.error.event_id, error.error.param) == ("e1", "audio_end_ms")
        await connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=160)
        assert (await until(connection, "conversation.item.truncated")).audio_end_ms == 160
        await connection.conversation.item.retrieve(item_id=item_id)
        item = (await until(connection, "conversation.item.retrieved")).item
        assert item.wan["heard_ms"] == 160
        assert item.content[0].transcript.startswith(item.wan["heard_text"])
    assert fake.seen[0].options == {"hold_open": True, "resume": True, "seed": 4, "solver_steps": 2}
    assert fake.seen[0].frames[0, 0, 0].tolist() == [250, 10, 10]
    await sdk.close()


async def test_a_session_is_resumed_on_a_new_connection(start_sdk, lively):
    fake, gate, sdk = await start_sdk(answer=lively(always=True))
    async with sdk.realtime.connect(model="duplex") as connection:
        created = await connection.recv()
        await connection.input_audio_buffer.append(audio=_speech(0.2))
        for _ in range(8):
            delta = await until(connection, "response.output_audio.delta")
        connection._connection.transport.abort()
    while not gate.desk.book.waiting:
        await asyncio.sleep(0.02)
    async with sdk.realtime.connect(model="duplex") as connection:
        await connection.recv()
        await connection.send({"type": "session.resume", "session_id": "no", "last_event_id": "event_1"})
        assert (await until(connection, "error")).error.code == "session_not_found"
        resume = {"type": "session.resume", "session_id": created.session.id, "last_event_id": delta.event_id}
        await connection.send(resume)
        seen: list[Any] = []
        resumed = await until(connection, "session.resumed", seen)
        assert (resumed.session["id"], resumed.missed_events) == (created.session.id, 0)
        await until(connection, "response.output_audio.delta", seen)
        numbers = [int(e.event_id.removeprefix("event_")) for e in seen]
        first = int(delta.event_id.removeprefix("event_")) + 1
        assert numbers == list(range(first, first + len(numbers)))
        assert seen[-1].response_id == delta.response_id
    assert [s.index for s in fake.seen] == list(range(len(fake.seen)))
    await sdk.close()


async def test_short_lived_keys_are_made_as_openai_makes_them(start_sdk):
    _, gate, sdk = await start_sdk(access=Access(secret=SECRET))
    made = await sdk.realtime.client_secrets.create()
    async with connect_sdk(gate, made.value).realtime.connect(model="duplex") as connection:
        assert (await connection.recv()).type == "session.created"
    await sdk.close()
