"""What a simulation is given and what it reports: `Workload` in, `Report` out. Times are milliseconds unless named."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..runtime.budget.costs import CostTable


def gpu_like(
    fixed: float = 6.0, per_row: float = 1.5, thinker: float = 1 / 3, codecs: tuple[float, float] = (0.0, 0.0)
) -> CostTable:
    """Assumed costs of a GPU: every pass of the network costs a fixed part (launches, reading the weights) and a part
    per row (arithmetic on a unit's tokens).

    The thinker's passes have `thinker` of the performer's fixed part: their shapes repeat, so they are captured as
    graphs, and the paper calls this work short. A context block has about a fifth more tokens than a noisy unit, a slot
    pass has one. `codecs`: ms a row that perceive and render take longer than small encoders and decoders do.
    """
    return CostTable.linear(
        {
            "perceive": (0.5, 0.1 + codecs[0]),
            "think": (thinker * fixed, 1.2 * per_row),
            "slot": (thinker * fixed, 0.02 * per_row),
            "perform": (fixed, per_row),
            "render": (1.0, 0.3 + codecs[1]),
        }
    )


@dataclass(frozen=True)
class Workload:
    """What the clients do and what the machine is like.

    sessions         conversations at any time (without `session_seconds`: exactly; with it: on average, Poisson)
    deadline         from the complete unit to its response
    jitter           mean lateness of a unit's arrival, exponential; the deadline counts from the arrival
    devices          2: thinker and performer have one each; 1: they share it
    session_seconds  mean length of a session, exponential; None: all last as long as the simulation
    slots            fed slot tokens a unit, uniform in this range; a batch runs as many passes as its longest row (the
                     state token always, and speech is about 4 tokens a second, 0.6 a unit)
    history          cached tokens a row, for cost tables that know of it
    noise            calls take up to this share more or less than the table says, uniform
    overhead         of each engine call outside the engine; step-level scheduling makes more calls, so it pays more
    """

    sessions: int = 8
    seconds: float = 30.0
    deadline: float = 160.0
    jitter: float = 5.0
    solver_steps: int = 4
    devices: int = 2
    session_seconds: float | None = None
    slots: tuple[int, int] = (1, 2)
    history: int = 0
    noise: float = 0.05
    overhead: float = 0.2
    warmup_seconds: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.devices not in (1, 2):
            raise ValueError(f"devices: expected 1 or 2, got {self.devices}")
        for name in ("sessions", "solver_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected >= 1, got {getattr(self, name)}")
        for name in ("deadline", "seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected > 0, got {getattr(self, name)}")
        for name in ("jitter", "overhead", "warmup_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected >= 0, got {getattr(self, name)}")
        if self.seconds <= self.warmup_seconds:
            raise ValueError(f"seconds: expected more than {self.warmup_seconds:g} s of warm-up, got {self.seconds:g}")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise: expected 0 <= noise < 1, got {self.noise}")
        if not 0 <= self.slots[0] <= self.slots[1]:
            raise ValueError(f"slots: expected 0 <= fewest <= most, got {self.slots}")
        if self.session_seconds is not None and self.session_seconds <= 0:
            raise ValueError(f"session_seconds: expected > 0, got {self.session_seconds}")


@dataclass
class Report:
    """What came of it. Units that arrived during the warm-up are left out of `latencies`."""

    policy: str
    load: Workload
    latencies: list[float] = field(default_factory=list)  # ms, sorted
    shortened: int = 0  # units that were given fewer solver steps than asked
    busy: list[float] = field(default_factory=list)  # share of the time, per device
    rows_per_tick: float = 0.0
    admitted: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # sessions by the limit they were refused for

    @property
    def units(self) -> int:
        return len(self.latencies)

    @property
    def on_time(self) -> float:
        """Share of units answered by their deadline; 0 if there were none."""
        return sum(ms <= self.load.deadline for ms in self.latencies) / self.units if self.units else 0.0

    def percentile(self, percent: float) -> float:
        """Response latency in ms (nearest rank); nan without units."""
        if not self.units:
            return float("nan")
        return self.latencies[min(self.units - 1, int(self.units * percent / 100))]
