"""What is left out when a unit is late, in a fixed order that is counted: fewer solver steps, then repeat the last
frame, then silence. Sound is what a listener misses first, so it goes last.

The order is that of the pipeline, too. `StepScheduler` cuts evaluations while the unit is still being solved; what is
late after that can only be shortened at the output, where `Ladder` decides. Each unit is judged on its own, so quality
is back to full with the first unit that has room.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from ..performer.scheduler import NS_PER_MS

Measure = Literal["fewer_steps", "repeat_frame", "silence"]
ORDER: tuple[Measure, ...] = ("fewer_steps", "repeat_frame", "silence")


@dataclass
class Ladder:
    """Decides and counts the measures of every unit.

    frame_after_ns    a unit later than this past its deadline shows the last frame again
    silence_after_ns  one later than this is answered with silence as well: its sound would overlap the next unit
    """

    frame_after_ns: int = 0
    silence_after_ns: int = 160 * NS_PER_MS
    counts: Counter[Measure] = field(default_factory=Counter)  # units per measure

    def __post_init__(self) -> None:
        if not 0 <= self.frame_after_ns <= self.silence_after_ns:
            raise ValueError(
                "silence_after_ns: expected >= frame_after_ns >= 0, "
                f"got {self.silence_after_ns} and {self.frame_after_ns}"
            )

    def judge(self, steps: int, steps_asked: int, ready_ns: int, deadline_ns: int) -> list[Measure]:
        """Measures for a unit solved in `steps` of `steps_asked` evaluations whose response is out at `ready_ns`.

        In order; each one that applies is counted. An empty list is full quality.
        """
        late_ns = ready_ns - deadline_ns
        applies = (steps < steps_asked, late_ns > self.frame_after_ns, late_ns > self.silence_after_ns)
        measures: list[Measure] = [measure for measure, applied in zip(ORDER, applies, strict=True) if applied]
        self.counts.update(measures)
        return measures
