"""What the duplex loop counts: sessions and units by outcome, stages, lateness. Feeds `metrics.Metrics`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine_builder.config import UNIT_MS

from ..metrics import Metrics
from .table import Accepted

UNIT_NS = UNIT_MS * 1_000_000
# Ten seconds: a client's clock drifts little in them, and after a pause of its own it is punctual again.
PUNCTUAL_UNITS = 64

Ending = Literal["completed", "failed", "abandoned"]


@dataclass
class _Course:
    """One open session: when its recent units came, less their place on the 160 ms clock; frames repeated in a row."""

    offsets_ns: deque[int] = field(default_factory=lambda: deque(maxlen=PUNCTUAL_UNITS))
    repeated: int = 0


class DuplexMeter:
    """Called by the duplex loop at each event. Forgets a session when it ends."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._courses: dict[str, _Course] = {}

    def accepted(self, accepted: Accepted, arrival_ns: int) -> None:
        name = accepted.session.name
        if accepted.started:
            self.metrics.count("sessions.admitted")
        if accepted.resumed:
            self.metrics.count("sessions.resumed")
        if accepted.started or accepted.resumed:  # a resumed session's clock stood still meanwhile
            self._courses[name] = _Course()
        offsets = self._courses[name].offsets_ns
        offsets.append(arrival_ns - accepted.unit * UNIT_NS)
        self.metrics.observe("unit.receive_lateness", (offsets[-1] - min(offsets)) / 1e9)

    def refused(self, code: str, *, start: bool) -> None:
        self.metrics.count(f"{'sessions' if start else 'units'}.refused.{code}")

    def answered(self, accepted: Accepted, info: Mapping[str, Any], arrival_ns: int, now_ns: int) -> None:
        """A response that went out; `info` is what the client is told about it."""
        late_ns = now_ns - arrival_ns - UNIT_NS
        self.metrics.count("units.late" if late_ns > 0 else "units.on_time")
        self.metrics.observe("unit.send_lateness", max(0, late_ns) / 1e9)
        for stage, ms in info["ms"].items():
            self.metrics.observe(f"unit.{stage}", ms / 1000)
        for kind in info["degradation"]:
            self.metrics.count(f"units.degraded.{kind}")
        course = self._courses.get(accepted.session.name)
        if course is not None:
            course.repeated = course.repeated + 1 if "repeat_frame" in info["degradation"] else 0
            self.metrics.observe("unit.av_skew", course.repeated * UNIT_NS / 1e9)

    def ended(self, session: str, ending: Ending, unanswered: int) -> None:
        self._courses.pop(session, None)
        self.metrics.count(f"sessions.ended.{ending}")
        self.lost(unanswered)

    def lost(self, units: int) -> None:
        """Accepted units that nobody will get an answer to: the session or its stream is gone."""
        if units:
            self.metrics.count("units.failed", units)
