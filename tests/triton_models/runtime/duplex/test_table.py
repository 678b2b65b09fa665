"""Sessions: the unit clock, refusals that do no harm, epochs, resume, and one way out that runs once."""

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from triton_models.runtime.duplex.contract import SessionKey
from triton_models.runtime.duplex.options import OptionLimits, SessionOptions, interrupts
from triton_models.runtime.duplex.table import AHEAD_UNITS, PACE_NS, SECOND_NS, Accepted, Session, SessionTable
from triton_models.runtime.kv.pages import BlockManager, OutOfPages, PageTable
from triton_models.runtime.messages import SessionError

pytestmark = pytest.mark.unit
RESUME = '{"resume": true}'
LIMITS = OptionLimits()


def accept(table: SessionTable, key: SessionKey, unit: int, start: bool, end: bool, options: str, now: int) -> Accepted:
    """As the loop does it."""
    given = SessionOptions.parse(options, LIMITS) if start else None
    interrupt = not start and interrupts(options, LIMITS)
    return table.accept(key, unit, start=given, end=end, interrupt=interrupt, now_ns=now)


class Desk:
    """A table with its releases written down."""

    def __init__(self, **kwargs: Any) -> None:
        self.released: list[tuple[str, str]] = []
        self.now = 0
        self.table = SessionTable(release=lambda s, reason: self.released.append((s.name, reason)), **kwargs)

    def send(
        self, key: SessionKey, unit: int, *, start: bool = False, end: bool = False, options: str = ""
    ) -> Accepted:
        return accept(self.table, key, unit, start, end, options, self.now)

    def open(self, key: SessionKey, options: str = "") -> Session:
        accepted = self.send(key, 0, start=True, options=options)
        self.table.retire(accepted.session, 0, self.now)
        return accepted.session

    def refuse(self, code: str, message: str, *args: Any, **kwargs: Any) -> None:
        """The request is refused, and whatever was there before is as it was."""
        before = [(vars(s) | {"in_flight": set(s.in_flight)}) for s in self.table.sessions]
        with pytest.raises(SessionError, match=message) as caught:
            self.send(*args, **kwargs)
        assert caught.value.code == code
        assert [vars(s) for s in self.table.sessions] == before


def test_a_conversation_from_start_to_end() -> None:
    desk = Desk()
    first = desk.send(7, 0, start=True)
    assert (first.started, first.resumed, first.unit) == (True, False, 0)
    desk.table.retire(first.session, 0, 5)
    last = desk.send(7, 1, end=True)
    assert last.session is first.session
    desk.refuse("INVALID_ARGUMENT", r"unit 2 after sequence_end \(unit 1 was the last\)", 7, 2)
    desk.table.retire(last.session, 1, 9)
    assert desk.released == [(first.session.name, "completed")]
    desk.refuse("NOT_FOUND", r"session 7 has ended \(completed\)", 7, 2)


def test_one_request_may_be_first_and_last() -> None:
    desk = Desk()
    only = desk.send("once", 0, start=True, end=True)
    desk.table.retire(only.session, 0, 1)
    assert len(desk.table) == 0


def test_wrong_units_are_named_and_do_no_harm() -> None:
    desk = Desk()
    desk.open("a")
    desk.refuse("INVALID_ARGUMENT", r"expected 1, got 2 \(unit 1 skipped\)", "a", 2)
    desk.refuse("INVALID_ARGUMENT", r"expected 1, got 5 \(units 1 to 4 skipped\)", "a", 5)
    desk.refuse("INVALID_ARGUMENT", r"expected 1, got 0 \(repeated\)", "a", 0)
    desk.refuse("INVALID_ARGUMENT", r"expected 1, got -3 \(the clock went back\)", "a", -3)
    desk.refuse("INVALID_ARGUMENT", "unit_index: expected an integer, got True", "a", True)
    desk.refuse("ALREADY_EXISTS", r"session 'a' is open \(next unit 1\)", "a", 0, start=True)
    desk.refuse("NOT_FOUND", "session 'b' is unknown; expected sequence_start", "b", 0)
    desk.refuse("INVALID_ARGUMENT", "expected 0 with sequence_start, got 4", "b", 4, start=True)
    desk.refuse("INVALID_ARGUMENT", "options.seed", "b", 0, start=True, options='{"seed": "x"}')
    assert desk.send("a", 1).unit == 1
    assert desk.released == []


