"""What comes to the loop and what leaves it: a request, its answer, the way back to the client, calls of the models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..messages import Float32, SessionError, UInt8

SessionKey = int | str  # Triton's correlation id
Measure = Literal["fewer_steps", "repeat_frame", "silence"]
ORDER: tuple[Measure, ...] = ("fewer_steps", "repeat_frame", "silence")  # in which a late unit is shortened

Call = Callable[[Any], Any]  # runs a job of `messages.py` in a model: blocks, returns its result, raises SessionError


@dataclass(frozen=True)
class UnitRequest:
    """One request of the wire contract, its tensors not yet validated: pcm [N], frames [4, H, W, 3]."""

    key: SessionKey
    start: bool
    end: bool
    unit: int
    pcm: Float32
    frames: UInt8
    text: bytes = b""
    options: bytes = b""


@dataclass(frozen=True)
class UnitResponse:
    """One response of the wire contract; `info` is what the client gets as JSON, `heard` are words of the user."""

    unit: int
    state: str
    text: str
    pcm: Float32
    frames: UInt8
    info: dict[str, Any]
    heard: str = ""


class Reply(Protocol):
    """The way back to the client of one request. From any thread; nothing may raise; after `finish` all do nothing."""

    def send(self, response: UnitResponse) -> None: ...

    def fail(self, error: SessionError) -> None:
        """The last that is said; `finish` follows."""
        ...

    def finish(self) -> None:
        """Finalises the request: the client is told that nothing more will come for it."""
        ...

    def cancelled(self) -> bool:
        """True once the client has gone away."""
        ...
