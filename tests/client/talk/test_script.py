"""A script and what an agent made of it: every kind of event, kept and not kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.media.source import Caption, UserSource
from client.report import timeline
from client.report.film import write_conversation
from client.stream.errors import MediaError
from client.stream.units import UnitShape
from client.talk.conversation import Conversation, Recording, UnitRecord
from client.talk.script import Event, Script, Verdicts, judge

pytestmark = pytest.mark.unit

SHAPE = UnitShape(samples=2560, height=64, width=64)


def event(kind: str, start: float, stop: float, *words: str, **more: Any) -> Event:
    fields = {"caption": f"{kind}s", "interrupts": False, "cut": False, "text": "", **more}
    return Event(kind, start, stop, words=words, **fields)


def held(folder: Path, said: dict[int, str], speaking: set[int], count: int = 60) -> Conversation:
    """A conversation in which unit k says said[k]; every answer arrives 40 ms after its unit was complete."""
    captions = (Caption(1.0, 1.3, "says: seven"), Caption(3.0, 3.2, "murmurs: mm-hm"))
    pcm = np.zeros(count * SHAPE.samples, np.float32)
    source = UserSource(SHAPE, count, pcm, None, {}, {"audio": "a", "video": "v"}, captions)
    talk = Conversation(source, Recording(SHAPE, folder), "host:1", "duplex", 1, {}, {}, {}, "2026-01-01T00:00:00")
    for index in range(count):
        due = (index + 1) * 160.0
        record = UnitRecord(index, due, due + 1, received_ms=due + 40.0)
        record.state = "speak" if index in speaking else "listen"
        record.text = said.get(index, "")
        talk.units.append(record)
    return talk


def check(folder: Path, events: list[Event], said: dict[int, str], speaking: set[int]) -> Verdicts:
    return judge(Script(folder, "en", 9.6, "nobody", tuple(events)), held(folder, said, speaking))


def test_an_answer_is_right_when_all_its_words_are(tmp_path):
    seven = event("say", 1.0, 1.3, "eight", "comes", "after", "seven")
    words = {9: " eight", 11: " comes", 13: " after", 15: " seven"}
    found = check(tmp_path, [seven], words, set(range(9, 18))).items[0]
    assert found.right
    assert found.given == ("eight", "comes", "after", "seven")
    assert found.response_ms == pytest.approx(10 * 160 + 40 - 1300)
    assert not check(tmp_path, [seven], {**words, 15: " six"}, set(range(9, 18))).items[0].right
    talk = held(tmp_path, words, set(range(9, 18)))
    talk.units[2].heard, talk.units[8].heard = " one", " seven"
    judged = judge(Script(tmp_path, "en", 9.6, "nobody", (seven,)), talk)
    assert (judged.items[0].heard, judged.summary()["events"][0]["heard"]) == ("seven", "seven")
    silent = check(tmp_path, [seven], {}, set()).items[0]
    assert (silent.right, silent.response_ms) == (False, None)


def test_an_interruption_must_stop_the_agent_and_be_answered(tmp_path):
    events = [
        event("say", 1.0, 1.3, "eight", "comes", cut=True),
        event("say", 2.4, 2.7, "three", interrupts=True),
    ]
    words = {9: " eight", 11: " comes", 18: " three"}
    first, second = check(tmp_path, events, words, {9, 10, 11, 12, 13, 14, 15, 18, 19}).items
    assert (first.right, first.given) == (True, ("eight", "comes"))
    assert second.right
    assert second.stop_ms == pytest.approx(17 * 160 + 40 - 2400)
    late = check(tmp_path, events, words, set(range(9, 30))).items[1]
    assert (late.right, late.stop_ms) == (False, None)
    idle = check(tmp_path, events, {18: " three"}, {18, 19}).items
    assert [v.right for v in idle] == [False, False], "an agent that did not speak could not be interrupted"


def test_a_murmur_and_a_silence_are_kept_or_not(tmp_path):
    murmur, quiet = event("murmur", 3.0, 3.2), event("quiet", 5.0, 7.0)
    assert [v.right for v in check(tmp_path, [murmur, quiet], {}, set(range(15, 30))).items] == [True, True]
    stopped = check(tmp_path, [murmur, quiet], {35: " red"}, {15, 16, 17, 18, 35}).items
    assert [v.right for v in stopped] == [False, False]
    assert stopped[1].given == ("red",)


def test_a_card_and_typed_text_are_timed_from_their_beginning(tmp_path):
    card, typed = event("show", 1.0, 2.6, "red"), event("type", 4.0, 4.0, "five", text="4")
    found = check(tmp_path, [card, typed], {8: " red", 25: " five"}, {8, 9, 25, 26}).items
    assert [v.right for v in found] == [True, True]
    assert found[0].response_ms == pytest.approx(9 * 160 + 40 - 1000)
    assert found[1].response_ms == pytest.approx(26 * 160 + 40 - 4000)


def test_a_conversation_that_ends_early_is_judged_as_far_as_it_went(tmp_path):
    events = [event("show", 1.0, 1.5, "red"), event("show", 20.0, 21.0, "blue")]
    assert len(check(tmp_path, events, {8: " red"}, {8}).items) == 1


def test_verdicts_become_rows_marks_and_pictures(tmp_path):
    events = [event("say", 1.0, 1.3, "eight"), event("quiet", 5.0, 7.0), event("show", 7.5, 8.0, "red")]
    found = check(tmp_path, events, {9: " eight", 35: " one", 50: " red"}, {9, 35, 50})
    summary = found.summary()
    assert (summary["right"], summary["of"]) == (2, 3)
    assert [row["expected"] for row in summary["events"]] == ["eight", "silence", "red"]
    assert [mark.good for mark in found.marks()] == [True, False, True]
    talk = held(tmp_path, {9: " eight"}, {9}, 20)
    timeline.draw(talk, tmp_path / "t.png", weights="none", marks=found.marks())
    write_conversation(talk, tmp_path / "c.mp4")
    assert (tmp_path / "t.png").stat().st_size > 10_000
    assert (tmp_path / "c.mp4").stat().st_size > 1_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "not a script of format 1"),
        ('{"format": 1, "events": [{"kind": "sing", "words": []}]}', "kind: expected one of say"),
        ('{"format": 2, "events": [], "language": "en", "seconds": 1, "voices": ""}', "expected format 1, got 2"),
    ],
)
def test_a_bad_script_says_what_is_wrong(tmp_path, text, message):
    if text is not None:
        (tmp_path / "script.json").write_text(text)
    with pytest.raises(MediaError, match=message):
        Script.read(tmp_path)


def test_a_script_is_read_back(tmp_path):
    item = {"kind": "type", "start": 1, "stop": 1, "caption": "types: 4", "words": ["five"], "interrupts": False}
    data = {
        "format": 1,
        "language": "de",
        "seconds": 3.5,
        "voices": "x",
        "events": [{**item, "cut": False, "text": "4"}],
    }
    (tmp_path / "script.json").write_text(json.dumps(data))
    script = Script.read(tmp_path)
    assert (script.language, script.seconds, script.events[0].words, script.events[0].due_unit) == (
        "de",
        3.5,
        ("five",),
        6,
    )
