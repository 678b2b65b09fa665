"""Admission: nobody gets in who would make others late, refusals say why, `full` knows its end."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_builder.presets import preset
from triton_models.runtime.budget.admission import Admission, Budget
from triton_models.runtime.budget.costs import Cost, CostTable
from triton_models.runtime.kv.pages import BlockManager, PageTable
from triton_models.runtime.kv.retention import Full, Retention, Window, WindowLanguage, av_tokens, language_tokens
from triton_models.runtime.messages import SessionError

pytestmark = pytest.mark.unit
TINY = preset("tiny")
COSTS = CostTable.linear({"perform": (6.0, 1.5)})
SMALL = Window(1, 4)


def books(sessions: float = 10, pages: int = 1000, costs: CostTable = COSTS, **kwargs: object) -> Admission:
    return Admission(TINY, costs, Budget(sessions, 4, pages, 16, **kwargs))  # type: ignore[arg-type]


def test_time_budget_is_given_away_once() -> None:
    admission = books(sessions=4, utilisation=0.75)
    for name in "abc":
        assert admission.admit(name, SMALL, 0, 4).units is None
    message = r"sessions: this server keeps 3.0 on time .*, 3 open sessions take 3.0, this one needs 1.0"
    with pytest.raises(SessionError, match=message) as caught:
        admission.admit("d", SMALL, 0, 4)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert admission.release("b")
    assert not admission.release("b")
    admission.admit("d", SMALL, 0, 2)
    with pytest.raises(ValueError, match="session: 'd' is admitted already"):
        admission.admit("d", SMALL, 0, 4)


def test_a_dearer_session_counts_for_more() -> None:
    by_history = CostTable([Cost("perform", 1, 0, 5.0), Cost("perform", 1, 1000, 15.0)])
    admission = books(costs=by_history)
    assert admission.admit("plain", SMALL, 0, 4).share == pytest.approx(1.0, abs=0.5)
    assert admission.admit("more steps", Window(0, 1), 0, 8).share > 2.0
    assert admission.admit("long window", Window(0, 60), 0, 4).share > 2.0
    assert admission.admit("fewer steps", Window(0, 1), 0, 1).share == 1.0  # the thinker's part does not shrink


def test_codec_states_have_a_memory_of_their_own() -> None:
    """Three of the Wan VAE's fit, however cheap their units are."""
    admission = books(sessions=20, state_bytes=2_230_000_000, state_memory=8 * 10**9)
    for name in "abc":
        admission.admit(name, SMALL, 0, 4)
    assert (admission.capacity, admission.room) == (3, 0)
    with pytest.raises(SessionError, match=r"codec state: .* needs 2230.0 MB, 3 open .* of 8000 MB") as caught:
        admission.admit("d", SMALL, 0, 4)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    admission.release("a")
    admission.admit("d", SMALL, 0, 4)


def test_a_server_that_carries_one_session_takes_one() -> None:
    admission = books(sessions=1)
    admission.admit("a", SMALL, 0, 4)
    with pytest.raises(SessionError, match="sessions"):
        admission.admit("b", SMALL, 0, 4)
    with pytest.raises(SessionError, match=r"keeps 0\.0 on time"):
        books(sessions=0).admit("a", SMALL, 0, 4)


def test_a_dear_session_may_run_alone_if_it_is_on_time_alone() -> None:
    costs = CostTable([Cost("perform", 1, 0, 5.0), Cost("perform", 1, 1000, 35.0)])
    admission = books(sessions=2, utilisation=1.0, costs=costs)
    assert admission.admit("long", Window(0, 55), 0, 4).share == 2.0
    with pytest.raises(SessionError, match=r"keeps 2\.0 on time"):
        admission.admit("other", SMALL, 0, 4)
    message = r"real time: a unit with 4 solver steps over \d+ tokens takes \d+ ms even alone, the deadline is 160 ms"
    with pytest.raises(SessionError, match=message):
        admission.admit("too long", Window(0, 90), 0, 4)


def test_pages_are_promised_whole() -> None:
    need = books().admit("a", SMALL, 20, 4).pages
    admission = books(pages=2 * need + 1)
    admission.admit("a", SMALL, 20, 4)
    admission.admit("b", SMALL, 20, 4)
    message = rf"kv pages: this session needs {need} \(.'window'.*\), 1 of {2 * need + 1} are not promised to 2 open"
    with pytest.raises(SessionError, match=message):
        admission.admit("c", SMALL, 20, 4)
    assert (len(admission), admission.pages_free) == (2, 1)