@pytest.mark.parametrize("key", [0, -1, 2**64, "", "x" * 257, True, None, 1.5])
def test_bad_ids(key: Any) -> None:
    Desk().refuse("INVALID_ARGUMENT", "sequence_id: expected", key, 0, start=True)


def test_integer_and_string_ids_are_distinct() -> None:
    desk = Desk()
    assert desk.open(7) is not desk.open("7")
    assert len({s.name for s in desk.table.sessions}) == len(desk.table) == 2


def test_units_in_flight_and_sessions_are_bounded() -> None:
    desk = Desk(max_in_flight=2, max_sessions=1)
    session = desk.send(1, 0, start=True).session
    desk.send(1, 1)
    desk.refuse("RESOURCE_EXHAUSTED", "2 units of session 1 are unanswered, expected at most 2 before unit 2", 1, 2)
    desk.refuse("RESOURCE_EXHAUSTED", "1 are open, this server takes 1", 2, 0, start=True)
    desk.table.leave(session, 0)  # a client answers quicker than a send returns
    assert desk.send(1, 2).unit == 2
    desk.refuse("RESOURCE_EXHAUSTED", "2 units of session 1 are unanswered", 1, 3)
    desk.table.retire(session, 0, 1)
    desk.refuse("RESOURCE_EXHAUSTED", "2 units of session 1 are unanswered", 1, 3)
    desk.table.retire(session, 1, 1)
    assert desk.send(1, 3).unit == 3


def test_a_session_may_be_a_little_ahead_of_real_time_and_then_waits() -> None:
    desk = Desk(max_in_flight=100)
    desk.now = 5 * SECOND_NS
    due = [desk.send("a", unit, start=unit == 0).due_ns - desk.now for unit in range(AHEAD_UNITS + 3)]
    assert due == [0] * (AHEAD_UNITS + 1) + [PACE_NS, 2 * PACE_NS]
    assert desk.send("b", 0, start=True).due_ns == desk.now, "another session is another clock"
    desk.now += 20 * SECOND_NS  # it has fallen far behind, which is no credit
    due = [desk.send("a", AHEAD_UNITS + 3 + unit).due_ns - desk.now for unit in range(AHEAD_UNITS + 2)]
    assert due == [0] * (AHEAD_UNITS + 1) + [PACE_NS]


def test_who_keeps_real_time_never_waits() -> None:
    desk = Desk(max_in_flight=10_000)
    for unit in range(5_000):  # 13 minutes of a clock that runs 5% fast, delivered in pairs
        desk.now = round((unit - unit % 2) * 0.95 * 160_000_000)
        assert desk.send("a", unit, start=unit == 0).due_ns == desk.now


def test_a_refused_admission_leaves_nothing() -> None:
    def full(session: Session) -> None:
        raise SessionError("RESOURCE_EXHAUSTED", f"pages: none for {session.name}")

    desk = Desk(admit=full)
    desk.refuse("RESOURCE_EXHAUSTED", "pages: none", 1, 0, start=True)
    assert len(desk.table) == 0
    assert desk.released == []


def test_interrupt_drops_late_output_in_one_place() -> None:
    desk = Desk()
    session = desk.open(1)
    late = desk.send(1, 1)
    assert desk.table.fence(session, late.epoch)
    desk.table.interrupt(session)
    assert not desk.table.fence(session, late.epoch)
    assert desk.table.dropped == 1
    fresh = desk.send(1, 2)
    assert desk.table.fence(session, fresh.epoch)


def test_a_reused_id_never_meets_output_of_its_predecessor() -> None:
    desk = Desk()
    old = desk.open(1)
    desk.table.end(old, "cancelled")
    desk.table.end(old, "cancelled")
    new = desk.open(1)
    assert new.name != old.name
    assert not desk.table.fence(old, old.epoch)
    assert not desk.table.fence(new, old.epoch)
    assert desk.released == [(old.name, "cancelled")]
    desk.table.retire(old, 0, 1)  # a unit that comes home late
    assert desk.table.sessions == [new]


