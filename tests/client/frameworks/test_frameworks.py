"""The clients that people have, unmodified: their own defaults, ordinary instructions, a tool that nobody calls.

Each plays seven words in real time: a barge-in, ten seconds of silence, a page of text, and LiveKit connects anew.
"""

from __future__ import annotations

import pytest
from runs import RUNS
from words import BARGED, SAID, answer

pytestmark = pytest.mark.clients
MISSING = 1  # answers that may be wrong: the tutor gets 98 of 100 right, and is late where others take the cores


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "client", [pytest.param(name, marks=[pytest.mark.slow] * run.slow) for name, run in RUNS.items()]
)
def test_a_conversation_makes_sense_and_has_no_error(client, talks):
    wrong = _judge(client, talks.first(client)) and _judge(client, talks.alone(client))
    assert not wrong


def _judge(client, talk):
    """What is wrong with it, in a sentence, or nothing."""
    run = RUNS[client]
    errors = [error for error in talk.errors if not (run.refused and "16 bytes" in error)]
    if talk.code or errors or len(talk.errors) != run.refused:  # a page of text is refused by the Live API, and named
        return f"exit code {talk.code}, errors {talk.errors}: {talk.output[-2000:]}"
    wanted = [number for _, number in SAID if number != BARGED] + [9] * run.typed
    said, place, missing = talk.said, 0, []
    for number in wanted:
        if (found := said.find(answer(number), place)) < 0:
            missing.append(number)
        else:
            place = found + 1
    if len(missing) > MISSING:
        return f"{missing} unanswered in: {said}"
    if answer(BARGED) in said:
        return f"{BARGED} was answered to the end though it was talked over: {said}"
    return ""
