"""A perform job and its hand-over meet once, whichever comes first, and nothing waits for a closed session."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_models.runtime.messages import CloseJob, HandOver, HistoryView, PerformJob
from triton_models.runtime.performer import rendezvous
from triton_models.runtime.performer.rendezvous import Rendezvous

pytestmark = pytest.mark.unit

VIEW = HistoryView(np.array([3], np.int64), np.array([[0, 5]], np.int64))


def job(session: str = "a", unit: int = 0) -> PerformJob:
    return PerformJob(session, 1, unit, seed=0, steps=4, deadline_ns=9, origin=0)


def over(session: str = "a", unit: int = 0) -> HandOver:
    return HandOver(session, 1, unit, seed=7, origin=2, history=VIEW, sent_ns=5)


@pytest.mark.parametrize("handed_first", [True, False])
def test_the_job_that_joins_has_both_halves(handed_first: bool) -> None:
    meeting: Rendezvous[str] = Rendezvous()
    if handed_first:
        assert meeting.hand(over()) is None
        met = meeting.expect(job(), "ticket")
    else:
        assert meeting.expect(job(), "ticket") is None
        assert len(meeting) == 1
        found = meeting.hand(over())
        assert found is not None
        met, ticket = found
        assert ticket == "ticket"
    assert met == PerformJob("a", 1, 0, seed=7, steps=4, deadline_ns=9, origin=2, history=VIEW, sent_ns=5)
    assert len(meeting) == 0
    assert meeting.hand(over()) is None, "it was used up"


steps = st.lists(st.tuples(st.sampled_from(["job", "hand"]), st.sampled_from("ab"), st.integers(0, 3)), unique=True)


@given(steps)
def test_each_pair_meets_once_in_any_order(order: list[tuple[str, str, int]]) -> None:
    meeting: Rendezvous[tuple[str, int]] = Rendezvous()
    met = []
    for what, session, unit in order:
        if what == "job":
            found = meeting.expect(job(session, unit), (session, unit))
            met += [(session, unit)] if found else []
        else:
            found = meeting.hand(over(session, unit))
            met += [found[1]] if found else []
    jobs, hands = ({(s, u) for kind, s, u in order if kind == what} for what in ("job", "hand"))
    assert sorted(met) == sorted(jobs & hands)
    assert len(meeting) == len(jobs - hands)
    assert set(meeting.clear()) == jobs - hands


def test_a_close_returns_who_waited_and_refuses_what_comes_later() -> None:
    meeting: Rendezvous[str] = Rendezvous()
    meeting.expect(job("a", 0), "a0")
    meeting.expect(job("b", 0), "b0")
    meeting.hand(over("a", 1))
    assert meeting.close(CloseJob("a", 1)) == ["a0"]
    assert meeting.closed("a", 1)
    assert not meeting.closed("a", 2), "opened again"
    assert not meeting.closed("b", 1)
    assert meeting.hand(over("a", 2)) is None
    assert meeting.expect(job("a", 2), "late") is None, "the hand-over of a closed session is not kept"
    assert meeting.hand(over("b")) is not None


def test_two_jobs_of_one_unit_are_a_mistake() -> None:
    meeting: Rendezvous[str] = Rendezvous()
    meeting.expect(job(), "first")
    with pytest.raises(KeyError):
        meeting.expect(job(), "second")
    assert meeting.clear() == ["first"]


def test_what_nobody_fetches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "MAX_WAITING", 3)
    meeting: Rendezvous[str] = Rendezvous()
    for unit in range(10):
        meeting.hand(over("a", unit))
        meeting.close(CloseJob(f"s{unit}", 1))
    assert meeting.expect(job("a", 0), "gone") is None
    assert meeting.expect(job("a", 9), "here") is not None
    assert [meeting.closed(f"s{unit}", 1) for unit in (0, 9)] == [False, True]
