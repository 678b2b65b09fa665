"""What a client can do wrong: a clear error on its stream, and nobody is harmed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.server


def pcm(samples: int, dtype: type = np.float32, value: float = 0.0) -> np.ndarray:
    return np.full(samples, value, dtype)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pcm": pcm(2400)}, ["'pcm'", "[2560]", "[2400]"]),
        ({"frames": np.zeros((4, 32, 32, 3), np.float32)}, ["'frames'", "UINT8", "FP32"]),
        ({"pcm": pcm(2560, value=np.nan)}, ["INVALID_ARGUMENT: pcm: expected finite samples, got nan at sample 0"]),
        ({"text": "x q " * 1000}, ["INVALID_ARGUMENT: text: expected at most 10", "more tokens"]),
        ({"unit": 7}, ["INVALID_ARGUMENT: unit_index: expected 2, got 7 (units 2 to 6 skipped)"]),
    ],
)
def test_a_bad_unit_is_refused_and_harms_nobody(server: Any, changes: dict[str, Any], expected: list[str]) -> None:
    stream, other = server.stream(), server.stream()
    for unit in range(2):
        stream.ask("bad", unit)
        other.ask("good", unit)
    error = stream.refused("bad", changes.pop("unit", 2), **changes)
    for part in expected:
        assert part in error
    stream.ask("bad", 2, end=True)
    other.ask("good", 2, end=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("{", "INVALID_ARGUMENT: options: expected a JSON object"),
        ({"solver_steps": 1000}, "INVALID_ARGUMENT: options.solver_steps: expected an integer 1 to 16, got 1000"),
    ],
)
def test_bad_options_open_no_session(server: Any, options: Any, expected: str) -> None:
    stream, key = server.stream(), expected  # a name that no other test uses
    assert expected in stream.refused(key, 0, options=options)
    assert f"NOT_FOUND: sequence_id: session {key!r} is unknown" in stream.refused(key, 1, end=True)
    stream.ask(key, 0, end=True)


def test_an_unknown_session_is_named(server: Any) -> None:
    refused = server.stream().refused("never-seen", 1)
    assert "NOT_FOUND: sequence_id: session 'never-seen' is unknown" in refused


def test_a_session_that_has_ended_is_not_found(server: Any) -> None:
    stream = server.stream()
    stream.ask(7, 0)
    assert "skipped" in stream.refused(7, 3, start=False)
    stream.ask(7, 1, end=True)
    assert "NOT_FOUND: sequence_id: session 7 has ended (completed)" in stream.refused(7, 2)
    stream.ask(7, 0, end=True)


def test_a_refused_last_unit_ends_nothing(server: Any) -> None:
    stream = server.stream()
    stream.ask("s", 0, options={"resume": True})
    assert "skipped" in stream.refused("s", 5, end=True)
    stream.ask("s", 1, end=True)


def test_more_units_than_the_window_are_refused(server: Any) -> None:
    stream = server.stream()
    stream.ask("s", 0)
    with server.held():
        for unit in (1, 2, 3):
            stream.send("s", unit)
        assert "RESOURCE_EXHAUSTED: unit_index: 2 units of session 's' are unanswered" in stream.next().error
    assert [stream.next().unit for _ in range(2)] == [1, 2]
    stream.ask("s", 3, end=True)
