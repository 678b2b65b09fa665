"""What the model heard, as the user's own words: the Realtime events and items, and the page's lines."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI
from openai.types.realtime import (
    ConversationItemInputAudioTranscriptionCompletedEvent,
    ConversationItemInputAudioTranscriptionDeltaEvent,
)

from client.web.call.call_book import YOUNG_UNITS
from client.web.realtime.floor import LATE_UNITS, MAX_WORDS, PAUSE_UNITS, Floor
from client.web.realtime.items import Items
from client.web.realtime.wording import BETA, GA, Wording

pytestmark = pytest.mark.unit
TONE = (0.3 * np.sin(np.arange(2560) * 2 * np.pi * 400 / 16_000)).astype(np.float32)
QUIET = np.zeros(2560, np.float32)
KIND = "conversation.item.input_audio_transcription"


class Told:
    """A floor, and what it has said."""

    def __init__(self, wording: Wording = GA) -> None:
        self.events: list[dict[str, Any]] = []
        self.items = Items()
        self.floor = Floor(lambda kind, **fields: self.events.append({"type": kind, **fields}), wording, self.items)
        self.unit = 0

    def hear(self, units: str, words: str = "") -> Told:
        """One unit a letter: L(oud), Q(uiet), S(peaking agent); the words come in the last one."""
        for place, unit in enumerate(units):
            heard = words if place == len(units) - 1 else ""
            self.floor.hear(self.unit, TONE if unit == "L" else QUIET, "speak" if unit == "S" else "listen", heard)
            self.unit += 1
        return self

    @property
    def transcripts(self) -> list[str]:
        return [e["transcript"] for e in self.events if e["type"] == f"{KIND}.completed"]

    @property
    def committed(self) -> list[str]:
        return [e["item_id"] for e in self.events if e["type"] == "input_audio_buffer.committed"]


@pytest.mark.parametrize("wording", [GA, BETA])
def test_a_turn_becomes_an_item_and_then_gets_its_words(wording: Wording) -> None:
    told = Told(wording).hear("QLL", " two").hear("Q", " three").hear("S")
    created = wording.item_events(complete=True)
    assert [e["type"] for e in told.events] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        *created,
        f"{KIND}.delta",
        f"{KIND}.completed",
    ]
    *_, shown, delta, completed = told.events
    assert shown["item"]["content"] == [{"type": "input_audio", "transcript": None}]
    assert delta["delta"] == completed["transcript"] == "two three"
    assert (delta["item_id"], completed["content_index"]) == (shown["item"]["id"], 0)
    assert completed["usage"] == {"type": "duration", "seconds": pytest.approx(0.64)}
    kept = told.items.get(completed["item_id"], "retrieve").show(wording)
    assert kept["content"] == [{"type": "input_audio", "transcript": "two three"}]


@pytest.mark.parametrize(
    ("course", "transcripts", "items"),
    [
        ([("LLS", " two")], ["two"], 1),  # with the first unit of the answer
        ([("LLS", ""), ("S", " two")], ["two"], 1),  # after it
        ([("LL", ""), ("Q" * (PAUSE_UNITS + 2), " two")], ["two"], 1),  # after the pause that ended the turn
        ([("LL", ""), ("Q" * (PAUSE_UNITS + LATE_UNITS + 1), " two")], ["two"], 2),  # of speech that was not metered
        ([("QQ", " two"), ("QQ", " three")], ["two", "three"], 2),
        ([("LLS", " two"), ("QLL", " three"), ("S", "")], ["two", "three"], 2),
        ([("LLSSSSSSSS", ""), ("Q" * 30, "")], [], 1),
    ],
)
def test_words_find_their_item(course: list[tuple[str, str]], transcripts: list[str], items: int) -> None:
    told = Told()
    for units, words in course:
        told.hear(units, words)
    assert told.transcripts == transcripts
    assert len(told.committed) == len(set(told.committed)) == items


def test_without_turn_detection_words_wait_for_the_commit_or_follow_it() -> None:
    told = Told()
    told.floor.enabled = False
    told.hear("LLQQQQQQ", " two").hear("QQ")
    assert told.events == []
    told.floor.commit()
    assert told.transcripts == ["two"]
    told.hear("LL").floor.commit()
    told.hear("Q", " three")
    assert told.transcripts == ["two", "three"]
    for _ in range(3):
        told.hear("Q", " word" * 500)
    told.floor.commit()
    assert len(told.committed) == 3
    assert 0 < len(told.transcripts[-1]) <= MAX_WORDS, "who never commits fills no memory"


def test_who_wants_no_transcript_gets_none_and_the_item_has_it() -> None:
    told = Told()
    told.floor.transcribes = False
    told.hear("LLS", " two")
    assert told.transcripts == []
    assert told.items.get(told.committed[0], "retrieve").text == "two"


async def test_the_openai_sdk_reads_it_and_can_turn_it_off(start_fake, start_gate, lively) -> None:
    fake, _ = await start_fake(answer=lively(), heard={4: " two", 40: " six"})
    gate = await start_gate(fake.url)
    sdk = AsyncOpenAI(websocket_base_url=f"ws://127.0.0.1:{gate.port}/v1", api_key="-")
    wave = base64.b64encode((8000 * np.sin(np.arange(12_000) / 13)).astype("<i2").tobytes()).decode()
    async with sdk.realtime.connect(model="duplex") as connection, asyncio.timeout(30):
        created = await connection.recv()
        assert created.session.audio.input.transcription.model == "model"
        await connection.input_audio_buffer.append(audio=wave)
        seen: list[Any] = []
        while not seen or seen[-1].type != "response.created":
            seen.append(await connection.recv())
        kinds = [e.type for e in seen]
        assert kinds[-3:] == [f"{KIND}.delta", f"{KIND}.completed", "response.created"], "before the answer to it"
        delta, completed = seen[-3:-1]
        assert isinstance(delta, ConversationItemInputAudioTranscriptionDeltaEvent)
        assert isinstance(completed, ConversationItemInputAudioTranscriptionCompletedEvent)
        assert (completed.transcript, completed.usage.type) == ("two", "duration")
        await connection.conversation.item.retrieve(item_id=completed.item_id)
        while (event := await connection.recv()).type != "conversation.item.retrieved":
            pass
        assert event.item.content[0].transcript == "two"
        for given in (None, {"model": "whisper-1", "language": "de"}):
            audio = {"input": {"transcription": given}}
            await connection.session.update(session={"type": "realtime", "audio": audio})
            while (event := await connection.recv()).type != "session.updated":
                pass
            found = event.session.audio.input.transcription
            assert found == given or found.model == "model"
    await sdk.close()


async def test_the_page_gets_the_users_line_and_keeps_it(start_fake, start_gate) -> None:
    def answer(seen: Any) -> tuple[str, str, np.ndarray, np.ndarray]:
        return "listen", " eight" if seen.index == 6 else "", seen.pcm, seen.frames

    fake, _ = await start_fake(answer=answer, heard={3: " two", 5: " three", 6: " four", 15: " five"})
    gate = await start_gate(fake.url)
    hello: dict[str, Any] = {"type": "hello"}
    lines: list[tuple[str, int, str]] = []
    for last in (YOUNG_UNITS + 12, YOUNG_UNITS + 14):
        ws = await gate.http.ws_connect(f"{gate.url}/v1/session", protocols=("wan.session.v1",))
        await ws.send_json(hello)
        welcome = await ws.receive_json()
        if not welcome.get("resumed"):
            await ws.send_json({"type": "text", "text": "hi"})
        message = {}
        async with asyncio.timeout(30):
            while message.get("type") != "unit" or message["unit"] < last:
                if isinstance(data := (await ws.receive()).data, str):
                    message = json.loads(data)
                    if message["type"] in ("heard", "caption"):
                        lines.append((message["type"], message["unit"], message["text"]))
        hello = {"type": "hello", "resume": {"session": welcome["session"], "after": message["seq"]}}
        ws._response.connection.transport.abort()  # pyright: ignore
        while not gate.desk.book.waiting:
            await asyncio.sleep(0.01)
    said = [(3, "heard", " two"), (5, "heard", " three"), (6, "heard", " four"), (6, "caption", " eight")]
    assert [(unit, kind, text) for kind, unit, text in lines] == [*said, (15, "heard", " five")]
    assert welcome["history"] == [
        {"who": "you", "text": "hi"},
        {"who": "you", "text": "two three four"},
        {"who": "agent", "text": "eight"},
        {"who": "you", "text": "five"},
    ]
