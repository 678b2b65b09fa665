"""Who gets in: a session is admitted only if its pages and its share of the device are there until it ends.

A session over capacity is refused with RESOURCE_EXHAUSTED, naming the limit and the figures, so that the others keep
their deadlines. Three budgets:

    time    `Budget.sessions`: how many sessions the measured step costs carry on time, found by running the scheduler
            over those costs (`planner.simulate.capacity`). A session that asks for more solver steps or a longer
            history than the budget was computed for counts as more than one.
    pages   what `retention.pages_needed` says the session can come to own, promised whole at admission: a window never
            runs out of pages later. `full` has no such bound; it is promised its part of the pool and told how long
            that lasts.
    state   what the codecs carry from unit to unit, which is megabytes or, for the Wan VAE, gigabytes: as many sessions
            as the memory for it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from engine_builder.config import UNIT_MS, ModelConfig

from ..kv.retention import Full, Retention, history_tokens, pages_needed, units_that_fit
from ..messages import SessionError, full
from .costs import CostTable

UNITS_PER_SECOND = 1000 / UNIT_MS
# Client sockets, gRPC and the Python stubs want the same processors as the engines; measured with `bench_overhead`.
CPU_UTILISATION = 0.7
FULL_SECONDS = (10.0, 600.0)


def usual_history(config: ModelConfig, keep: Retention, pages: int, page_tokens: int) -> int:
    """Cached tokens of a session with the retention `keep`, for which capacity is computed.

    `full` grows until time or the pool of `pages` ends it: it counts at its mean length, as sessions of all ages share
    the device.
    """
    tokens = history_tokens(keep, config, 0)
    if tokens is not None:
        return tokens
    units = units_that_fit(keep, config, 0, page_tokens, pages - 1) or 0  # the null page is nobody's
    return min(units, round(FULL_SECONDS[1] * UNITS_PER_SECOND)) // 2 * config.unit_positions


@dataclass(frozen=True)
class Budget:
    """What the server has to give away.

    sessions       sessions on time with `solver_steps` evaluations a unit over `history` cached tokens
    utilisation    share of `sessions` that is given away: that figure is an average over arrivals, some come bunched
                   (simulated at 13 sessions: all given away, 5 of 12 half minutes were below 99% on time; 0.9: none)
    pages          pages of the pool without the null page
    deadline       ms from a complete unit to its response; a unit that takes longer by itself breaks real time
    full_seconds   the least for which a `full` session is opened, and the most that it is promised
    notice_seconds the client of a `full` session is warned this long before its end
    session_pages  what a session of the usual kind is promised, for counting how many more would get in
    state_bytes    codec state of a session
    state_memory   bytes for the codec states of all sessions
    """

    sessions: float
    solver_steps: int
    pages: int
    page_tokens: int
    history: int = 0
    utilisation: float = 0.9
    deadline: float = float(UNIT_MS)
    full_seconds: tuple[float, float] = FULL_SECONDS
    notice_seconds: float = 10.0
    session_pages: int = 1
    state_bytes: int = 0
    state_memory: int = 0

    def __post_init__(self) -> None:
        for name in ("solver_steps", "pages", "page_tokens", "session_pages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected >= 1, got {getattr(self, name)}")
        if self.sessions < 0:
            raise ValueError(f"sessions: expected >= 0, got {self.sessions}")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation: expected 0 < utilisation <= 1, got {self.utilisation}")
        if not 0 <= self.full_seconds[0] <= self.full_seconds[1]:
            raise ValueError(f"full_seconds: expected 0 <= least <= most, got {self.full_seconds}")

    @property
    def states(self) -> int:
        """Sessions whose codec state fits."""
        return self.state_memory // self.state_bytes if self.state_bytes else 2**31 - 1

    @property
    def shares(self) -> float:
        """Sessions given away; a server that can carry one session carries one."""
        return max(self.sessions * self.utilisation, min(1.0, self.sessions))


@dataclass(frozen=True)
class Ticket:
    """What an admitted session was promised. `units` is None if it may last for ever."""

    share: float
    pages: int
    units: int | None = None
    notice_units: int = 0
    limit: str = ""  # what ends a `full` session: "kv pages" or "real time"

    @property
    def seconds(self) -> float | None:
        """How long the session may last; None for ever."""
        return None if self.units is None else self.units / UNITS_PER_SECOND

    def notice(self, unit: int) -> str | None:
        """The warning that goes with the response of `unit`; None while the end is far."""
        if self.units is None or unit < self.units - self.notice_units:
            return None
        left = max(0, self.units - 1 - unit) / UNITS_PER_SECOND
        return f"retention full: this session ends in {left:.1f} s ({self.limit}); a window retention has no such end"

    def check(self, unit: int) -> None:
        """Raises SessionError RESOURCE_EXHAUSTED if the promise does not reach as far as `unit`."""
        if self.units is not None and unit >= self.units:
            raise SessionError(
                "RESOURCE_EXHAUSTED",
                f"retention full: {self.units} units ({self.seconds:.1f} s) were promised and are over ({self.limit}); "
                "start a new session, or use a window retention",
            )


class Room(TypedDict):
    """What a balancer, a scaler and an operator hear of one server's books; counted in sessions of the usual kind.

    admitted: open sessions.  reserved: places of sessions that lost their stream and may come back, or are freed.
    free: how many more would get in now; not always the rest, for a long history takes more than one place.
    """

    capacity: int
    admitted: int
    reserved: int
    free: int
    draining: bool


class Admission:
    """The books of one server. `admit` on start, `release` on the one way out of a session."""

    def __init__(self, config: ModelConfig, costs: CostTable, budget: Budget) -> None:
        self.config, self.costs, self.budget = config, costs, budget
        self._tickets: dict[str, Ticket] = {}

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        costs: CostTable,
        keep: Retention,
        sessions: int,
        pages: int,
        page_tokens: int,
        state: tuple[int, int] = (0, 0),
    ) -> Admission:
        """For a pool of `pages` and the `sessions` of retention `keep` that `costs` carry on time; 0 admits none.

        `state`: bytes of codec state a session, and for all.
        """
        each = pages_needed(keep, config, 0, page_tokens, None)
        budget = Budget(
            sessions=sessions,
            solver_steps=config.solver.steps,
            pages=pages - 1,  # the null page is nobody's
            session_pages=each or 1,  # a `full` session takes what there is
            page_tokens=page_tokens,
            history=usual_history(config, keep, pages, page_tokens),
            utilisation=CPU_UTILISATION,
            state_bytes=state[0],
            state_memory=state[1],
        )
        return cls(config, costs, budget)

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def shares_free(self) -> float:
        return self.budget.shares - sum(ticket.share for ticket in self._tickets.values())

    @property
    def pages_free(self) -> int:
        """Pages that nobody was promised."""
        return self.budget.pages - sum(ticket.pages for ticket in self._tickets.values())

    @property
    def capacity(self) -> int:
        """Sessions of the usual kind that get in when nobody is."""
        return self._fit(self.budget.shares, self.budget.pages, self.budget.states)

    @property
    def room(self) -> int:
        """Sessions of the usual kind that would get in now."""
        return self._fit(self.shares_free, self.pages_free, self.budget.states - len(self))

    def _fit(self, shares: float, pages: int, states: int) -> int:
        return max(0, min(int(shares + 1e-9), pages // self.budget.session_pages, states))

    def admit(self, session: str, retention: Retention, prompt_tokens: int, solver_steps: int) -> Ticket:
        """Books a session in. Raises SessionError RESOURCE_EXHAUSTED; then nothing is booked."""
        if session in self._tickets:
            raise ValueError(f"session: {session!r} is admitted already")
        ticket = self._offer(retention, prompt_tokens, solver_steps)
        # The tolerance forgives the rounding of sums of shares, no more.
        if ticket.share > self.shares_free + 1e-9:
            raise full(
                f"sessions: this server keeps {self.budget.shares:.1f} on time (measured step costs), {len(self)} "
                f"open sessions take {self.budget.shares - self.shares_free:.1f}, this one needs {ticket.share:.1f}",
            )
        if ticket.pages > self.pages_free:
            raise full(
                f"kv pages: this session needs {ticket.pages} ({retention.to_json()}), {self.pages_free} of "
                f"{self.budget.pages} are not promised to {len(self)} open sessions",
            )
        if len(self) >= self.budget.states:
            raise full(
                f"codec state: this session needs {self.budget.state_bytes / 1e6:.1f} MB, {len(self)} open sessions "
                f"hold as much each of {self.budget.state_memory / 1e6:.0f} MB",
            )
        self._tickets[session] = ticket
        return ticket

    def ticket(self, session: str) -> Ticket | None:
        """What an admitted session was promised; None if it was not admitted."""
        return self._tickets.get(session)

    def release(self, session: str) -> bool:
        """Takes back what the session was promised. False if it was not admitted."""
        return self._tickets.pop(session, None) is not None

    # -- what a session would get ------------------------------------------------------------------------------
    def _offer(self, retention: Retention, prompt_tokens: int, solver_steps: int) -> Ticket:
        page = self.budget.page_tokens
        if isinstance(retention, Full):
            return self._offer_full(retention, prompt_tokens, solver_steps)
        pages = pages_needed(retention, self.config, prompt_tokens, page, None)
        history = history_tokens(retention, self.config, prompt_tokens)
        if pages is None or history is None:
            raise ValueError(f"retention: expected a policy with a bound, got {retention!r}")
        alone = self.costs.unit_ms(history, solver_steps)
        if alone > self.budget.deadline:
            raise SessionError(
                "RESOURCE_EXHAUSTED",
                f"real time: a unit with {solver_steps} solver steps over {history} tokens takes {alone:.0f} ms even "
                f"alone, the deadline is {self.budget.deadline:.0f} ms; ask for fewer steps or a shorter window",
            )
        return Ticket(self._share(history, solver_steps), pages)

    def _offer_full(self, retention: Full, prompt_tokens: int, solver_steps: int) -> Ticket:
        budget, page = self.budget, self.budget.page_tokens
        least, most = (round(seconds * UNITS_PER_SECOND) for seconds in budget.full_seconds)
        # Its part of the pool, so that one such session does not keep everybody else out; more only if it needs that.
        part = budget.pages // max(1, int(budget.shares))
        part = max(part, pages_needed(retention, self.config, prompt_tokens, page, least) or 0)
        pages = max(0, min(part, self.pages_free))
        by_pages = units_that_fit(retention, self.config, prompt_tokens, page, pages) or 0
        by_time = self._real_time_units(prompt_tokens, solver_steps, most)
        units = min(most, by_pages, by_time)
        limit = "real time" if by_time < min(most, by_pages) else "kv pages" if by_pages < most else "server limit"
        if units < max(least, 1):
            raise SessionError(
                "RESOURCE_EXHAUSTED",
                f"{limit}: retention full would last {units / UNITS_PER_SECOND:.1f} s ({self.pages_free} of "
                f"{budget.pages} pages are free), expected at least {budget.full_seconds[0]:g} s; a window needs less",
            )
        pages = pages_needed(retention, self.config, prompt_tokens, page, units) or 0
        # Counted at its mean length: full sessions of all ages share the device.
        share = self._share(prompt_tokens + units * self.config.unit_positions // 2, solver_steps)
        return Ticket(share, pages, units, round(budget.notice_seconds * UNITS_PER_SECOND), limit)

    def _share(self, history: int, solver_steps: int) -> float:
        """Performer time of such a session over that of the session the budget counts in.

        At least 1, because the thinker's part does not shrink; at most everything: what is on time alone may run alone.
        """
        budget = self.budget
        usual = budget.solver_steps * self.costs.ms("perform", 1, budget.history)
        share = solver_steps * self.costs.ms("perform", 1, history) / usual if usual > 0 else 1.0
        return max(1.0, min(share, budget.shares))

    def _real_time_units(self, prompt_tokens: int, solver_steps: int, most: int) -> int:
        """Units, up to `most`, after which one unit of this session alone takes longer than the deadline."""
        low, high = 0, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            history = prompt_tokens + middle * self.config.unit_positions
            if self.costs.unit_ms(history, solver_steps) <= self.budget.deadline:
                low = middle
            else:
                high = middle
        return low
