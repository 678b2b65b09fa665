"""Many servers behind a balancer: who is refused, what a failure or an update costs, how many servers are needed.

A discrete-event simulation in sessions, not units: within a server the books of admission hold (`capacity` sessions,
see `budget.admission`), so a fleet is a loss system. With routing by free room it behaves as one pool of all slots, for
which Erlang's B formula is exact, whatever the distribution of session lengths; `erlang_b` stands beside the result.
A refused caller goes away; a session that is cut off starts anew elsewhere at once, without its history.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from itertools import count

ROUTINGS = ("free-room", "two-choices", "random")
SCALE_SECONDS = 30.0  # how often the scaler looks
WARM_LENGTHS = 3.0  # mean session lengths until a fleet that opens empty is full enough to be counted


@dataclass(frozen=True)
class FleetPlan:
    """What is simulated. Rates are sessions an hour; `arrivals` has one value, or one for each hour of a day."""

    servers: int
    capacity: int
    arrivals: tuple[float, ...]
    session_seconds: float
    hours: float = 24.0
    routing: str = "free-room"
    failure_hours: float | None = None  # mean time between failures of one server; None: none fails
    start_seconds: float = 120.0  # from the decision for a server to its first session
    update_hour: float | None = None  # a rolling update begins then
    update_share: float = 0.05  # of the servers drain at once
    drain_seconds: float = 900.0  # what is still open after that is cut off
    free_share: float | None = None  # the scaler keeps this share of the slots free; None: the fleet has one size
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("servers", "capacity"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected >= 1, got {getattr(self, name)}")
        for name in ("session_seconds", "hours", "start_seconds", "drain_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected > 0, got {getattr(self, name)}")
        if len(self.arrivals) not in (1, 24) or min(self.arrivals) < 0 or max(self.arrivals) <= 0:
            raise ValueError(f"arrivals: expected 1 or 24 rates >= 0, not all 0, got {list(self.arrivals)}")
        if self.routing not in ROUTINGS:
            raise ValueError(f"routing: expected one of {', '.join(ROUTINGS)}, got {self.routing!r}")
        if self.failure_hours is not None and self.failure_hours <= 0:
            raise ValueError(f"failure_hours: expected > 0, got {self.failure_hours}")
        if not 0 < self.update_share <= 1:
            raise ValueError(f"update_share: expected 0 < share <= 1, got {self.update_share}")
        if self.free_share is not None and not 0 < self.free_share < 1:
            raise ValueError(f"free_share: expected 0 < share < 1, got {self.free_share}")

    def rate(self, seconds: float) -> float:
        """Arrivals a second at that time of the day."""
        return self.arrivals[int(seconds // 3600) % len(self.arrivals)] / 3600

    @property
    def busiest_load(self) -> float:
        """Sessions that would be open in the busiest hour if nobody were refused (erlangs)."""
        return max(self.arrivals) / 3600 * self.session_seconds


@dataclass
class FleetReport:
    """What came of it; counts leave out the warm-up. `samples`: hour, open sessions, slots, servers, refused so far."""

    plan: FleetPlan
    offered: int = 0
    refused: int = 0
    cut_by_failures: int = 0
    cut_by_updates: int = 0
    refused_again: int = 0  # of those cut off
    failures: int = 0
    updated: int = 0
    server_hours: float = 0.0
    samples: list[tuple[float, int, int, int, int]] = field(default_factory=list)

    @property
    def blocking(self) -> float:
        """Share of new sessions that were refused."""
        return self.refused / self.offered if self.offered else 0.0


def erlang_b(slots: int, load: float) -> float:
    """Share of arrivals that find all `slots` taken at an offered `load` in erlangs (Erlang 1917, by recursion)."""
    if slots < 0 or load < 0:
        raise ValueError(f"erlang_b: expected slots >= 0 and load >= 0, got {slots} and {load}")
    if load == 0:
        return 0.0 if slots else 1.0
    inverse = 1.0
    for slot in range(1, slots + 1):
        inverse = 1.0 + inverse * slot / load
        if inverse > 1e300:
            return 0.0
    return 1.0 / inverse


def servers_needed(load: float, capacity: int, blocking: float) -> int:
    """The fewest servers of `capacity` sessions that refuse at most that share of a `load` in erlangs."""
    if not 0 < blocking < 1:
        raise ValueError(f"blocking: expected 0 < share < 1, got {blocking}")
    low, high = 0, 1
    while erlang_b(high * capacity, load) > blocking:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if erlang_b(middle * capacity, load) > blocking else (low, middle)
    return high


class Room:
    """The servers that take new sessions, by how many they hold: who has most room is found without a search."""

    def __init__(self, capacity: int, rng: random.Random) -> None:
        self._by_load: list[dict[int, None]] = [{} for _ in range(capacity + 1)]
        self._order: list[int] = []  # for random routing
        self._place: dict[int, int] = {}
        self._load: dict[int, int] = {}
        self._rng = rng

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, server: int) -> bool:
        return server in self._load

    def add(self, server: int, load: int = 0) -> None:
        self._place[server] = len(self._order)
        self._order.append(server)
        self._load[server] = load
        self._by_load[load][server] = None

    def remove(self, server: int) -> None:
        place, last = self._place.pop(server), self._order.pop()
        if last != server:
            self._order[place], self._place[last] = last, place
        del self._by_load[self._load.pop(server)][server]

    def change(self, server: int, by: int) -> None:
        load = self._load[server]
        del self._by_load[load][server]
        self._load[server] = load + by
        self._by_load[load + by][server] = None

    def pick(self, routing: str) -> int | None:
        """A server for one more session; None if the one that `routing` finds is full."""
        if not self._order:
            return None
        if routing == "free-room":
            return next((next(iter(servers)) for servers in self._by_load[:-1] if servers), None)
        tries = 1 if routing == "random" else 2
        found = min((self._order[self._rng.randrange(len(self))] for _ in range(tries)), key=self._load.__getitem__)
        return found if self._load[found] < len(self._by_load) - 1 else None

    def emptiest(self, number: int) -> list[int]:
        found: list[int] = []
        for servers in self._by_load:
            for server in servers:
                if len(found) >= number:
                    return found
                found.append(server)
        return found


def simulate_fleet(plan: FleetPlan) -> FleetReport:
    """Runs `plan` from an empty fleet. The same seed gives the same report."""
    return _Fleet(plan).run()


class _Fleet:
    def __init__(self, plan: FleetPlan) -> None:
        self.plan, self.report = plan, FleetReport(plan)
        self._rng = random.Random(plan.seed)
        self._room = Room(plan.capacity, self._rng)
        self._sessions: dict[int, set[int]] = {}  # of each server that is up, draining ones included
        self._server: dict[int, int] = {}  # of each open session
        self._draining: dict[int, bool] = {}  # server -> whether a new one takes its place
        self._to_update: list[int] = []
        self._starting = 0
        self._servers, self._numbers, self._order = count(), count(), count()
        self._events: list[tuple[float, int, str, int]] = []
        self._warm = min(WARM_LENGTHS * plan.session_seconds, plan.hours * 3600 / 2)
        self._now = 0.0

    def run(self) -> FleetReport:
        plan, end = self.plan, self.plan.hours * 3600
        for _ in range(plan.servers):
            self._up(0)
        self._later(0.0, "arrive")
        self._later(0.0, "look")
        if plan.update_hour is not None:
            self._later(plan.update_hour * 3600, "update")
        while self._events and (event := heapq.heappop(self._events))[0] <= end:
            self._pass(event[0])
            getattr(self, f"_{event[2]}")(event[3])
        self._pass(end)
        return self.report

    def _pass(self, now: float) -> None:
        self.report.server_hours += (now - self._now) * (len(self._sessions) + self._starting) / 3600
        self._now = now

    def _later(self, seconds: float, kind: str, number: int = 0) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._order), kind, number))

    # -- sessions ----------------------------------------------------------------------------------------------
    def _arrive(self, _: int) -> None:
        """The next arrival of a rate that changes with the hour: drawn anew at each change, for it has no memory."""
        rate, change = self.plan.rate(self._now), 3600 - self._now % 3600
        wait = self._rng.expovariate(rate) if rate > 0 else math.inf
        if wait >= change:
            self._later(change, "arrive")
            return
        self._later(wait, "open")

    def _open(self, _: int) -> None:
        counted = self._now >= self._warm
        self.report.offered += counted
        if not self._place():
            self.report.refused += counted
        self._arrive(0)

    def _place(self) -> bool:
        server = self._room.pick(self.plan.routing)
        if server is None:
            return False
        session = next(self._numbers)
        self._sessions[server].add(session)
        self._server[session] = server
        self._room.change(server, 1)
        self._later(self._rng.expovariate(1 / self.plan.session_seconds), "leave", session)
        return True

    def _leave(self, session: int) -> None:
        server = self._server.pop(session, None)
        if server is None:  # cut off before
            return
        self._sessions[server].discard(session)
        if server in self._room:
            self._room.change(server, -1)
        elif not self._sessions[server]:
            self._gone(server)

    # -- servers -----------------------------------------------------------------------------------------------
    def _up(self, started: int) -> None:
        self._starting -= started
        server = next(self._servers)
        self._sessions[server] = set()
        self._room.add(server)
        if self.plan.failure_hours is not None:
            self._later(self._rng.expovariate(1 / self.plan.failure_hours) * 3600, "fail", server)

    def _start(self) -> None:
        self._starting += 1
        self._later(self.plan.start_seconds, "up", 1)

    def _fail(self, server: int) -> None:
        if server not in self._sessions:
            return
        self.report.failures += 1
        self.report.cut_by_failures += len(self._sessions[server])
        if server not in self._draining:
            self._room.remove(server)
            self._draining[server] = True
        self._gone(server)

    def _gone(self, server: int) -> None:
        """A server ends, empty or not: what was open on it starts anew elsewhere, and another takes its place."""
        cut = self._sessions.pop(server)
        if self._draining.pop(server):
            self._start()
        for session in cut:
            del self._server[session]
            self.report.refused_again += not self._place()
        if self._to_update:
            self._drain_next()

    def _drain(self, server: int, replace: bool) -> None:
        self._room.remove(server)
        self._draining[server] = replace
        if not self._sessions[server]:
            self._gone(server)
        else:
            self._later(self.plan.drain_seconds, "cut", server)

    def _cut(self, server: int) -> None:
        if server in self._draining:
            self.report.cut_by_updates += len(self._sessions[server])
            self._gone(server)

    def _update(self, _: int) -> None:
        self._to_update = [server for server in self._sessions if server in self._room]
        for _ in range(max(1, math.ceil(self.plan.update_share * len(self._to_update)))):
            self._drain_next()

    def _drain_next(self) -> None:
        while self._to_update:
            server = self._to_update.pop()
            if server in self._room:
                self.report.updated += 1
                self._drain(server, replace=True)
                return

    def _look(self, _: int) -> None:
        """Once in a while: a sample for the picture, and the scaler's decision. It ends only the emptiest servers."""
        plan, taking = self.plan, len(self._room)
        slots = taking * plan.capacity
        self.report.samples.append(
            (self._now / 3600, len(self._server), slots, len(self._sessions), self.report.refused)
        )
        self._later(SCALE_SECONDS, "look")
        if plan.free_share is None:
            return
        wanted = max(1, math.ceil(len(self._server) / (1 - plan.free_share) / plan.capacity))
        coming = taking + self._starting
        for _ in range(wanted - coming):
            self._start()
        if coming > wanted + 1 and not self._to_update:
            for server in self._room.emptiest(coming - wanted - 1):
                self._drain(server, replace=False)
