"""The thinker/performer loop over models that are not there: order, overlap, errors, ends and what they free."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from engine_builder.config import ModelConfig
from triton_models.runtime.admission import Admission, Budget
from triton_models.runtime.conversation import UnitRequest, UnitResponse
from triton_models.runtime.costs import CostTable
from triton_models.runtime.duplex import UNIT_NS, Duplex
from triton_models.runtime.messages import (
    CloseJob,
    HistoryView,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    RenderJob,
    RenderResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)

pytestmark = pytest.mark.unit

CONFIG = ModelConfig()
LATE = 60.0  # seconds; nothing here takes so long


@dataclass
class Recorder:
    """A `Reply` that remembers what was said, and complains about anything after the end."""

    said: list[UnitResponse | SessionError] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    spoke: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False

    def _say(self, what: UnitResponse | SessionError) -> None:
        assert not self.finished.is_set(), f"{what} after the end"
        self.said.append(what)
        self.spoke.set()

    def send(self, response: UnitResponse) -> None:
        self._say(response)

    def fail(self, error: SessionError) -> None:
        self._say(error)

    def finish(self) -> None:
        assert not self.finished.is_set(), "finished twice"
        self.finished.set()

    def cancelled(self) -> bool:
        return self.gone

    @property
    def errors(self) -> list[str]:
        return [str(item) for item in self.said if isinstance(item, SessionError)]

    @property
    def units(self) -> list[int]:
        return [item.unit for item in self.said if isinstance(item, UnitResponse)]


@dataclass
class Models:
    """Both models. `log` has every job in the order of its start; `gates` hold a stage back; `errors` are raised."""

    log: list[tuple[str, Any]] = field(default_factory=list)
    gates: dict[tuple[str, int], asyncio.Event] = field(default_factory=dict)
    errors: dict[tuple[str, int], Exception] = field(default_factory=dict)
    steps: int = 4

    async def call(self, job: Any) -> Any:
        what = type(job).__name__.removesuffix("Job").lower()
        unit = getattr(job, "unit", 0)
        self.log.append((what, job))
        if gate := self.gates.get((what, unit)):
            await gate.wait()
        if error := self.errors.get((what, unit)):
            raise error
        await asyncio.sleep(0)
        match job:
            case ThinkJob():
                history = HistoryView(np.array([1 + unit], np.int64), np.array([[0, 1]], np.int64))
                ms = {"perceive": 1.0, "think": 2.0}
                return ThinkResult(job.session, job.epoch, unit, "listen", f"t{unit}", history, 3, 7, (3,), ms)
            case PerformJob():
                z = np.full((2, 2), unit, np.float32)
                return PerformResult(job.session, job.epoch, unit, z, z, self.steps, {"queue": 0.5, "perform": 4.0})
            case RenderJob():
                pcm = np.full(4, job.z_audio[0, 0], np.float32)
                return RenderResult(job.session, job.epoch, unit, pcm, np.zeros((1, 1, 1, 3), np.uint8), {"render": 1})
            case PerceiveJob():
                return 1.0
            case OpenJob() | CloseJob():
                return None

    def jobs(self, what: str) -> list[Any]:
        return [job for kind, job in self.log if kind == what]

    @property
    def order(self) -> list[tuple[str, int]]:
        return [(what, getattr(job, "unit", 0)) for what, job in self.log]

    def hold(self, what: str, unit: int) -> asyncio.Event:
        return self.gates.setdefault((what, unit), asyncio.Event())


@dataclass
class Clock:
    now: int = 10**12

    def __call__(self) -> int:
        self.now += 1_000_000  # a millisecond passes between two looks
        return self.now


@dataclass
class Bench:
    duplex: Duplex
    models: Models
    clock: Clock

    def unit(
        self,
        key: int | str,
        unit: int,
        *,
        start: bool | None = None,
        end: bool = False,
        options: str = "",
        **changes: Any,
    ) -> Recorder:
        pcm, frames = np.zeros(2560, np.float32), np.zeros((4, 64, 64, 3), np.uint8)
        request = UnitRequest(
            key,
            unit == 0 if start is None else start,
            end,
            unit,
            changes.get("pcm", pcm),
            changes.get("frames", frames),
            changes.get("text", b""),
            options.encode(),
        )
        reply = Recorder()
        self.duplex.serve(request, reply)
        return reply

    async def settled(self) -> None:
        """Until the loop has nothing to do; every test fails by its own timeout if it hangs."""
        for _ in range(200):
            await asyncio.sleep(0)


@pytest.fixture
def make() -> Callable[..., Bench]:
    def build(**options: Any) -> Bench:
        models, clock = Models(), Clock()
        options.setdefault("stall_seconds", LATE)
        duplex = Duplex(CONFIG, models.call, models.call, len, clock=clock, **options)
        return Bench(duplex, models, clock)

    return build


async def within(what: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(what, 5.0)


# -- the timeline -------------------------------------------------------------------------------------------------
async def test_one_unit_goes_through_all_stages(make: Callable[..., Bench]) -> None:
    bench = make()
    reply = bench.unit(7, 0, end=True, options='{"seed": 5, "solver_steps": 6, "prompt": "be kind"}')
    await within(reply.finished.wait())
    await bench.settled()
    assert [what for what, _ in bench.models.log] == ["open", "think", "perform", "render", "close", "close"]
    opened, thought = bench.models.jobs("open")[0], bench.models.jobs("think")[0]
    assert (opened.prompt, opened.seed, opened.retention) == ("be kind", 5, {"window": {"sink": 4, "recent": 50}})
    assert isinstance(thought.perceive, PerceiveJob), "alone, a unit saves the call for its perception"
    performed = bench.models.jobs("perform")[0]
    assert (performed.steps, performed.seed, performed.origin) == (6, 7, 3)
    assert performed.history.page_ids.tolist() == [1]
    assert {job.session for _, job in bench.models.log} == {opened.session}
    response = reply.said[0]
    assert isinstance(response, UnitResponse)
    assert (response.unit, response.state, response.text) == (0, "listen", "t0")
    assert response.info["steps"] == 4
    assert response.info["degradation"] == ["fewer_steps"]


async def test_times_add_up(make: Callable[..., Bench]) -> None:
    bench = make()
    reply = bench.unit(7, 0)
    await within(reply.spoke.wait())
    response = reply.said[0]
    assert isinstance(response, UnitResponse)
    ms = response.info["ms"]
    assert list(ms) == ["queue", "perceive", "think", "perform", "render", "total"]
    assert sum(value for stage, value in ms.items() if stage != "total") == pytest.approx(ms["total"])
    assert (ms["perceive"], ms["think"], ms["perform"], ms["render"]) == (1.0, 2.0, 4.0, 1.0)


async def test_the_deadline_leaves_time_for_what_follows_the_solver(make: Callable[..., Bench]) -> None:
    bench = make()
    for unit in range(40):
        await within(bench.unit(7, unit).spoke.wait())
        await bench.settled()
    jobs = bench.models.jobs("perform")
    arrival = jobs[0].deadline_ns - UNIT_NS
    assert abs(arrival - 10**12) < 5_000_000
    # From the second look at the clock (after the solver) to the third, 1 ms pass.
    latest = bench.clock.now
    assert latest - UNIT_NS < jobs[-1].deadline_ns < latest + UNIT_NS
    assert bench.duplex._after_solver_ns == pytest.approx(1_000_000, rel=0.05)


@pytest.mark.parametrize("held", ["perform", "render"])
async def test_the_next_unit_is_perceived_early_and_thought_late(make: Callable[..., Bench], held: str) -> None:
    bench = make()
    gate = bench.models.hold(held, 0)
    first, second = bench.unit("a", 0), bench.unit("a", 1)
    await bench.settled()
    assert ("perceive", 1) in bench.models.order
    assert ("think", 1) not in bench.models.order, "z of unit 0 is not there yet"
    gate.set()
    await within(second.spoke.wait())
    assert first.units == [0]
    assert second.units == [1]
    assert bench.models.order.index(("render", 0)) < bench.models.order.index(("think", 1))
    assert bench.models.jobs("think")[1].perceive is None, "it was perceived already"


async def test_nothing_of_the_next_unit_is_perceived_before_the_last_was_thought(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("think", 0)
    bench.unit("a", 0)
    second = bench.unit("a", 1)
    await bench.settled()
    assert bench.models.order == [("open", 0), ("think", 0)]
    gate.set()
    await within(second.spoke.wait())


async def test_sessions_do_not_wait_for_each_other(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.models.hold("open", 0)  # never opened: every first unit waits, so open the second session under another gate
    slow = bench.unit("slow", 0)
    await bench.settled()
    bench.models.gates.clear()
    quick = bench.unit("quick", 0, end=True)
    await within(quick.finished.wait())
    assert slow.said == []


# -- bad input ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pcm": np.zeros(2400, np.int16)}, "INVALID_ARGUMENT: pcm: expected 2560 float32"),
        ({"pcm": np.full(2560, np.nan, np.float32)}, "INVALID_ARGUMENT: pcm: expected finite"),
        ({"frames": np.zeros((4, 64, 32, 3), np.uint8)}, "INVALID_ARGUMENT: frames: expected uint8"),
        ({"text": b"x" * 5000}, "INVALID_ARGUMENT: text: expected at most 4096 bytes"),
        ({"text": b"x" * 2000}, "INVALID_ARGUMENT: text: expected at most 1024 more tokens"),
        ({"text": b"\xff"}, "INVALID_ARGUMENT: text: expected UTF-8"),
        ({"unit": 3}, r"INVALID_ARGUMENT: unit_index: expected 1, got 3 \(units 1 to 2 skipped\)"),
        ({"unit": 0}, r"INVALID_ARGUMENT: unit_index: expected 1, got 0 \(repeated\)"),
        ({"unit": -4}, "INVALID_ARGUMENT: unit_index: expected 1, got -4"),
        ({"key": "nobody"}, "NOT_FOUND: sequence_id: session 'nobody' is unknown"),
        ({"start": True, "unit": 0}, "ALREADY_EXISTS: sequence_start: session 'a' is open"),
        ({"options": "{}"}, "INVALID_ARGUMENT: options: expected only with sequence_start"),
    ],
)
async def test_bad_input_is_refused_and_changes_nothing(
    make: Callable[..., Bench], changes: dict[str, Any], expected: str
) -> None:
    import re

    bench = make()
    await within(bench.unit("a", 0).spoke.wait())
    await bench.settled()
    before = list(bench.models.log)
    reply = bench.unit(changes.pop("key", "a"), changes.pop("unit", 1), **{"start": False, **changes})
    assert reply.finished.is_set()
    assert len(reply.errors) == 1
    assert re.search(expected, reply.errors[0])
    await bench.settled()
    assert bench.models.log == before, "no model heard of it"
    good = bench.unit("a", 1)
    await within(good.spoke.wait())
    assert good.units == [1]


async def test_a_refused_last_unit_ends_the_session(make: Callable[..., Bench]) -> None:
    """Triton's batcher would let no further unit of the sequence through."""
    bench = make()
    first = bench.unit("a", 0, options='{"hold_open": true}')
    await within(first.spoke.wait())
    await bench.settled()
    reply = bench.unit("a", 5, end=True)
    assert "skipped" in reply.errors[0]
    assert first.finished.is_set()
    assert len(bench.duplex.table) == 0


