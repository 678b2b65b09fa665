"""Messages survive the trip over tensors; what is no message, or nobody's job, is refused."""

from __future__ import annotations

import contextlib
import math
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from triton_models.backend import wire
from triton_models.runtime.messages import (
    CloseJob,
    HistoryView,
    Job,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    Result,
    SessionError,
    ThinkJob,
    ThinkResult,
)

pytestmark = pytest.mark.unit

SECRET = bytes(range(32))
names = st.text(min_size=1, max_size=20)
counts = st.integers(0, 2**62)
seeds = st.integers(0, 2**64 - 1)
ms = st.dictionaries(st.sampled_from(["perceive", "think", "queue"]), st.floats(0, 1e6), max_size=3)
heads = {"session": names, "epoch": counts, "unit": counts}


def floats(axes: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, hnp.array_shapes(min_dims=axes, max_dims=axes, max_side=4))


def integers(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.int64, shape, elements=st.integers(-(2**63), 2**63 - 1))


histories = st.integers(1, 5).flatmap(lambda p: st.builds(HistoryView, integers((p,)), integers((p, 2))))
pictures = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4))
perceives = st.builds(PerceiveJob, **heads, pcm=floats(1), frames=pictures)
latents = {"z_video": floats(2), "z_audio": floats(2)}
steps = st.integers(1, 16)
jobs = st.one_of(
    perceives,
    st.builds(
        OpenJob,
        session=names,
        epoch=counts,
        prompt=names,
        seed=seeds,
        retention=st.sampled_from(["full", {"window": {"sink": 4, "recent": 50}}]),
    ),
    st.builds(
        ThinkJob,
        **heads,
        text=names,
        perceive=st.none() | perceives,
        z_video=st.none() | floats(2),
        z_audio=st.none() | floats(2),
        latest_ns=st.none() | counts,
        steps=steps,
        deadline_ns=counts,
    ),
    st.builds(
        PerformJob,
        **heads,
        seed=seeds,
        steps=steps,
        deadline_ns=counts,
        origin=counts,
        history=st.none() | histories,
        seal=st.binary(max_size=16),
    ),
    st.builds(CloseJob, session=names, epoch=counts),
)
results = st.one_of(
    st.none(),
    st.floats(0, 1e6),
    st.builds(
        ThinkResult,
        **heads,
        state=names,
        text=names,
        history=st.none() | histories,
        origin=counts,
        seed=seeds,
        slots=st.lists(counts, max_size=4).map(tuple),
        seal=st.binary(max_size=16),
        ms=ms,
    ),
    st.builds(
        PerformResult,
        **heads,
        **latents,
        steps=counts,
        solved_ns=counts,
        pcm=st.none() | floats(1),
        frames=st.none() | pictures,
        ms=ms,
    ),
)


def same(a: object, b: object) -> bool:
    if isinstance(a, msgspec.Struct):
        return type(a) is type(b) and all(same(getattr(a, f), getattr(b, f)) for f in a.__struct_fields__)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tobytes() == b.tobytes() and a.shape == b.shape
    return type(a) is type(b) and a == b


@settings(max_examples=100, deadline=None)
@given(jobs, results)
def test_round_trip(job: Job, result: Result) -> None:
    packed = wire.encode(job, SECRET)
    assert (packed.dtype, packed.ndim) == (np.uint8, 1)
    assert same(wire.decode_job(packed, SECRET), job)
    assert same(wire.decode_result(wire.encode(result)), result)


def test_arrays_do_not_pass_through_the_header() -> None:
    job = PerceiveJob("s", 1, 0, np.ones(2560, np.float32), np.zeros((4, 64, 64, 3), np.uint8))
    packed = wire.encode(ThinkJob("s", 1, 0, "hi", job), SECRET)
    assert len(packed) < job.pcm.nbytes + job.frames.nbytes + 150
    got = wire.decode_job(packed, SECRET)
    assert isinstance(got, ThinkJob)
    assert got.perceive is not None
    assert got.perceive.pcm.base is not None, "a view, not a copy"


