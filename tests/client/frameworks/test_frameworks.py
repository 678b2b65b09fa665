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
@pytest.mark.parametrize("client", RUNS)
def test_a_conversation_makes_sense_and_has_no_error(client, talks):
    run, talk = RUNS[client], talks[client].result()
    assert talk.code == 0, talk.output[-3000:]
    errors = [error for error in talk.errors if not (run.refused and "16 bytes" in error)]
    assert errors == []
    if run.refused:
        assert len(talk.errors) == 1, "the page of text is refused, and named"
    wanted = [number for _, number in SAID if number != BARGED] + [9] * run.typed
    said, place, missing = talk.said, 0, []
    for number in wanted:
        if (found := said.find(answer(number), place)) < 0:
            missing.append(number)
        else:
            place = found + 1
    assert len(missing) <= MISSING, f"{missing} unanswered in: {said}"
    assert answer(BARGED) not in said, "what is talked over is not said to the end"
