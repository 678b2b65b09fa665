"""Every metric of a server: its Prometheus name, what it means, and which plain figures of the runtime feed it.

`build/observability/METRICS.md` says the same for people; a test keeps the two equal. A series is there from the start
with the value 0, so that a rate is right from the first scrape and an alert never waits for a first event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..runtime.duplex.contract import ORDER
from ..runtime.messages import CODES

PREFIX = "wan_streamer_"
Kind = Literal["counter", "gauge", "histogram"]
Series = Mapping[str, Mapping[str, str]]  # plain name -> labels

# Around the 160 ms of a unit: most boundaries lie where "comfortable" turns into "late".
UNIT_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.24, 0.32, 0.64, 1.28)
LATE_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
OTHER_ROWS = (0, *ROWS)

STAGES = ("queue", "perceive", "think", "perform", "render", "total")
THINKER_STEPS = ("prompt", "perceive", "think")
PERFORMER_STEPS = ("perform", "render")
PARTS = ("tritonserver", "duplex", "thinker", "performer")


@dataclass(frozen=True)
class MetricSpec:
    """One metric. `series`: the plain names it is made of; `scale`: factor from the plain figure to the unit."""

    name: str
    kind: Kind
    help: str
    series: Series
    buckets: tuple[float, ...] = ()
    scale: float = 1.0

    @property
    def labels(self) -> list[str]:
        return sorted({label for labels in self.series.values() for label in labels})


def _by(label: str, plain: str, values: Iterable[str]) -> Series:
    """One series a value; `{}` in `plain` is where the value goes."""
    return {plain.format(value): {label: value} for value in values}


def _spec(name: str, kind: Kind, text: str, series: Series | str, **more: float | tuple[float, ...]) -> MetricSpec:
    given = {series: {}} if isinstance(series, str) else series
    return MetricSpec(PREFIX + name, kind, text, given, **more)  # pyright: ignore[reportArgumentType]


def _engine(steps: Iterable[str]) -> tuple[MetricSpec, ...]:
    steps = tuple(steps)
    role = "performer" if "perform" in steps else "thinker"  # a family belongs to one process
    return (
        _spec(
            f"{role}_batch_rows",
            "histogram",
            "Rows (sessions) of one engine call.",
            _by("step", "{}.batch", [step for step in steps if step != "prompt"]),  # its rows are tokens
            buckets=ROWS,
        ),
        _spec(
            f"{role}_engine_seconds_total",
            "counter",
            "Time inside engine calls; its rate is how busy the engine is.",
            _by("step", "{}.total_ms", steps),
            scale=0.001,
        ),
        _spec(
            f"{role}_engine_failures_total",
            "counter",
            "Engine calls that raised; their units failed.",
            _by("step", "{}.crashed", steps),
        ),
    )


DUPLEX = (
    _spec("sessions_admitted_total", "counter", "Sessions that were opened.", "sessions.admitted"),
    _spec(
        "sessions_refused_total",
        "counter",
        "Session starts that were refused; RESOURCE_EXHAUSTED is a full server.",
        _by("code", "sessions.refused.{}", CODES),
    ),
    _spec("sessions_resumed_total", "counter", "Sessions taken up again on a new stream.", "sessions.resumed"),
    _spec(
        "sessions_ended_total",
        "counter",
        "Sessions that ended: completed by their client, failed with an error, or abandoned (client gone, idle, "
        "shutdown).",
        _by("outcome", "sessions.ended.{}", ("completed", "failed", "abandoned")),
    ),
    _spec("sessions_active", "gauge", "Sessions that are open now.", "sessions"),
    _spec(
        "units_total",
        "counter",
        "User units with their outcome: answered within 160 ms of their arrival, answered later, or accepted and "
        "never answered.",
        _by("outcome", "units.{}", ("on_time", "late", "failed")),
    ),
    _spec(
        "units_refused_total",
        "counter",
        "Units of open sessions that were refused.",
        _by("code", "units.refused.{}", CODES),
    ),
    _spec(
        "units_degraded_total",
        "counter",
        "Units from which something was left out because they were late.",
        _by("kind", "units.degraded.{}", ORDER),
    ),
    _spec(
        "guard_verdicts_total",
        "counter",
        "What the guard said of units, if there is one; late: it said nothing in its time.",
        _by("verdict", "guard.{}", ("pass", "mute", "end", "late")),
    ),
    _spec(
        "unit_stage_seconds",
        "histogram",
        "Time of answered units by stage; queue is all that was no engine time, total is from arrival to response.",
        _by("stage", "unit.{}", STAGES),
        buckets=UNIT_SECONDS,
    ),
    _spec(
        "receive_lateness_seconds",
        "histogram",
        "How late a unit arrived on its session's 160 ms clock, of which the most punctual recent unit is the zero.",
        "unit.receive_lateness",
        buckets=LATE_SECONDS,
    ),
    _spec(
        "send_lateness_seconds",
        "histogram",
        "How long after its deadline (arrival + 160 ms) a response was handed to the stream; 0 for units on time.",
        "unit.send_lateness",
        buckets=LATE_SECONDS,
    ),
    _spec(
        "av_skew_seconds",
        "histogram",
        "How far the pictures of a response lie behind its sound: 160 ms for each repeated frame in a row, else 0.",
        "unit.av_skew",
        buckets=LATE_SECONDS,
    ),
    _spec(
        "epoch_fences_total",
        "counter",
        "Responses emptied or dropped because their session had moved on (interruption, resumption).",
        "dropped",
    ),
)
THINKER = (
    _spec("kv_pages", "gauge", "Pages of the KV pool.", _by("state", "pages.{}", ("free", "used"))),
    _spec("kv_pages_evicted_total", "counter", "Pages freed because their units left the window.", "pages.evicted"),
    *_engine(THINKER_STEPS),
)
PERFORMER = (
    _spec("performer_jobs", "gauge", "Units in the solver now.", "jobs"),
    _spec(
        "join_rows",
        "histogram",
        "Units already under way in the call that a new unit joined (in-flight batching); 0: it started alone.",
        "join.rows",
        buckets=OTHER_ROWS,
    ),
    _spec(
        "join_wait_seconds",
        "histogram",
        "Time between a unit's arrival in the performer and its first solver step.",
        "join.wait",
        buckets=LATE_SECONDS,
    ),
    _spec("solver_steps_skipped_total", "counter", "Solver steps left out to be on time.", "steps.skipped"),
    *_engine(PERFORMER_STEPS),
)
LAUNCHER = (
    _spec("ready", "gauge", "1 if sessions are taken, else 0.", "ready"),
    _spec(
        "part_up",
        "gauge",
        "0 from the death or hang of a process until the server is ready again, else 1.",
        _by("part", "up.{}", PARTS),
    ),
    _spec(
        "part_faults_total",
        "counter",
        "Deaths and hangs of a process that made the server go down.",
        _by("part", "faults.{}", PARTS),
    ),
    _spec("restarts_total", "counter", "Restarts of the server by the launcher.", "restarts"),
    _spec("sessions_capacity", "gauge", "Sessions of the usual kind that this server takes in all.", "room.capacity"),
    _spec(
        "sessions_reserved",
        "gauge",
        "Places of sessions that lost their stream and may come back, or are being freed.",
        "room.reserved",
    ),
    _spec("sessions_free", "gauge", "Sessions of the usual kind that would get in now; 0 while draining.", "room.free"),
    _spec("draining", "gauge", "1 while open sessions go on and no new ones are taken, else 0.", "room.draining"),
    _spec(
        "connections_cut_off_total",
        "counter",
        "gRPC connections that were ended: they sent on and read nothing, flooded the server, or were too many.",
        _by("rule", "cut_off.{}", ("unread", "flood", "crowd")),
    ),
)
# Who exports what: the three models through Triton's metrics port, the launcher beside /ready.
TABLE: dict[str, tuple[MetricSpec, ...]] = {
    "duplex": DUPLEX,
    "thinker": THINKER,
    "performer": PERFORMER,
    "launcher": LAUNCHER,
}