def test_full_is_told_how_long_it_lasts_warned_and_ended() -> None:
    admission = books(sessions=1, pages=600, notice_seconds=1.6)
    ticket = admission.admit("a", Full(), 10, 4)
    assert ticket.units is not None
    assert ticket.limit == "kv pages"
    assert ticket.seconds == pytest.approx(ticket.units * 0.16)
    blocks = BlockManager(601, 16)
    table = PageTable(blocks, "a", Full())
    table.append("prompt", -1, 10)
    for unit in range(ticket.units):  # the promise holds to the last unit, with every slot used
        ticket.check(unit)
        table.evict(unit)
        table.append("av", unit, av_tokens(TINY))
        table.append("language", unit, language_tokens(TINY))
        assert (ticket.notice(unit) is not None) == (unit >= ticket.units - 10)
    assert blocks.used == ticket.pages
    assert ticket.notice(ticket.units - 3) == (
        "retention full: this session ends in 0.3 s (kv pages); a window retention has no such end"
    )
    with pytest.raises(SessionError, match=r"retention full: \d+ units .* were promised and are over \(kv pages\)"):
        ticket.check(ticket.units)


def test_full_takes_no_more_than_its_part_of_the_pool() -> None:
    admission = books(sessions=10, utilisation=1.0, pages=2000)
    tickets = [admission.admit(str(i), Full(), 0, 4) for i in range(10)]
    assert len({ticket.units for ticket in tickets}) == 1
    assert admission.pages_free >= 0


def test_full_is_refused_where_it_would_end_at_once() -> None:
    admission = books(pages=50)
    with pytest.raises(SessionError, match=r"kv pages: retention full would last \d\.\d s .* expected at least 10 s"):
        admission.admit("a", Full(), 0, 4)
    assert len(admission) == 0


def test_full_ends_before_it_breaks_real_time() -> None:
    """160 ms are used up at 1 ms per 20 tokens and step: 4 * (2 + h / 20) + 10 = 160 at 710 tokens, 42 units of 17."""
    costs = CostTable([Cost("perform", 1, 0, 2.0), Cost("perform", 1, 1000, 52.0), Cost("think", 1, 0, 10.0)])
    admission = Admission(TINY, costs, Budget(1, 4, 100_000, 16, history=700, full_seconds=(1.0, 600.0)))
    ticket = admission.admit("a", Full(), 0, 4)
    assert ticket.limit == "real time"
    assert ticket.units == 710 // TINY.unit_positions


@pytest.mark.parametrize(
    ("sessions", "pages", "capacity"), [(0, 900, 0), (1, 900, 1), (7.3, 900, 5), (50, 50, 6), (50, 7, 0)]
)
def test_the_room_that_is_told_is_the_room_that_there_is(sessions: float, pages: int, capacity: int) -> None:
    need = books().admit("a", SMALL, 0, 4).pages
    assert need == 8
    admission = books(sessions=sessions, pages=pages, utilisation=0.7, session_pages=need)
    assert admission.capacity == admission.room == capacity
    for number in range(capacity):
        assert admission.room == capacity - number
        admission.admit(str(number), SMALL, 0, 4)
    assert admission.room == 0
    with pytest.raises(SessionError, match=r"RESOURCE_EXHAUSTED: .*"):
        admission.admit("one more", SMALL, 0, 4)


def test_who_is_refused_for_want_of_room_hears_when_to_ask_again() -> None:
    admission = books(sessions=1)
    admission.admit("a", SMALL, 0, 4)
    with pytest.raises(SessionError, match=r"; retry after 1 s$"):
        admission.admit("b", SMALL, 0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pages": 0}, "pages: expected >= 1, got 0"),
        ({"sessions": -1}, "sessions: expected >= 0, got -1"),
        ({"utilisation": 1.5}, "utilisation: expected 0 < utilisation <= 1, got 1.5"),
        ({"full_seconds": (9.0, 1.0)}, "full_seconds: expected 0 <= least <= most"),
    ],
)
def test_impossible_budgets_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**({"sessions": 1, "solver_steps": 4, "pages": 9, "page_tokens": 16} | change))  # type: ignore[arg-type]


policies = st.sampled_from([Full(), Window(0, 3), Window(2, 9), WindowLanguage(1, 3, 20)])


@given(
    st.lists(st.tuples(st.integers(0, 9), policies, st.integers(0, 50), st.integers(1, 16)), max_size=40),
    st.integers(1, 400),
    st.floats(0, 12),
)
def test_never_more_promised_than_there_is(
    requests: list[tuple[int, Retention, int, int]], pages: int, sessions: float
) -> None:
    admission = books(sessions=sessions, pages=pages, full_seconds=(0.5, 5.0))
    open_sessions: set[str] = set()
    for number, policy, prompt, steps in requests:
        name = str(number)
        if name in open_sessions:
            assert admission.release(name)
            open_sessions.discard(name)
            continue
        with contextlib.suppress(SessionError):
            admission.admit(name, policy, prompt, steps)
            open_sessions.add(name)
        assert len(admission) == len(open_sessions)
        assert admission.pages_free >= 0
        assert admission.shares_free >= -1e-6
    for name in open_sessions:
        admission.release(name)
    assert admission.pages_free == pages
    assert admission.shares_free == admission.budget.shares