def test_idle_sessions_expire() -> None:
    desk = Desk(idle_ns=SECOND_NS)
    idle, busy = desk.open(1), desk.open(2)
    desk.now = SECOND_NS - 1
    desk.send(2, 1)
    desk.table.expire(desk.now)
    assert desk.released == []
    desk.table.expire(SECOND_NS)
    assert desk.released == [(idle.name, "idle for 1 s")]
    assert desk.table.sessions == [busy]


def test_resume_within_the_grace_time() -> None:
    desk = Desk(grace_ns=3 * SECOND_NS, idle_ns=SECOND_NS)
    session = desk.open("a", RESUME)
    late = desk.send("a", 1)
    assert desk.table.detach(session, 0)
    assert desk.table.detach(session, 2 * SECOND_NS)  # a second notice does not lengthen the grace time
    assert not desk.table.fence(session, late.epoch)
    desk.table.retire(session, 1, 2 * SECOND_NS)
    desk.refuse("ABORTED", "lost its stream; resume it with sequence_start", "a", 2)
    desk.refuse("ALREADY_EXISTS", "session 'a' is detached", "a", 2, start=True)
    desk.refuse("INVALID_ARGUMENT", r"expected 2, got 1 \(repeated\)", "a", 1, start=True, options=RESUME)
    asks = json.dumps({"resume": True, "seed": 4})
    desk.refuse("INVALID_ARGUMENT", "keeps its own; expected no seed", "a", 2, start=True, options=asks)
    desk.now = 3 * SECOND_NS - 1
    desk.table.expire(desk.now)
    back = desk.send("a", -1, start=True, options='{"resume": true, "hold_open": true}')
    assert (back.session, back.unit, back.started, back.resumed) == (session, 2, False, True)
    assert back.epoch > late.epoch
    assert session.options.hold_open
    assert desk.table.fence(session, back.epoch)
    assert desk.released == []


def test_resume_too_late_or_of_nobody() -> None:
    desk = Desk(grace_ns=SECOND_NS)
    session = desk.open("a", RESUME)
    desk.table.detach(session, 0)
    desk.table.expire(SECOND_NS)
    assert desk.released == [(session.name, "not resumed within 1 s")]
    message = r"'a' cannot be resumed \(not resumed within 1 s\); start at unit 0"
    desk.refuse("NOT_FOUND", message, "a", 1, start=True, options=RESUME)
    desk.refuse("NOT_FOUND", "no such session", "b", -1, start=True, options=RESUME)


def test_a_client_that_comes_back_before_its_loss_is_noticed_takes_over() -> None:
    desk = Desk()
    session = desk.open("a", RESUME)
    back = desk.send("a", 1, start=True, end=True, options=RESUME)
    assert back.resumed
    assert session.state == "draining"
    desk.refuse("ALREADY_EXISTS", "session 'a' is draining", "a", 2, start=True, options=RESUME)


def test_detach_without_resume_ends_the_session() -> None:
    desk = Desk()
    session = desk.open(1)
    assert not desk.table.detach(session, 0)
    assert desk.released == [(session.name, "the client is gone")]
    assert not desk.table.detach(session, 0)


def test_shutdown_lets_units_in_flight_finish() -> None:
    desk = Desk()
    idle, busy, gone = desk.open(1), desk.open(2), desk.open(3, RESUME)
    desk.send(2, 1)
    desk.send(3, 1)
    desk.table.detach(gone, 0)
    desk.table.close()
    assert [name for name, _ in desk.released] == [idle.name, gone.name]
    desk.refuse("UNAVAILABLE", "the server is shutting down", 2, 2)
    desk.refuse("UNAVAILABLE", "the server is shutting down", 4, 0, start=True)
    assert desk.table.fence(busy, busy.epoch)
    desk.table.retire(busy, 1, 1)
    assert [reason for _, reason in desk.released] == ["the server is shutting down"] * 3


