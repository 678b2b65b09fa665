"""One unit of conversation, as the client sees it: 160 ms of the user going out, 160 ms of the agent coming back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tls import Tls

UNIT_MS = 160
UNIT_SECONDS = UNIT_MS / 1000
FRAMES_PER_UNIT = 4
FPS = 25

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class UnitShape:
    """Sizes of one unit of the served model; they come from the model metadata, never from a constant here."""

    samples: int
    height: int
    width: int

    @property
    def sample_rate(self) -> int:
        """PCM rate in Hz."""
        return self.samples * 1000 // UNIT_MS

    @property
    def frames(self) -> tuple[int, int, int, int]:
        """Shape of the picture tensor of one unit: [4, H, W, 3]."""
        return FRAMES_PER_UNIT, self.height, self.width, 3


@dataclass(frozen=True)
class Served:
    """What is served where. unanswered: units of a session that may be under way at once.  grace: seconds for which the
    server keeps a session whose connection is lost. The two are those of a server that does not say otherwise."""

    url: str
    model: str
    shape: UnitShape
    unanswered: int = 2
    grace: float = 30.0
    tls: Tls | None = None


@dataclass(frozen=True, eq=False)
class UserUnit:
    """What the user said, showed and typed in unit `index`.

    pcm: float32 [samples] in -1..1, mono.  frames: uint8 [4, H, W, 3] RGB.  end: last unit of the session.
    interrupt: what the agent said for earlier units and has not arrived yet is no longer wanted.
    """

    index: int
    pcm: Float32
    frames: UInt8
    text: str = ""
    end: bool = False
    interrupt: bool = False

    def check(self, shape: UnitShape) -> None:
        """Raises ValueError when a tensor does not have the shape and type that the model takes."""
        if self.pcm.shape != (shape.samples,) or self.pcm.dtype != np.float32:
            raise ValueError(
                f"pcm: expected {shape.samples} float32 samples for one {UNIT_MS} ms unit, "
                f"got {'x'.join(map(str, self.pcm.shape))} {self.pcm.dtype}"
            )
        if self.frames.shape != shape.frames or self.frames.dtype != np.uint8:
            raise ValueError(
                f"frames: expected uint8 {list(shape.frames)}, got {self.frames.dtype} {list(self.frames.shape)}"
            )


@dataclass(frozen=True, eq=False)
class UnitResponse:
    """What the agent said, showed and wrote for user unit `unit_index`.

    text: what it says in words.  heard: words of the user that it understood, if it tells; neither is ever the other's.
    Both go on from unit to unit and begin with their own space.
    pcm: float32 [samples].  frames: uint8 [4, H, W, 3].  info: the server's JSON (`ms` per stage, epoch, degradation).
    received: time.monotonic() in seconds, taken when the message came off the socket.
    """

    unit_index: int
    state: str
    text: str
    pcm: Float32
    frames: UInt8
    info: dict[str, Any] = field(default_factory=dict)
    received: float = 0.0
    heard: str = ""

    @property
    def lost(self) -> bool:
        """The answer was lost with its connection, and this stands for it: silence and the last picture."""
        return self.info.get("lost") is True


def quiet(index: int, shape: UnitShape, *, end: bool = False) -> UserUnit:
    """A unit in which the user says and shows nothing."""
    return UserUnit(index, np.zeros(shape.samples, np.float32), np.zeros(shape.frames, np.uint8), end=end)


def blank(index: int, shape: UnitShape, last: UnitResponse | None, received: float) -> UnitResponse:
    """A response that is `lost`: the state and the last picture of `last`, and silence."""
    silence = np.zeros(shape.samples, np.float32)
    if last is None:
        return UnitResponse(index, "", "", silence, np.zeros(shape.frames, np.uint8), {"lost": True}, received)
    frames = np.repeat(last.frames[-1:], FRAMES_PER_UNIT, axis=0)
    return UnitResponse(index, last.state, "", silence, frames, {"lost": True}, received)
