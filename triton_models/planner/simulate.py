"""A discrete-event simulation of thinker and performer that runs the scheduler code of the server.

What is simulated is the arrival of units and the time that engine calls take (from a `CostTable`); what is decided is
decided by `StepScheduler`, `GatherWindow` and `Admission` themselves, or by a baseline with the same interface.

    unit complete --> think queue --gather--> perceive + think + slots --> performer ticks --> render queue --> response
                       thinker device                                      performer device     thinker device

With one device both roles share it, one engine call at a time, thinker calls first (they are short and feed the
batch). A unit waits until its predecessor is rendered, as in the server: think(k+1) needs z_k. Same workload and seed,
same result.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from engine_builder.config import UNIT_MS

from ..runtime.budget.admission import Admission
from ..runtime.budget.costs import CostTable, think_curve
from ..runtime.kv.retention import Retention
from ..runtime.messages import SessionError
from ..runtime.performer.scheduler import NS_PER_MS, Row
from ..runtime.thinker.gather import GatherWindow
from .policies import Policy
from .workload import Report, Workload

UNIT_NS = UNIT_MS * NS_PER_MS


@dataclass(frozen=True)
class AdmissionGate:
    """Who may open a session: the server's own admission, for sessions that all ask for the same."""

    admission: Admission
    retention: Retention
    solver_steps: int
    prompt_tokens: int = 0

    def admit(self, session: int) -> None:
        """Raises SessionError."""
        self.admission.admit(str(session), self.retention, self.prompt_tokens, self.solver_steps)

    def release(self, session: int) -> None:
        self.admission.release(str(session))


@dataclass(eq=False)
class _Unit:
    session: int
    arrived_ns: int
    slots: int
    evaluations: int = 0