@pytest.mark.parametrize("key", [b"", bytes(32), SECRET[:31], SECRET[1:] + b"\0"])
def test_nothing_is_read_without_the_secret(key: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """H1, H5: whoever reaches the port packs a CloseJob with somebody's name."""
    monkeypatch.setattr(wire, "_decode", lambda *_: pytest.fail("it was read"))
    packed = wire.encode(CloseJob("str:support-call#2", 1), key)
    for expected in (SECRET, b""):
        with pytest.raises(wire.Refused, match="takes jobs of the duplex model alone"):
            wire.decode_job(packed, expected)


def pack(content: object, body: bytes = b"") -> np.ndarray:
    header = msgspec.msgpack.encode(content)
    packed = struct.pack("<I", len(header)) + header
    return np.frombuffer(SECRET + packed + bytes(-len(packed) % 8) * bool(body) + body, np.uint8)


VIEW, BODY = ["HistoryView", [1], [1, 2]], bytes(24)


def perform(**changes: Any) -> list[object]:
    fields = {"session": "s", "epoch": 1, "unit": 0, "seed": 0, "steps": 4, "deadline_ns": 0, "origin": 0}
    return ["PerformJob", *(fields | changes).values()]


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (np.frombuffer(SECRET + b"\0\0", np.uint8), "message: expected a header, got 2 bytes"),
        (np.frombuffer(SECRET + b"\xff\xff\0\0{}", np.uint8), "message: "),
        (pack(None), r"Expected `array`, got `None`"),  # H3: eight bytes that ended other sessions' units
        (pack([]), "Expected `array` of at least length"),
        (pack(["os.system"]), "Invalid value 'os.system'"),
        (pack(["CloseJob", [1], 1]), "Expected `str`, got `array`"),  # H3
        (pack(["CloseJob", "s"]), "at least length 3"),
        (pack(["CloseJob", "s", 1, 1]), "at most length 2, got 3"),
        (pack(["CloseJob", "", 1]), "length >= 1"),
        (pack(["CloseJob", "s", -1]), "Expected `int` >= 0"),
        (pack(["CloseJob", "s", 2**63]), "Expected `int` <="),
        (pack(perform(deadline_ns="soon")), "Expected `int`, got `str`"),  # H4: deadlines that cannot be compared
        (pack(perform(deadline_ns=math.nan)), "Expected `int`, got `float`"),
        (pack(perform(steps=0)), "Expected `int` >= 1"),
        (pack(["OpenJob", "s", 1, "x" * 16_385]), "length <= 16384"),  # H7: before it is tokenised
        (pack([*perform(), VIEW], bytes(16)), r"expected \d+ bytes in all"),
        (pack([*perform(), VIEW], bytes(32)), r"message: expected \d+ bytes, got"),
        (pack([*perform(), ["HistoryView", [-1], [1, 2]]]), "expected the shape of an array"),
        (pack([*perform(), ["HistoryView", "1", [1, 2]]]), "expected the shape of an array"),
        (pack([*perform(), ["CloseJob", "s", 1]], BODY), "Invalid value 'CloseJob'"),
    ],
)
def test_what_is_no_job_is_refused(packed: np.ndarray, expected: str) -> None:
    with pytest.raises(wire.WireError, match=expected):
        wire.decode_job(packed, SECRET)


@settings(max_examples=200, deadline=None)
@given(jobs, st.data())
def test_damaged_messages_are_refused_or_read_but_never_crash(job: Job, data: st.DataObject) -> None:
    packed = wire.encode(job, SECRET).copy()
    packed[data.draw(st.integers(32, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(wire.WireError):
        wire.decode_job(packed[: data.draw(st.integers(32, len(packed)))], SECRET)


def test_what_is_no_message_is_not_sent() -> None:
    with pytest.raises(wire.WireError, match=r"expected one of messages\.py, got PosixPath"):
        wire.encode(__import__("pathlib").Path())  # pyright: ignore


@pytest.mark.parametrize("code", wire.CODES)
def test_errors_round_trip(code: str) -> None:
    error = SessionError(code, "kv pages: session 'a' needs 3 more,\n0 of 7 are free: RESOURCE")
    back = wire.read_error(f"in model 'thinker': {wire.error_text(error)}", "thinker")
    assert (back.code, back.message) == (error.code, error.message)


def test_errors_without_a_code() -> None:
    assert wire.read_error("Stub process 'stage_0_0' is not healthy.", "stage").code == "UNAVAILABLE"
    assert wire.error_text(KeyError("x")) == "INTERNAL: KeyError: 'x'"
