"""What the models say to each other: typed records, whose field types are also the schema that bytes are checked by.

`backend/wire.py` turns them into bytes and back. Times are `time.monotonic_ns()`: CLOCK_MONOTONIC is shared by the
processes of one machine, so a deadline that the duplex model sets means the same to a stage.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Int64 = NDArray[np.int64]

MAX_PROMPT_BYTES = 16_384  # of a persona prompt, checked before anything tokenises it
MAX_PERSONA_UNITS = 13  # of a persona's voice: 2 s
MAX_TEXT_BYTES = 4096  # typed text of one unit, UTF-8: more than anybody types in 160 ms, a paste of a page included
MAX_QUEUED_TEXT = 1024  # typed tokens that may wait in the thinker for later units

Name = Annotated[str, Meta(min_length=1, max_length=400)]  # of a session
Count = Annotated[int, Meta(ge=0, le=2**62)]  # epochs, units, positions, times
Steps = Annotated[int, Meta(ge=1, le=1024)]

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


RETRY_SECONDS = 1.0  # what whoever was refused for want of room should wait: another server may have some by then


def full(message: str) -> SessionError:
    """A start that was refused because there is no room now. The hint at its end is for programs too."""
    return SessionError("RESOURCE_EXHAUSTED", f"{message}; retry after {RETRY_SECONDS:g} s")


class Message(msgspec.Struct, frozen=True, eq=False, array_like=True, tag=True, forbid_unknown_fields=True):
    """Packed as a list: its class, then its fields in their order."""


class HistoryView(Message, frozen=True):
    """One session's visible history as the performer and the step graphs see it.

    page_ids int64 [P] and ranges int64 [P, 2]: key j of page p is visible iff ranges[p, 0] <= j < ranges[p, 1].
    """

    page_ids: Int64
    ranges: Int64


class OpenJob(Message, frozen=True):
    """Opens a session in the thinker: pages are reserved and the persona is prefilled.

    picture uint8 [H, W, 3] and voice float32 [units, N] are encoded as the agent's own past, after the prompt.
    """

    session: Name
    epoch: Count
    prompt: Annotated[str, Meta(max_length=MAX_PROMPT_BYTES)] = ""
    seed: Annotated[int, Meta(ge=0)] = 0
    retention: Any = "full"  # JSON form; `retention.parse` validates it
    picture: UInt8 | None = None
    voice: Float32 | None = None


class PerceiveJob(Message, frozen=True):
    """User unit `unit`: pcm float32 [N], frames uint8 [4, H, W, 3]."""

    session: Name
    epoch: Count
    unit: Count
    pcm: Float32
    frames: UInt8


class ThinkJob(Message, frozen=True):
    """Runs the context block and the slots of `unit`; its perception must be there (or comes along as `perceive`).

    z_video [n_v, c_v] and z_audio [n_a, c_a]: clean latents of the unit before, which open the block; unit 0 has none.
    latest_ns: the unit is late unless its call starts by then; None: nothing is known of a deadline.
    steps, deadline_ns: of the solver, which starts without another call where it lives in the same stage.
    interrupt: what was typed before and has not been read yet is forgotten.
    """

    session: Name
    epoch: Count
    unit: Count
    text: Annotated[str, Meta(max_length=MAX_TEXT_BYTES)] = ""
    perceive: PerceiveJob | None = None
    z_video: Float32 | None = None
    z_audio: Float32 | None = None
    latest_ns: Count | None = None
    steps: Steps = 1
    deadline_ns: Count = 0
    interrupt: bool = False


class ThinkResult(Message, frozen=True):
    """text, heard: what the agent said, and what it heard of the user, in the tokens of this unit.
    history: where the K/V of the session is, for a performer of another stage; None where it was handed over.

    `seal` vouches for that history: pages that a message names are taken only with the seal of who owns them.
    """

    session: Name
    epoch: Count
    unit: Count
    state: str
    text: str
    history: HistoryView | None
    origin: Count  # prompt tokens; RoPE origin of the session
    seed: Annotated[int, Meta(ge=0)]
    slots: tuple[Count, ...]  # emitted token ids
    ms: dict[str, float] = {}  # perceive, think
    seal: bytes = b""
    heard: str = ""


class PerformJob(Message, frozen=True):
    """Solves one unit over its history and renders it. `deadline_ns`: when the solver should be done.

    history: None asks for the unit that the thinker of the same stage handed over when it was thought.
    """

    session: Name
    epoch: Count
    unit: Count
    seed: Annotated[int, Meta(ge=0)]
    steps: Steps
    deadline_ns: Count
    origin: Count
    history: HistoryView | None = None
    seal: bytes = b""


class PerformResult(Message, frozen=True):
    """Clean latents of one unit: z_video [n_v, c_v], z_audio [n_a, c_a]; `steps` may be fewer than asked when late.

    pcm float32 [N] and frames uint8 [4, H, W, 3] are what the renderer made of them; None before it did.
    """

    session: Name
    epoch: Count
    unit: Count
    z_video: Float32
    z_audio: Float32
    steps: Count
    solved_ns: Count = 0  # when the last solver step was done
    pcm: Float32 | None = None
    frames: UInt8 | None = None
    ms: dict[str, float] = {}  # queue, perform, render


class CloseJob(Message, frozen=True):
    """Frees everything the session holds in a stage; closing an unknown session is no error."""

    session: Name
    epoch: Count


Job = OpenJob | PerceiveJob | ThinkJob | PerformJob | CloseJob
Result = ThinkResult | PerformResult | float | None