class Simulation:
    """One run: `Simulation(...).run()`. Events are (time, number, handler) on a heap; handlers take the time."""

    def __init__(self, load: Workload, costs: CostTable, policy: Policy, gate: AdmissionGate | None = None) -> None:
        self.load, self.costs, self.policy, self.gate = load, costs, policy, gate
        self.report = Report(policy.name, load)
        self._end_ns = round(load.seconds * 1e9)
        self._clients = random.Random(load.seed)
        self._noise = random.Random(load.seed + 1)  # apart, so that all policies meet the same arrivals
        self._events: list[tuple[int, int, Callable[[int], None]]] = []
        self._numbers = 0
        self._batcher = policy.make(costs, load)
        self._gather = GatherWindow(
            policy.delay_ns, policy.max_batch, costs=self._think_curve() if policy.cost_aware else None
        )
        self._thinking: dict[int, _Unit] = {}  # per session: in the gather window
        self._backlog: dict[int, deque[_Unit]] = {}  # per open session: units that wait for their predecessor
        self._under_way: set[int] = set()  # sessions with a unit between think and response
        self._rendering: deque[_Unit] = deque()
        self._free = [True] * load.devices
        self._busy_ns = [0] * load.devices
        self._ticks = self._rows = self._opened = 0
        # What a unit still needs in a typical batch: tells when its think call presses and when its latents are due.
        batch = 1 + load.sessions // 4
        think_ns = self._nominal_ns("perceive", batch) + self._nominal_ns("think", batch)
        think_ns += load.slots[1] * self._nominal_ns("slot", batch)
        self._render_ns = self._nominal_ns("render", batch)
        if load.devices == 1:  # a render call may have to wait for a think call that runs: half of one on average
            self._render_ns += think_ns // 2
        self._rest_ns = self._render_ns + think_ns + load.solver_steps * self._nominal_ns("perform", batch)

    def run(self) -> Report:
        load, report = self.load, self.report
        # Sessions that come and go also begin spread over the warm-up: a gate that lets in the first few of a crowd
        # would otherwise pick those with nearly the same phase.
        spread_ns = UNIT_NS if load.session_seconds is None else max(UNIT_NS, round(load.warmup_seconds * 1e9))
        for _ in range(load.sessions):
            self._at(round(self._clients.uniform(0, spread_ns)), self._open)
        if load.session_seconds is not None:
            self._at(0, self._churn, load.session_seconds / load.sessions)
        while self._events:
            now, _, handler = heapq.heappop(self._events)
            handler(now)
            self._dispatch(now)
        report.latencies.sort()
        report.busy = [busy / self._end_ns for busy in self._busy_ns]
        report.rows_per_tick = self._rows / self._ticks if self._ticks else 0.0
        return report

    # -- clients -----------------------------------------------------------------------------------------------
    def _churn(self, gap_s: float, now: int) -> None:
        """Opens sessions at the rate at which old ones end, so that the same number is there on average."""
        after = now + round(self._clients.expovariate(1 / gap_s) * 1e9)
        if after < self._end_ns:
            self._at(after, self._open)
            self._at(after, self._churn, gap_s)

    def _open(self, now: int) -> None:
        session, self._opened = self._opened, self._opened + 1
        rhythm = random.Random(self._clients.getrandbits(64))  # of its own: a refusal changes no other session
        if self.gate is not None:
            try:
                self.gate.admit(session)
            except SessionError as error:
                self.report.refused[error.message.split(":")[0]] += 1
                return
        mean_s = self.load.session_seconds
        until = self._end_ns if mean_s is None else now + round(rhythm.expovariate(1 / mean_s) * 1e9)
        self.report.admitted += 1
        self._backlog[session] = deque()
        self._gather.open(session, now)
        self._at(now + UNIT_NS, self._send, session, now + UNIT_NS, until, rhythm)

    def _send(self, session: int, due: int, until: int, rhythm: random.Random, now: int) -> None:
        """A unit arrives; `due` is when it would have come without jitter."""
        self._backlog[session].append(_Unit(session, now, rhythm.randint(*self.load.slots)))
        self._feed(session, now)
        due += UNIT_NS
        if due < min(until, self._end_ns):
            late = rhythm.expovariate(1 / self.load.jitter) * NS_PER_MS if self.load.jitter else 0
            self._at(max(now, due + round(late)), self._send, session, due, until, rhythm)
        else:
            self._at(max(now, due), self._leave, session)

    def _leave(self, session: int, now: int) -> None:
        if self._backlog[session] or session in self._thinking or session in self._under_way:
            self._at(now + UNIT_NS, self._leave, session)  # its last unit is on its way
            return
        del self._backlog[session]
        self._gather.close(session)
        if self.gate is not None:
            self.gate.release(session)

    # -- the server --------------------------------------------------------------------------------------------
    def _feed(self, session: int, now: int) -> None:
        """Lets the session's next unit into the think queue if its predecessor is answered."""
        backlog = self._backlog[session]
        if backlog and session not in self._thinking and session not in self._under_way:
            unit = backlog.popleft()
            self._thinking[session] = unit
            self._gather.add(session, self._deadline(unit) - self._rest_ns, now)
            self._wake(self._gather.wake_ns(), now)

    def _dispatch(self, now: int) -> None:
        """Starts whatever the free devices can do."""
        if self._rendering and self._free[-1]:  # what was solved is rendered at once, where it was solved
            count = min(self.policy.max_batch, len(self._rendering))
            units = [self._rendering.popleft() for _ in range(count)]
            self._call(-1, now, [("render", 1)], count, self._rendered, units)
        if self._free[0]:
            self._start_thinker(now)
        if self._free[-1]:
            self._start_performer(now)

    def _start_thinker(self, now: int) -> None:
        if sessions := self._gather.take(now):
            units = [self._thinking.pop(cast(int, session)) for session in sessions]
            self._under_way.update(unit.session for unit in units)
            steps = [("perceive", 1), ("think", 1), ("slot", max(unit.slots for unit in units))]
            self._call(0, now, steps, len(units), self._thought, units)
        else:
            self._wake(self._gather.wake_ns(), now)

    def _start_performer(self, now: int) -> None:
        if rows := self._batcher.next_tick(now):
            self._ticks += 1
            self._rows += len(rows)
            self._call(-1, now, [("perform", 1)], len(rows), self._ticked, rows)

    def _thought(self, units: list[_Unit], now: int) -> None:
        for unit in units:
            self._batcher.join(unit, self._deadline(unit) - self._render_ns, self.load.solver_steps, now)
        self._wake(now + self.policy.delay_ns, now)

    def _ticked(self, rows: list[Row], now: int) -> None:
        for row in rows:
            cast(_Unit, row.job).evaluations += 1
        self._rendering.extend(cast("list[_Unit]", self._batcher.completed(rows, now)))

    def _rendered(self, units: list[_Unit], now: int) -> None:
        for unit in units:
            self._under_way.discard(unit.session)
            self._feed(unit.session, now)
            if unit.arrived_ns >= self.load.warmup_seconds * 1e9:
                self.report.latencies.append((now - unit.arrived_ns) / NS_PER_MS)
                self.report.shortened += unit.evaluations < self.load.solver_steps

    def _deadline(self, unit: _Unit) -> int:
        return unit.arrived_ns + round(self.load.deadline * NS_PER_MS)

    # -- time --------------------------------------------------------------------------------------------------
    def _call(
        self, device: int, now: int, steps: list[tuple[str, int]], batch: int, done: Callable, work: Sequence
    ) -> None:
        """Keeps `device` busy with `count` calls of each (step, count), then calls `done(work, now)`."""
        ms = sum(self.costs.ms(step, batch, self.load.history) * count for step, count in steps)
        ms = ms * self._noise.uniform(1 - self.load.noise, 1 + self.load.noise)
        ms += self.load.overhead * sum(count for _, count in steps)
        length = round(ms * NS_PER_MS)
        self._free[device] = False
        self._busy_ns[device] += min(length, max(0, self._end_ns - now))

        def finished(now: int) -> None:
            self._free[device] = True
            done(work, now)

        self._at(now + length, finished)

    def _think_curve(self) -> list[float]:
        """Milliseconds of a think call of 0 .. max_batch rows."""
        return think_curve(self.costs, self.policy.max_batch, self.load.history, sum(self.load.slots) / 2)

    def _nominal_ns(self, step: str, batch: int) -> int:
        return round((self.costs.ms(step, batch, self.load.history) + self.load.overhead) * NS_PER_MS)

    def _at(self, time_ns: int, handler: Callable[..., None], *args: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (time_ns, self._numbers, partial(handler, *args)))

    def _wake(self, time_ns: int | None, now: int) -> None:
        """Makes the loop look again at `time_ns` although nothing else may happen then."""
        if time_ns is not None and time_ns > now:
            self._at(time_ns, lambda now: None)


def simulate(load: Workload, costs: CostTable, policy: Policy, seeds: int = 1) -> Report:
    """`seeds` runs in one report. Sessions keep the phase in which they begin, so runs differ more than hours do."""
    runs = [Simulation(replace(load, seed=load.seed + i), costs, policy).run() for i in range(seeds)]
    return Report(
        policy.name,
        load,
        latencies=sorted(ms for run in runs for ms in run.latencies),
        shortened=sum(run.shortened for run in runs),
        busy=[sum(shares) / seeds for shares in zip(*(run.busy for run in runs), strict=True)],
        rows_per_tick=sum(run.rows_per_tick for run in runs) / seeds,
        admitted=sum(run.admitted for run in runs),
    )


def capacity(
    load: Workload, costs: CostTable, policy: Policy, *, target: float = 0.99, seeds: int = 5, limit: int = 512
) -> int:
    """The most sessions of which `target` of the units are on time (0 if not even one), by bisection up to `limit`."""

    def sustains(sessions: int) -> bool:
        return simulate(replace(load, sessions=sessions), costs, policy, seeds).on_time >= target

    low, high = 0, 1
    while high <= limit and sustains(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if sustains(middle):
            low = middle
        else:
            high = middle
    return low