async def test_text_that_waits_in_the_thinker_counts(make: Callable[..., Bench]) -> None:
    bench = make()
    await within(bench.unit("a", 0, text=b"x" * 1000).spoke.wait())
    await bench.settled()
    room = 1024 - (1000 - CONFIG.language.text_tokens)
    assert f"expected at most {room} more tokens" in bench.unit("a", 1, text=b"y" * (room + 1)).errors[0]
    assert bench.unit("a", 1, text=b"y" * room).errors == []


# -- failures -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["open", "think", "perform", "render"])
@pytest.mark.parametrize("error", [SessionError("RESOURCE_EXHAUSTED", "kv pages: none left"), RuntimeError("boom")])
async def test_a_failing_stage_ends_the_session_with_its_error(
    make: Callable[..., Bench], stage: str, error: Exception
) -> None:
    bench = make()
    bench.models.errors[stage, 0] = error
    other = bench.unit("other", 0) if stage != "open" else None
    reply = bench.unit("a", 0, options='{"hold_open": true}')
    await within(reply.finished.wait())
    code = error.code if isinstance(error, SessionError) else "INTERNAL"
    assert len(reply.errors) == 1
    assert reply.errors[0].startswith(code)
    await bench.settled()
    closed = [job.session for job in bench.models.jobs("close")]
    assert closed.count("str:a#2" if other else "str:a#1") == 2, "both models free it"
    assert len(bench.duplex.table) == 0
    assert "NOT_FOUND" in bench.unit("a", 1).errors[0]


