"""The agent's outgoing picture and sound of one session, shortened where a unit is late (`degradation.Ladder`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..messages import Float32, UInt8
from .degradation import Ladder, Measure

if TYPE_CHECKING:
    from .conversation import UnitResponse


@dataclass(eq=False)
class Output:
    """Remembers the last frame that was sent. Model state is untouched: what is left out here is still history."""

    ladder: Ladder = field(default_factory=Ladder)
    last_frame: UInt8 | None = None  # [H, W, 3]

    def shorten(
        self, pcm: Float32, frames: UInt8, steps: int, steps_asked: int, ready_ns: int, deadline_ns: int
    ) -> tuple[Float32, UInt8, list[Measure]]:
        """pcm [N], frames [4, H, W, 3] as they are sent, and the measures that were taken, in order."""
        measures = self.ladder.judge(steps, steps_asked, ready_ns, deadline_ns)
        if "repeat_frame" in measures and self.last_frame is not None:
            frames = np.repeat(self.last_frame[None], len(frames), axis=0)
        if "silence" in measures:
            pcm = np.zeros_like(pcm)
        self.last_frame = frames[-1].copy()
        return pcm, frames, measures

    def blank(self, response: UnitResponse) -> UnitResponse:
        """What is sent for a unit whose epoch is over: its number, and nothing that the agent wanted to say or show."""
        shown = response.frames[:1] if self.last_frame is None else self.last_frame[None]
        return replace(
            response,
            text="",
            pcm=np.zeros_like(response.pcm),
            frames=np.repeat(shown, len(response.frames), axis=0),
            info={**response.info, "dropped": True},
        )
