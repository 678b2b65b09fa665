"""Options of a start request: defaults, limits, and errors that name field, value and expectation."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from engine_builder.manifest import Manifest
from triton_models.runtime.duplex.options import MAX_SEED, OptionLimits, SessionOptions, interrupts
from triton_models.runtime.kv.retention import Full, Window
from triton_models.runtime.messages import SessionError

pytestmark = pytest.mark.unit
LIMITS = OptionLimits()


@pytest.mark.parametrize("raw", [None, "", b"", "{}"])
def test_defaults(raw: str | bytes | None) -> None:
    options = SessionOptions.parse(raw, OptionLimits(solver_steps=3, retention=Full()))
    assert options == SessionOptions("", 0, Full(), 3, False, False)


def test_all_fields() -> None:
    given = {
        "prompt": "Grüß Gott",
        "seed": MAX_SEED,
        "retention": {"window": {"sink": 0, "recent": 9}},
        "solver_steps": 16,
        "hold_open": True,
        "resume": True,
        "home": "token",
        "echo_canceller": False,
    }
    for raw in (json.dumps(given), json.dumps(given).encode()):
        options = SessionOptions.parse(raw, LIMITS)
        assert options == SessionOptions(
            "Grüß Gott", MAX_SEED, Window(0, 9), 16, True, True, "token", frozenset(given), echo_canceller=False
        )


@pytest.mark.parametrize(
    ("raw", "prompt"),
    [
        (None, "english"),
        ('{"seed": 1}', "english"),
        ('{"persona": {}}', "english"),
        ('{"prompt": "german"}', "german"),
        ('{"persona": {"prompt": "german"}}', "german"),
        ('{"prompt": ""}', ""),
    ],
)
def test_who_names_no_prompt_gets_the_checkpoints_first(mini_engines: Path, raw: str | None, prompt: str) -> None:
    knows = replace(Manifest.load(mini_engines), defaults={"prompts": ["english", "german"]})
    assert SessionOptions.parse(raw, OptionLimits.of(knows)).prompt == prompt


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", False),
        ('{"interrupt": true}', True),
        ('{"interrupt": false}', False),
        ("{}", 'options: expected only with sequence_start, or {"interrupt": true} alone, got []'),
        ('{"seed": 1}', "got ['seed']"),
        ('{"interrupt": 1}', "options.interrupt: expected true or false, got 1"),
        ("[", "options: expected a JSON object"),
    ],
)
def test_a_unit_in_mid_session_may_interrupt_and_nothing_else(raw: str, expected: bool | str) -> None:
    if isinstance(expected, bool):
        assert interrupts(raw, LIMITS) == expected
        return
    with pytest.raises(SessionError, match=re.escape(expected)):
        interrupts(raw, LIMITS)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", "options: expected a JSON object"),
        (b"\xff\xfe", "options: expected a JSON object"),
        ("[" * 30_000, "options: expected a JSON object"),
        ("[]", r"options: expected a JSON object, got \[\]"),
        (" " * 70_000, "options: expected at most 65536 bytes, got 70000"),
        ('{"sed": 1, "prompt": ""}', r"options: expected only the fields prompt, seed, .*, got \['sed'\]"),
        ('{"prompt": 3}', "options.prompt: expected a string, got 3"),
        (json.dumps({"prompt": "ä" * 9000}), "options.prompt: expected at most 16384 bytes, got 18000"),
        ('{"prompt": "\\ud800"}', "options.prompt: expected valid Unicode"),
        ('{"retention": "' + "x" * 9000 + '"}', 'options.retention: expected "full"'),
        ('{"seed": -1}', f"options.seed: expected an integer 0 to {MAX_SEED}, got -1"),
        ('{"seed": 1.0}', "options.seed: expected an integer .* got 1.0"),
        ('{"seed": true}', "options.seed: expected an integer .* got True"),
        ('{"solver_steps": 17}', "options.solver_steps: expected an integer 1 to 16, got 17"),
        ('{"hold_open": 1}', "options.hold_open: expected true or false, got 1"),
        ('{"resume": null}', "options.resume: expected true or false, got None"),
        ('{"retention": "none"}', 'options.retention: expected "full"'),
        ('{"retention": {"window": {"sink": 1, "recent": 0}}}', "options.retention.window.recent: expected an integer"),
    ],
)
def test_errors(raw: str | bytes, message: str) -> None:
    with pytest.raises(SessionError, match=message) as caught:
        SessionOptions.parse(raw, LIMITS)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert len(str(caught.value)) < 500
