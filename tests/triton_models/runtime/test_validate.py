"""Border checks: the exact words a client reads."""

from __future__ import annotations

import numpy as np
import pytest

from engine_builder.presets import preset
from triton_models.runtime import validate

pytestmark = pytest.mark.unit

CONFIG = preset("tiny")
SAMPLES = CONFIG.audio.unit_samples


def pcm_with(index: int, value: float) -> np.ndarray:
    pcm = np.zeros(SAMPLES, dtype=np.float32)
    pcm[index] = value
    return pcm


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(2400, np.int16), "pcm: expected 2560 float32 samples for one 160 ms unit, got 2400 int16"),
        (np.zeros(2400, np.float32), "pcm: expected 2560 float32 samples for one 160 ms unit, got 2400 float32"),
        (np.zeros(2560, np.float64), "pcm: expected 2560 float32 samples for one 160 ms unit, got 2560 float64"),
        (
            np.zeros((1, 2560), np.float32),
            "pcm: expected 2560 float32 samples for one 160 ms unit, got float32 [1, 2560]",
        ),
        (pcm_with(17, np.nan), "pcm: expected finite samples, got nan at sample 17"),
        (pcm_with(0, -np.inf), "pcm: expected finite samples, got -inf at sample 0"),
        (
            pcm_with(5, -12000.0),
            "pcm: expected samples within +-4.0 (full scale is 1.0), got a peak of 12000",
        ),
    ],
)
def test_pcm_errors(value: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        validate.pcm(value, CONFIG)
    assert str(caught.value) == message


def test_pcm_is_passed_through_and_made_contiguous() -> None:
    good = pcm_with(3, 1.5)
    assert validate.pcm(good, CONFIG) is good
    strided = np.zeros(2 * SAMPLES, np.float32)[::2]
    assert validate.pcm(strided, CONFIG).flags.c_contiguous


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.zeros((4, 64, 64, 3), np.float32), "float32 [4, 64, 64, 3]"),
        (np.zeros((4, 64, 48, 3), np.uint8), "uint8 [4, 64, 48, 3]"),
        (np.zeros((3, 64, 64, 3), np.uint8), "uint8 [3, 64, 64, 3]"),
        (np.zeros(5, np.uint8), "5 uint8"),
    ],
)
def test_frames_errors(value: np.ndarray, got: str) -> None:
    with pytest.raises(ValueError) as caught:
        validate.frames(value, CONFIG)
    assert str(caught.value) == f"frames: expected uint8 [4, 64, 64, 3] for one 160 ms unit, got {got}"


def test_frames_are_passed_through() -> None:
    good = np.zeros((4, 64, 64, 3), np.uint8)
    assert validate.frames(good, CONFIG) is good


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\xff\xfe", "text: expected UTF-8, got "),
        ("\ud800", "text: expected UTF-8, got "),
        (7, "text: expected UTF-8 bytes, got int"),
        ("x" * 4097, "text: expected at most 4096 bytes of UTF-8 in one unit, got 4097"),
        ("ü" * 2049, "text: expected at most 4096 bytes of UTF-8 in one unit, got 4098"),
    ],
)
def test_text_errors(value: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        validate.text(value)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("value", "expected"), [(None, ""), (b"gr\xc3\xbcn", "grün"), ("x" * 4096, "x" * 4096)])
def test_text_is_decoded(value: object, expected: str) -> None:
    assert validate.text(value) == expected


def test_latents_name_shape_and_numbers() -> None:
    good = np.ones((2, 3), np.float32)
    assert validate.latents("z_audio", good, 2, 3) is good
    with pytest.raises(ValueError, match=r"z_audio: expected float32 \[2, 4\], got float32 \[2, 3\]"):
        validate.latents("z_audio", good, 2, 4)
    with pytest.raises(ValueError, match="z_audio: expected finite values, got 2 NaN or Inf"):
        validate.latents("z_audio", np.array([[np.nan, 1, np.inf]], np.float32), 1, 3)


@pytest.mark.parametrize(
    ("ids", "ranges", "message"),
    [
        (np.array([1], np.int32), [[0, 4]], "history.page_ids: expected int64"),
        (np.zeros(0, np.int64), np.zeros((0, 2)), "history.page_ids: expected int64"),
        (np.array([1, 2]), [[0, 4]], r"history.ranges: expected int64 \[2, 2\]"),
        (np.array([1, 9]), [[0, 4], [0, 4]], "history.page_ids: expected 0 to 8, got 1 to 9"),
        (np.array([-1, 2]), [[0, 4], [0, 4]], "history.page_ids: expected 0 to 8, got -1 to 2"),
        (np.array([1]), [[0, 5]], "history.ranges: expected 0 <= first <= end <= 4"),
        (np.array([1]), [[3, 2]], "history.ranges: expected 0 <= first <= end <= 4"),
    ],
)
def test_history_errors(ids: np.ndarray, ranges: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate.history(ids, np.asarray(ranges, dtype=np.int64), num_pages=9, page_tokens=4)


def test_history_accepts_what_a_page_table_gives() -> None:
    validate.history(np.array([0, 8]), np.array([[0, 0], [2, 4]]), num_pages=9, page_tokens=4)


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 4), (3, 7000)])
def test_finite_finds_one_bad_number_anywhere(shape: tuple[int, ...]) -> None:
    array = np.full(shape, -3e38, np.float32)  # of which any sum and any product overflows
    assert validate.finite(array, array.T)
    for bad in (np.nan, np.inf, -np.inf):
        for place in {0, array.size // 2, array.size - 1} if array.size else ():
            spoiled = array.copy()
            spoiled.reshape(-1)[place] = bad
            assert not validate.finite(spoiled)
            assert not validate.finite(array, spoiled.T)
