"""Messages survive the trip over tensors; what is no message is refused."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from triton_models.runtime import wire
from triton_models.runtime.messages import (
    CloseJob,
    HistoryView,
    OpenJob,
    PerceiveJob,
    PerformJob,
    PerformResult,
    RenderJob,
    RenderResult,
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
    st.builds(ThinkJob, **heads, text=names, perceive=st.none() | perceives),
    st.builds(
        ThinkResult,
        **heads,
        state=names,
        text=names,
        history=histories,
        origin=counts,
        seed=counts,
        slots=st.lists(counts, max_size=4).map(tuple),
        ms=ms,
    ),
    st.builds(PerformJob, **heads, seed=counts, steps=counts, deadline_ns=counts, origin=counts, history=histories),
    st.builds(PerformResult, **heads, **latents, steps=counts, ms=ms),
    st.builds(RenderJob, **heads, **latents),
    st.builds(
        RenderResult, **heads, pcm=floats(1), frames=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4))
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
    tensors = wire.encode(message)
    assert all(isinstance(value, np.ndarray) for value in tensors.values())
    assert same(wire.decode(tensors), message)


def test_arrays_do_not_pass_through_json() -> None:
    job = PerceiveJob("s", 1, 0, np.ones(2560, np.float32), np.zeros((4, 64, 64, 3), np.uint8))
    tensors = wire.encode(ThinkJob("s", 1, 0, "hi", job))
    assert set(tensors) == {"message", "pcm", "frames"}
    assert tensors["pcm"] is job.pcm
    assert len(tensors["message"][0]) < 250


def header(value: object) -> np.ndarray:
    return np.array([json.dumps(value).encode()], np.object_)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({}, "message: expected 1 JSON header"),
        ({"message": np.array([b"{"], np.object_)}, "message: expected JSON"),
        ({"message": header({"$type": "os.system"})}, "message: expected one of"),
        ({"message": header({"$type": "CloseJob", "session": "s"})}, "CloseJob: expected the fields"),
        ({"message": header({"$type": "CloseJob", "session": "s", "epoch": 1, "x": 1})}, "CloseJob: expected the fie"),
        (
            {"message": header({"$type": "HistoryView"}), "page_ids": np.zeros(1, np.int64)},
            "HistoryView: expected the fields",
        ),
        (
            {
                "message": header({"$type": "HistoryView"}),
                "page_ids": np.zeros(1, np.int32),
                "ranges": np.zeros((1, 2), np.int64),
            },
            "page_ids: expected int64 with 1 axes, got int32",
        ),
    ],
)
def test_what_is_no_message_is_refused(tensors: dict[str, np.ndarray], expected: str) -> None:
    with pytest.raises(wire.WireError, match=expected):
        wire.decode(tensors)


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
