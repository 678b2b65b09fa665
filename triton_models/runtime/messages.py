"""What the three models say to each other. Plain typed records; `wire.py` turns them into tensors and back.

Times are `time.monotonic_ns()`: CLOCK_MONOTONIC is shared by the processes of one machine, so a deadline that the
duplex model sets means the same to the performer.

Nobody changes a message once it is made. They are not frozen all the same: making a frozen one takes twice as long, and
a dozen are made for each unit while no engine works.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Int64 = NDArray[np.int64]


# What a session error may be, in the words of gRPC.
CODES = (
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "ABORTED",
    "INTERNAL",
)


class SessionError(Exception):
    """An error that belongs to one session and must reach its stream as `CODE: message`.

    Codes follow gRPC: INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, RESOURCE_EXHAUSTED, UNAVAILABLE, ABORTED, INTERNAL.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(slots=True)
class HistoryView:
    """One session's visible history as the performer and the step graphs see it.

    page_ids int64 [P] and ranges int64 [P, 2]: key j of page p is visible iff ranges[p, 0] <= j < ranges[p, 1].
    """

    page_ids: Int64
    ranges: Int64


@dataclass(slots=True)
class OpenJob:
    """Opens a session in the thinker: pages are reserved and the persona prompt is prefilled."""

    session: str
    epoch: int
    prompt: str = ""
    seed: int = 0
    retention: object = "full"  # JSON form; `retention.parse` validates it


@dataclass(slots=True)
class PerceiveJob:
    """User unit `unit`: pcm float32 [N], frames uint8 [4, H, W, 3]."""

    session: str
    epoch: int
    unit: int
    pcm: Float32
    frames: UInt8


@dataclass(slots=True)
class ThinkJob:
    """Runs the context block and the slots of `unit`; its perception must be there (or comes along as `perceive`).

    z_video [n_v, c_v] and z_audio [n_a, c_a]: clean latents of the unit before, which open the block; unit 0 has none.
    latest_ns: the unit is late unless its call starts by then; None: nothing is known of a deadline.
    """

    session: str
    epoch: int
    unit: int
    text: str = ""
    perceive: PerceiveJob | None = None
    z_video: Float32 | None = None
    z_audio: Float32 | None = None
    latest_ns: int | None = None


@dataclass(slots=True)
class ThinkResult:
    session: str
    epoch: int
    unit: int
    state: str
    text: str
    history: HistoryView  # after the K/V of this unit was committed
    origin: int  # prompt tokens; RoPE origin of the session
    seed: int
    slots: tuple[int, ...]  # emitted token ids
    ms: dict[str, float] = field(default_factory=dict)  # perceive, think
    handed: bool = False  # the performer has its HandOver already


@dataclass(slots=True)
class HandOver:
    """What the performer must know of a unit that was thought: where its history is. `sent_ns`: when it left."""

    session: str
    epoch: int
    unit: int
    seed: int
    origin: int
    history: HistoryView
    sent_ns: int = 0


@dataclass(slots=True)
class PerformJob:
    """Solves one unit over its history and renders it. `deadline_ns`: when the solver should be done.

    history: None if the job comes ahead of its HandOver, which brings `seed`, `origin` and the history.
    """

    session: str
    epoch: int
    unit: int
    seed: int
    steps: int
    deadline_ns: int
    origin: int
    history: HistoryView | None = None
    sent_ns: int = 0  # of the hand-over


@dataclass(slots=True)
class PerformResult:
    """Clean latents of one unit: z_video [n_v, c_v], z_audio [n_a, c_a]; `steps` may be fewer than asked when late.

    pcm float32 [N] and frames uint8 [4, H, W, 3] are what the renderer made of them; None before it did.
    """

    session: str
    epoch: int
    unit: int
    z_video: Float32
    z_audio: Float32
    steps: int
    solved_ns: int = 0  # when the last solver step was done
    pcm: Float32 | None = None
    frames: UInt8 | None = None
    ms: dict[str, float] = field(default_factory=dict)  # queue, perform, render


@dataclass(slots=True)
class CloseJob:
    """Frees everything the session holds in the thinker; closing an unknown session is no error."""

    session: str
    epoch: int
