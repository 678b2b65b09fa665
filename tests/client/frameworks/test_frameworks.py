"""The clients that people have, unmodified: their own defaults, ordinary instructions, a tool that nobody calls.

Each plays ten words in real time: a barge-in, ten seconds of silence, a page of text; then it connects anew.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher

import pytest
from runs import RUNS
from words import BARGED, NUMBERS, SAID, answer

pytestmark = pytest.mark.clients
MISSING = 1  # answers that may be wrong: the tutor gets 98 of 100 right, and is late where others take the cores


@pytest.mark.timeout(600)
@pytest.mark.parametrize("client", RUNS)
def test_a_conversation_makes_sense_and_has_no_error(client, talks):
    wrong = _judge(client, talks.first(client)) and _judge(client, talks.alone(client))
    assert not wrong


def _judge(client, talk):
    """What is wrong with it, in a sentence, or nothing."""
    run = RUNS[client]
    errors = [error for error in talk.errors if not (run.refused and "16 bytes" in error)]
    if talk.code or errors or len(talk.errors) != run.refused:  # a page of text is refused by the Live API, and named
        return f"exit code {talk.code}, errors {talk.errors}: {talk.output[-2000:]}"
    said = talk.said
    wanted = [answer(number) for _, number in SAID if number != BARGED] + [answer(9)] * run.typed
    if len(missing := _missing(wanted, re.findall(r"\w+ comes after \w+", said))) > MISSING:
        return f"no {missing} in: {said}"
    if answer(BARGED) in said:
        return f"{BARGED} was answered to the end though it was talked over: {said}"
    if len(missing := _missing([NUMBERS[number] for _, number in SAID], re.findall(r"\w+", talk.heard))) > MISSING:
        return f"the user's {missing} are not in: {talk.heard}"
    return ""


def _missing(wanted, got):
    """Those that did not come, in this order."""
    steps = SequenceMatcher(None, wanted, got, autojunk=False).get_opcodes()
    return [each for kind, start, end, *_ in steps if kind in ("delete", "replace") for each in wanted[start:end]]
