"""The agent's outgoing picture and sound of one session, and what is left out of them when a unit is late.

In a fixed order that is counted (`contract.ORDER`): fewer solver steps, then repeat the last frame, then silence, for
sound is what a listener misses first. The order is that of the pipeline, too: `StepScheduler` cuts evaluations while
the unit is still being solved; what is late after that can only be shortened here. Each unit is judged on its own, so
quality is back to full with the first unit that has room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine_builder.config import UNIT_MS

from ..messages import Float32, UInt8
from .contract import ORDER, Measure, UnitResponse

SILENCE_AFTER_NS = UNIT_MS * 1_000_000  # past its deadline: its sound would overlap the next unit
MUTED: tuple[Measure, ...] = ("repeat_frame", "silence")  # what becomes of sound and picture that the guard keeps back


def measures(steps: int, steps_asked: int, late_ns: int) -> list[Measure]:
    """What is left out of a unit solved in `steps` of `steps_asked` evaluations that is out so long past its deadline.
    An empty list is full quality."""
    applies = (steps < steps_asked, late_ns > 0, late_ns > SILENCE_AFTER_NS)
    return [measure for measure, applied in zip(ORDER, applies, strict=True) if applied]


@dataclass(eq=False)
class Output:
    """Remembers the last frame and sound that were sent. Model state is untouched: what is left out here is still
    history."""

    last_frame: UInt8 | None = None  # [H, W, 3]
    last_sound: tuple[int, Float32] | None = None  # unit, pcm [N]
    mute_until: int = 0  # by the guard: units before this one go out without text, sound and a new picture, because
    muted_for: str = ""

    def shorten(self, unit: int, pcm: Float32, frames: UInt8, taken: list[Measure]) -> tuple[Float32, UInt8]:
        """pcm [N] and frames [4, H, W, 3] as they are sent."""
        if "repeat_frame" in taken and self.last_frame is not None:
            frames = np.repeat(self.last_frame[None], len(frames), axis=0)
        if "silence" in taken:
            pcm = np.zeros_like(pcm)
        self.last_frame, self.last_sound = frames[-1].copy(), (unit, pcm)
        return pcm, frames

    def played_in(self, unit: int) -> Float32 | None:
        """The sound that the client plays while the user's `unit` is recorded: that of the unit before. None if it is
        not out yet."""
        sound = self.last_sound
        return sound[1] if sound is not None and sound[0] == unit - 1 else None

    def blank(self, response: UnitResponse) -> UnitResponse:
        """What is sent for a unit whose epoch is over: its number and what was heard of the user, and nothing that the
        agent wanted to say or show."""
        self.last_sound = None
        shown = response.frames[:1] if self.last_frame is None else self.last_frame[None]
        return replace(
            response,
            text="",
            pcm=np.zeros_like(response.pcm),
            frames=np.repeat(shown, len(response.frames), axis=0),
            info={**response.info, "dropped": True},
        )