async def test_all_waiting_units_of_a_failed_session_are_told(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("perform", 0)
    bench.models.errors["perform", 0] = SessionError("INTERNAL", "NaN or Inf in the velocity")
    first, second = bench.unit("a", 0), bench.unit("a", 1)
    await bench.settled()
    gate.set()
    await within(second.finished.wait())
    assert first.errors == second.errors == ["INTERNAL: NaN or Inf in the velocity"]
    assert first.finished.is_set()


async def test_a_call_that_never_returns_becomes_an_error(make: Callable[..., Bench]) -> None:
    bench = make(stall_seconds=0.05)
    bench.models.hold("perform", 0)
    reply = bench.unit("a", 0)
    await within(reply.finished.wait())
    assert reply.errors == ["UNAVAILABLE: perform: no result in 0.05 s"]
    assert bench.duplex.status()["oldest_call_s"] > 0, "the launcher sees that something hangs"


async def test_pages_are_freed_after_what_was_under_way(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("think", 0)
    reply = bench.unit("a", 0)
    await bench.settled()
    bench.duplex.abandon("the performer has died")
    await bench.settled()
    assert reply.errors == ["UNAVAILABLE: the performer has died"]
    assert len(bench.models.jobs("close")) == 1, "the performer's; the thinker still runs the think job"
    gate.set()
    await bench.settled()
    assert len(bench.models.jobs("close")) == 2
    assert bench.duplex.status()["freeing"] == 0


# -- ends ---------------------------------------------------------------------------------------------------------
async def test_hold_open_keeps_the_first_stream_until_the_end(make: Callable[..., Bench]) -> None:
    bench = make()
    first = bench.unit("a", 0, options='{"hold_open": true}')
    await within(first.spoke.wait())
    await bench.settled()
    last = bench.unit("a", 1, end=True)
    assert not first.finished.is_set()
    await within(last.finished.wait())
    await within(first.finished.wait())
    assert first.units == [0]
    assert last.units == [1]
    assert first.errors == last.errors == []


@pytest.mark.parametrize("hold_open", [True, False])
async def test_a_vanished_client_frees_its_session(make: Callable[..., Bench], hold_open: bool) -> None:
    bench = make()
    gate = None if hold_open else bench.models.hold("perform", 0)  # without hold_open only an open unit can tell
    reply = bench.unit("a", 0, options='{"hold_open": true}' if hold_open else "")
    await bench.settled()
    reply.gone = True
    bench.duplex.poll()
    assert reply.finished.is_set()
    if gate:
        gate.set()
    await bench.settled()
    assert len(bench.models.jobs("close")) == 2
    assert len(bench.duplex.table) == 0


async def test_an_idle_session_expires_and_its_stream_hears_why(make: Callable[..., Bench]) -> None:
    bench = make(idle_ns=10**9)
    reply = bench.unit("a", 0, options='{"hold_open": true}')
    await within(reply.spoke.wait())
    await bench.settled()
    bench.clock.now += 2 * 10**9
    bench.duplex.poll()
    assert reply.errors == ["ABORTED: session 'a' has ended: idle for 1 s"]
    assert reply.finished.is_set()


async def test_a_lost_session_is_resumed_on_a_new_stream(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("perform", 1)
    options = '{"hold_open": true, "resume": true}'
    first = bench.unit("a", 0, options=options)
    await within(first.spoke.wait())
    await bench.settled()
    lost = bench.unit("a", 1)
    await bench.settled()
    first.gone = lost.gone = True
    bench.duplex.poll()
    assert first.finished.is_set()
    assert lost.finished.is_set()
    gate.set()
    again = bench.unit("a", 2, start=True, options=options)
    await within(again.spoke.wait())
    assert again.units == [2]
    assert lost.said == [], "its output belonged to the lost stream"
    assert [what for what, _ in bench.models.log].count("open") == 1
    assert not again.finished.is_set()
    counted = bench.duplex.status()
    assert (counted["units.on_time"], counted["units.failed"], counted["sessions.resumed"]) == (2, 1, 1)


async def test_a_takeover_dismisses_the_old_stream(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.models.hold("perform", 0)
    options = '{"hold_open": true, "resume": true}'
    old = bench.unit("a", 0, options=options)
    await bench.settled()
    bench.unit("a", 1, start=True, options=options)
    assert old.errors == ["ABORTED: session 'a' was resumed on another stream"]
    assert old.finished.is_set()
    assert bench.duplex.status()["units.failed"] == 1


async def test_drain_answers_what_is_open_and_refuses_the_rest(make: Callable[..., Bench]) -> None:
    bench = make()
    gate = bench.models.hold("perform", 0)
    idle = bench.unit("idle", 0, options='{"hold_open": true}')
    await bench.settled()
    gate.set()
    await within(idle.spoke.wait())
    await bench.settled()
    gate.clear()
    busy = bench.unit("busy", 0)
    await bench.settled()
    bench.duplex.drain()
    assert idle.errors == ["UNAVAILABLE: session 'idle' has ended: the server is shutting down"]
    assert bench.unit("new", 0).errors[0].startswith("UNAVAILABLE")
    gate.set()
    await within(busy.finished.wait())
    assert busy.units == [0]
    await bench.settled()
    assert bench.duplex.status()["sessions"] == bench.duplex.status()["freeing"] == 0


async def test_watch_polls_until_it_is_cancelled(make: Callable[..., Bench]) -> None:
    bench = make(poll_seconds=0.01)
    watch = asyncio.create_task(bench.duplex.watch())
    reply = bench.unit("a", 0, options='{"hold_open": true}')
    await within(reply.spoke.wait())
    reply.gone = True
    await within(reply.finished.wait())
    watch.cancel()


async def test_units_keep_their_order_whatever_the_models_do(make: Callable[..., Bench]) -> None:
    """Two units under way at all times, stages of random length: jobs keep the order that the thinker demands."""
    bench = make()
    rng = np.random.default_rng(0)
    original = bench.models.call

    async def jittered(job: Any) -> Any:
        for _ in range(int(rng.integers(0, 5))):
            await asyncio.sleep(0)
        return await original(job)

    bench.duplex._call_thinker = bench.duplex._call_performer = jittered
    replies = [bench.unit("a", 0)]
    for unit in range(1, 60):
        replies.append(bench.unit("a", unit, end=unit == 59))
        await within(replies[-2].spoke.wait())
    await within(replies[-1].finished.wait())
    assert [reply.units for reply in replies] == [[unit] for unit in range(60)]
    done: dict[str, int] = {"perceive": -1, "think": -1, "render": -1}
    for what, unit in bench.models.order:
        if what == "perceive" or (what == "think" and unit > done["perceive"]):
            assert done["think"] == unit - 1
            done["perceive"] = unit
        if what in ("think", "render"):
            assert done[what] == unit - 1
            done[what] = unit
        if what == "think":
            assert done["render"] == unit - 1


# -- promises, degradation, interruption --------------------------------------------------------------------------
def books(sessions: float = 2.0, pages: int = 400, **budget: Any) -> Admission:
    costs = CostTable.linear({"perceive": (0, 1), "think": (0, 1), "slot": (0, 1), "perform": (0, 2), "render": (0, 1)})
    given = Budget(sessions=sessions, solver_steps=4, pages=pages, page_tokens=16, utilisation=1.0, **budget)
    return Admission(CONFIG, costs, given)


async def test_over_capacity_is_refused_with_the_figures_and_room_comes_back(make: Callable[..., Bench]) -> None:
    admission = books()
    bench = make(admission=admission)
    replies = [bench.unit(key, 0) for key in (1, 2, 3)]
    for reply in replies:
        await within(reply.finished.wait() if reply.errors else reply.spoke.wait())
    assert [len(reply.errors) for reply in replies] == [0, 0, 1]
    assert "RESOURCE_EXHAUSTED: sessions: this server keeps 2.0 on time" in replies[2].errors[0]
    await within(bench.unit(1, 1, end=True).finished.wait())
    await bench.settled()
    assert len(admission) == 1
    reply = bench.unit(3, 0)
    await within(reply.spoke.wait())
    assert reply.units == [0]


async def test_full_retention_says_how_long_it_lasts_and_ends_with_a_notice(make: Callable[..., Bench]) -> None:
    admission = books(sessions=1.0, pages=40, full_seconds=(1.0, 60.0), notice_seconds=0.5)
    bench = make(admission=admission)
    first = bench.unit("long", 0, options='{"retention": "full"}')
    await within(first.spoke.wait())
    ticket = admission.ticket(bench.duplex.table.sessions[0].name)
    assert ticket is not None
    assert ticket.units is not None
    answers = [first]
    for unit in range(1, ticket.units):
        answers.append(bench.unit("long", unit))
        await within(answers[-1].spoke.wait())
        await bench.settled()
    infos = [reply.said[0].info for reply in answers if isinstance(reply.said[0], UnitResponse)]
    assert infos[0]["lasts_seconds"] == ticket.seconds
    assert ["notice" in info for info in infos].count(True) == ticket.notice_units
    assert "notice" in infos[-1]
    over = bench.unit("long", ticket.units)
    await within(over.finished.wait())
    assert "RESOURCE_EXHAUSTED: retention full" in over.errors[0]
    await bench.settled()
    assert len(bench.duplex.table) == 0
    assert len(admission) == 0


async def test_a_late_unit_repeats_its_picture_and_then_loses_its_sound(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.models.steps = 4

    async def late_by(unit: int, ms: int) -> UnitResponse:
        gate = bench.models.hold("render", unit)
        reply = bench.unit(7, unit)
        await bench.settled()
        bench.clock.now += ms * 1_000_000
        gate.set()
        await within(reply.spoke.wait())
        await bench.settled()
        assert isinstance(reply.said[0], UnitResponse)
        return reply.said[0]

    await late_by(0, 0)
    in_time, late, very_late, again = [await late_by(unit, ms) for unit, ms in ((1, 0), (2, 200), (3, 400), (4, 0))]
    assert in_time.info["degradation"] == []
    assert late.info["degradation"] == ["repeat_frame"]
    assert (late.pcm == 2.0).all()
    assert very_late.info["degradation"] == ["repeat_frame", "silence"]
    assert not very_late.pcm.any()
    assert again.info["degradation"] == []
    assert (again.pcm == 4.0).all()


async def test_an_interruption_drops_what_is_on_its_way(make: Callable[..., Bench]) -> None:
    bench = make()
    await within(bench.unit(7, 0).spoke.wait())
    gate = bench.models.hold("perform", 1)
    old = bench.unit(7, 1)
    await bench.settled()
    new = bench.unit(7, 2, options='{"interrupt": true}')
    gate.set()
    await within(new.spoke.wait())
    dropped, fresh = old.said[0], new.said[0]
    assert isinstance(dropped, UnitResponse)
    assert isinstance(fresh, UnitResponse)
    assert dropped.info["dropped"] is True
    assert (dropped.text, dropped.pcm.any()) == ("", False)
    assert (fresh.text, fresh.pcm.all()) == ("t2", True)
    assert fresh.info["epoch"] > dropped.info["epoch"]
    refused = bench.unit(7, 3, options='{"seed": 1}')
    assert 'or {"interrupt": true} alone' in refused.errors[0]