class Server(RuleBasedStateMachine):
    """Any interleaving of open, step, finish, cancel, interrupt, detach, resume, expire: pages always add up."""

    @initialize()
    def start(self) -> None:
        self.blocks = BlockManager(30, 4)
        self.histories: dict[str, PageTable] = {}
        self.released: list[str] = []
        self.admitted: list[str] = []
        self.pending: list[Accepted] = []
        self.now = 0
        self.table = SessionTable(
            release=self.release, admit=self.admit, max_sessions=5, idle_ns=20, grace_ns=10, max_in_flight=2
        )

    def admit(self, session: Session) -> None:
        if self.blocks.free < 4:
            raise SessionError("RESOURCE_EXHAUSTED", "pages: too few")
        self.histories[session.name] = PageTable(self.blocks, session.name, session.options.retention)
        self.admitted.append(session.name)

    def release(self, session: Session, reason: str) -> None:
        self.released.append(session.name)
        self.histories.pop(session.name).close()

    @rule(
        key=st.sampled_from([1, 2, "1", "2"]),
        options=st.sampled_from(
            ["", '"full"', RESUME, '{"retention": "full"}', '{"retention": {"window": {"sink": 1, "recent": 2}}}']
        ),
        unit=st.sampled_from([0, 0, 0, -1, 1, 2]),
        end=st.booleans(),
    )
    def open(self, key: SessionKey, options: str, unit: int, end: bool) -> None:
        self.request(key, unit, True, end, options)

    @rule(key=st.sampled_from([1, 2, "1", "2"]), off=st.sampled_from([0, 0, 0, 0, 1, -1]), end=st.booleans())
    def step(self, key: SessionKey, off: int, end: bool) -> None:
        session = self.table.get(key)
        self.request(key, (session.next_unit if session else 0) + off, False, end and off == 0, "")

    def request(self, key: SessionKey, unit: int, start: bool, end: bool, options: str) -> None:
        session = self.table.get(key)
        before = None if session is None else (session.next_unit, session.epoch, session.state, set(session.in_flight))
        try:
            accepted = accept(self.table, key, unit, start, end, options, self.now)
        except SessionError:
            assert self.table.get(key) is session
            if session is not None:
                assert before == (session.next_unit, session.epoch, session.state, session.in_flight)
            return
        if before is not None:
            assert accepted.unit == before[0]
        self.pending.append(accepted)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), count=st.integers(1, 6))
    def finish(self, data: st.DataObject, count: int) -> None:
        accepted = self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1)))
        session, table = accepted.session, self.histories.get(accepted.session.name)
        if table is not None and accepted.unit > table.unit:
            try:
                table.evict(accepted.unit)
                table.append("av", accepted.unit, count)
                table.append("language", accepted.unit, 2)
            except OutOfPages as error:
                self.table.end(session, str(error))
        if session.epoch != accepted.epoch or session.state not in ("open", "draining"):
            assert not self.table.fence(session, accepted.epoch)
        self.table.retire(session, accepted.unit, self.now)

    @rule(key=st.sampled_from([1, 2, "1", "2"]), action=st.sampled_from(["cancel", "interrupt", "detach"]))
    def disturb(self, key: SessionKey, action: str) -> None:
        session = self.table.get(key)
        if session is None:
            return
        if action == "cancel":
            self.table.end(session, "cancelled")
        elif action == "interrupt":
            old = session.epoch
            assert self.table.interrupt(session) > old
        else:
            self.table.detach(session, self.now)

    @rule(passed=st.integers(1, 12))
    def time_passes(self, passed: int) -> None:
        self.now += passed
        self.table.expire(self.now)
        limits = {"detached": self.table.grace_ns}
        assert all(self.now - s.seen_ns < limits.get(s.state, self.table.idle_ns) for s in self.table.sessions)

    @rule()
    def restart(self) -> None:
        """Everything goes through the one way out, so nothing stays behind."""
        for session in self.table.sessions:
            self.table.end(session, "restart")
        assert self.blocks.used == 0

    @invariant()
    def nothing_is_lost_or_freed_twice(self) -> None:
        self.blocks.check_integrity()
        assert self.blocks.used == sum(table.pages for table in self.histories.values())
        assert {s.name for s in self.table.sessions} == set(self.histories)
        assert sorted([*self.released, *self.histories]) == sorted(self.admitted)
        assert all(len(s.in_flight) <= 2 for s in self.table.sessions)


TestServer = Server.TestCase
TestServer.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
