"""Messages survive the trip over tensors; what is no message is refused."""

from __future__ import annotations

import contextlib
import json
import struct
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from triton_models.backend import wire
from triton_models.runtime.messages import (
    CloseJob,
    HandOver,
    HistoryView,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    SessionError,
    ThinkJob,
    ThinkResult,
)

pytestmark = pytest.mark.unit

names = st.text(max_size=20)
counts = st.integers(0, 2**62)
ms = st.dictionaries(st.sampled_from(["perceive", "think", "queue"]), st.floats(0, 1e6), max_size=3)
heads = {"session": names, "epoch": counts, "unit": counts}


def floats(axes: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, hnp.array_shapes(min_dims=axes, max_dims=axes, max_side=4))


def integers(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.int64, shape, elements=st.integers(-(2**63), 2**63 - 1))


histories = st.integers(1, 5).flatmap(lambda p: st.builds(HistoryView, integers((p,)), integers((p, 2))))
perceives = st.builds(
    PerceiveJob, **heads, pcm=floats(1), frames=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4))
)
latents = {"z_video": floats(2), "z_audio": floats(2)}
messages = st.one_of(
    st.none(),
    st.floats(0, 1e6),
    perceives,
    histories,
    st.builds(
        OpenJob,
        session=names,
        epoch=counts,
        prompt=names,
        seed=counts,
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
    ),
    st.builds(
        ThinkResult,
        **heads,
        state=names,
        text=names,
        history=histories,
        origin=counts,
        seed=counts,
        slots=st.lists(counts, max_size=4).map(tuple),
        handed=st.booleans(),
        ms=ms,
    ),
    st.builds(HandOver, **heads, seed=counts, origin=counts, history=histories, sent_ns=counts),
    st.builds(
        PerformJob,
        **heads,
        seed=counts,
        steps=counts,
        deadline_ns=counts,
        origin=counts,
        history=st.none() | histories,
        sent_ns=counts,
    ),
    st.builds(
        PerformResult,
        **heads,
        **latents,
        steps=counts,
        solved_ns=counts,
        pcm=st.none() | floats(1),
        frames=st.none() | hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4)),
        ms=ms,
    ),
    st.builds(CloseJob, session=names, epoch=counts),
)


def same(a: object, b: object) -> bool:
    if is_dataclass(a) and not isinstance(a, type):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tobytes() == b.tobytes() and a.shape == b.shape
    return type(a) is type(b) and a == b


@settings(max_examples=200, deadline=None)
@given(messages)
def test_round_trip(message: object) -> None:
    packed = wire.encode(message)
    assert (packed.dtype, packed.ndim) == (np.uint8, 1)
    assert same(wire.decode(packed), message)


def test_arrays_do_not_pass_through_json() -> None:
    job = PerceiveJob("s", 1, 0, np.ones(2560, np.float32), np.zeros((4, 64, 64, 3), np.uint8))
    packed = wire.encode(ThinkJob("s", 1, 0, "hi", job))
    assert len(packed) < job.pcm.nbytes + job.frames.nbytes + 150
    assert wire.decode(packed).perceive.pcm.base is not None, "a view, not a copy"


def pack(content: object, body: bytes = b"") -> np.ndarray:
    header = json.dumps(content).encode()
    packed = struct.pack("<I", len(header)) + header
    return np.frombuffer(packed + bytes(-len(packed) % 8) * bool(body) + body, np.uint8)


VIEW = ["HistoryView", [1], [1, 2]]
BODY = bytes(24)


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (np.zeros(2, np.uint8), "message: expected uint8"),
        (np.zeros((4, 4), np.uint8), "message: expected uint8"),
        (np.zeros(40, np.float32), "message: expected uint8"),
        (np.frombuffer(b"\x02\0\0\0{{", np.uint8), "expected a JSON header of 2 bytes"),
        (np.frombuffer(b"\xff\xff\0\0{}", np.uint8), "expected a JSON header of 65535 bytes"),
        (np.frombuffer(b"\x02\0\0\0{}", np.uint8), "message: expected a number, null or a list, got {}"),
        (pack([]), r"message: expected one of .*, got \[\]"),
        (pack(["os.system"]), "message: expected one of .*, got 'os.system'"),
        (pack([["CloseJob"], 1]), "message: expected one of"),
        (pack(["CloseJob", "s"]), "CloseJob: expected the fields session, epoch, got 1 values"),
        (pack(["CloseJob", "s", 1, 1]), "CloseJob: expected the fields session, epoch, got 3 values"),
        (pack(["HistoryView", [1], None], BODY), "HistoryView: expected the field ranges, got null"),
        (pack(VIEW, bytes(16)), r"ranges: expected \d+ bytes, got"),
        (pack(VIEW, bytes(32)), r"message: expected \d+ bytes, got"),
        (pack(["HistoryView", [-1], [1, 2]]), "page_ids: expected a shape"),
        (pack(["HistoryView", "1", [1, 2]]), "page_ids: expected a shape"),
        (pack(["HistoryView", [1, 1], [1, 2]]), "page_ids: expected int64 with 1 axes"),
        (pack(["ThinkJob", "s", 1, 0, "", VIEW, None, None, None], BODY), "expected perceive to be a PerceiveJob"),
        (pack(["ThinkJob", "s", 1, 0, "", 7, None, None, None]), "message: expected one of .*, got 7"),
        (pack(["ThinkResult", "s", 1, 0, "", "", VIEW, 0, 0, 5, {}, False], BODY), "expected slots as a list, got 5"),
    ],
)
def test_what_is_no_message_is_refused(packed: np.ndarray, expected: str) -> None:
    with pytest.raises(wire.WireError, match=expected):
        wire.decode(packed)


@settings(max_examples=300, deadline=None)
@given(messages, st.data())
def test_damaged_messages_are_refused_or_read_but_never_crash(message: object, data: st.DataObject) -> None:
    packed = wire.encode(message).copy()
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(wire.WireError):
        wire.decode(packed[: data.draw(st.integers(0, len(packed)))])


def test_arrays_of_the_wrong_type_are_not_sent() -> None:
    with pytest.raises(wire.WireError, match="pcm: expected float32 with 1 axes, got float64 with 1 axes"):
        wire.encode(PerceiveJob("s", 1, 0, np.zeros(4), np.zeros((1, 1, 1, 1), np.uint8)))  # pyright: ignore


def test_unknown_classes_are_not_sent() -> None:
    with pytest.raises(wire.WireError, match="expected one of"):
        wire.encode(HistoryLike(np.zeros(1, np.int64)))


class HistoryLike(HistoryView):
    def __init__(self, ids: np.ndarray) -> None:
        super().__init__(ids, np.zeros((1, 2), np.int64))


@pytest.mark.parametrize("code", wire.CODES)
def test_errors_round_trip(code: str) -> None:
    error = SessionError(code, "kv pages: session 'a' needs 3 more,\n0 of 7 are free: RESOURCE")
    back = wire.read_error(f"in model 'thinker': {wire.error_text(error)}", "thinker")
    assert (back.code, back.message) == (error.code, error.message)


def test_errors_without_a_code() -> None:
    assert wire.read_error("Stub process 'thinker_0_0' is not healthy.", "thinker").code == "UNAVAILABLE"
    assert wire.error_text(KeyError("x")) == "INTERNAL: KeyError: 'x'"
