"""What a listener would have heard and seen, from arrival times alone."""

from __future__ import annotations

import pytest

from client.loadtest.playout import play
from client.loadtest.user import UnitLog
from client.stream.units import UNIT_SECONDS

pytestmark = pytest.mark.unit


def answers(*delays_ms: float | None, left_out: dict[int, list[str]] | None = None) -> list[UnitLog]:
    """Units whose answers came so long after their due times; None: never."""
    units = []
    for index, delay in enumerate(delays_ms):
        due = 100.0 + (index + 1) * UNIT_SECONDS
        received = None if delay is None else due + delay / 1e3
        units.append(UnitLog(index, due, due, 0.0, due, received, {"degradation": (left_out or {}).get(index, [])}))
    return units


def test_jitter_within_the_buffer_is_not_heard() -> None:
    heard = play(answers(50, 149, 60, 140, 50))
    assert (heard.units, heard.underruns, heard.lost_ms, heard.frozen) == (5, 0, 0, 0)
    assert heard.skew_ms == [0.0] * 20


def test_what_comes_later_than_the_buffer_is_partly_lost() -> None:
    heard = play(answers(50, 50, 200, 50))  # due at 150 ms, 50 ms late
    assert heard.underruns == 1
    assert heard.lost_ms == pytest.approx(50)
    assert heard.frozen == 2, "the pictures of 0 and 40 ms came too late"
    assert heard.skew_ms == [0.0] * 14, "where sound was heard, its picture was there"


def test_a_unit_that_never_comes_is_lost_whole() -> None:
    heard = play(answers(50, None, 50))
    assert (heard.underruns, heard.frozen) == (1, 4)
    assert heard.lost_ms == pytest.approx(160)


def test_the_buffer_stands_behind_the_most_punctual_answer_and_does_not_grow() -> None:
    heard = play(answers(400, 50, 100, 300, 300, 300))
    assert heard.underruns == 4, "the slow first answer bought no slack, and neither did those that were late"


def test_repeated_pictures_fall_behind_the_sound() -> None:
    heard = play(answers(50, 50, 50, left_out={1: ["repeat_frame"]}))
    assert heard.skew_ms[4:8] == pytest.approx([40, 80, 120, 160])
    assert heard.skew_ms[8] == 0
    assert heard.frozen == 4


def test_silence_has_no_skew() -> None:
    heard = play(answers(50, 50, left_out={1: ["repeat_frame", "silence"]}))
    assert len(heard.skew_ms) == 4


def test_the_warm_up_is_played_and_not_counted() -> None:
    heard = play(answers(50, 500, 50, 200), skip=2)
    assert (heard.units, heard.underruns, heard.frames) == (2, 1, 8)


def test_without_answers_there_is_nothing_to_play() -> None:
    assert play(answers(None, None)).units == 0
