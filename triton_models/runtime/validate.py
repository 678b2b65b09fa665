"""Border checks: what a client may send. Every message names the field, what was expected and what came.

All functions raise ValueError and return the value in the form the runtime uses; the caller turns the error into
INVALID_ARGUMENT on that stream. They copy only when the array is not contiguous.
"""

from __future__ import annotations

import numpy as np

from engine_builder.config import FRAMES_PER_UNIT, UNIT_MS, ModelConfig

from .messages import MAX_TEXT_BYTES, Float32, UInt8

# Full scale is 1.0. Float senders overshoot it (inter-sample peaks, gain before a limiter): 4.0 leaves 12 dB for that,
# and still catches the usual mistake, int16 samples that were cast and not scaled.
MAX_PCM = 4.0


def pcm(value: np.ndarray, config: ModelConfig) -> Float32:
    """One unit of user sound: float32 [N], finite, |sample| <= MAX_PCM."""
    samples = config.audio.unit_samples
    if value.dtype != np.float32 or value.shape != (samples,):
        raise ValueError(f"pcm: expected {samples} float32 samples for one {UNIT_MS} ms unit, got {_describe(value)}")
    peak = float(np.abs(value).max())
    if not peak <= MAX_PCM:  # a NaN neither
        finite = np.isfinite(value)
        if not finite.all():
            at = int(np.argmin(finite))
            raise ValueError(f"pcm: expected finite samples, got {value[at]} at sample {at}")
        raise ValueError(f"pcm: expected samples within +-{MAX_PCM} (full scale is 1.0), got a peak of {peak:.6g}")
    return np.ascontiguousarray(value)


def frames(value: np.ndarray, config: ModelConfig) -> UInt8:
    """One unit of user pictures: uint8 [4, H, W, 3], RGB."""
    shape = (FRAMES_PER_UNIT, config.video.height, config.video.width, 3)
    if value.dtype != np.uint8 or value.shape != shape:
        raise ValueError(f"frames: expected uint8 {list(shape)} for one {UNIT_MS} ms unit, got {_describe(value)}")
    return np.ascontiguousarray(value)


def text(value: object, limit: int = MAX_TEXT_BYTES) -> str:
    """Typed text of one unit: str or UTF-8 bytes of at most `limit`, or None for no text."""
    if value is None:
        return ""
    if not isinstance(value, str | bytes):
        raise ValueError(f"text: expected UTF-8 bytes, got {type(value).__name__}")
    try:
        data = value if isinstance(value, bytes) else value.encode()
        decoded = data.decode()
    except UnicodeError as error:
        raise ValueError(f"text: expected UTF-8, got {error}") from None
    if len(data) > limit:
        raise ValueError(f"text: expected at most {limit} bytes of UTF-8 in one unit, got {len(data)}")
    return decoded


def latents(name: str, value: np.ndarray, tokens: int, channels: int) -> Float32:
    """Clean latents on their way back into the thinker: float32 [tokens, channels], finite."""
    if value.dtype != np.float32 or value.shape != (tokens, channels):
        raise ValueError(f"{name}: expected float32 [{tokens}, {channels}], got {_describe(value)}")
    if not finite(value):
        raise ValueError(f"{name}: expected finite values, got {int((~np.isfinite(value)).sum())} NaN or Inf")
    return value


def history(page_ids: np.ndarray, ranges: np.ndarray, num_pages: int, page_tokens: int) -> None:
    """A page table from another process: int64 [P] and [P, 2], P >= 1, inside the pool.

    One id out of range would fail the engine call of a whole batch, so it is caught before it joins one.
    """
    if page_ids.dtype != np.int64 or page_ids.ndim != 1 or len(page_ids) < 1:
        raise ValueError(f"history.page_ids: expected int64 [P] with P >= 1, got {_describe(page_ids)}")
    if ranges.dtype != np.int64 or ranges.shape != (len(page_ids), 2):
        raise ValueError(f"history.ranges: expected int64 [{len(page_ids)}, 2], got {_describe(ranges)}")
    # Lists: the solver waits for this with cold caches, where each kind of numpy call costs more than a hundred pages.
    pages, spans = page_ids.tolist(), ranges.tolist()
    if min(pages) < 0 or max(pages) >= num_pages:
        raise ValueError(f"history.page_ids: expected 0 to {num_pages - 1}, got {min(pages)} to {max(pages)}")
    for first, end in spans:
        if not 0 <= first <= end <= page_tokens:
            raise ValueError(f"history.ranges: expected 0 <= first <= end <= {page_tokens}, got {spans}")


def finite(*arrays: np.ndarray) -> bool:
    """Whether arrays hold neither NaN nor Inf."""
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _describe(value: np.ndarray) -> str:
    return f"{value.shape[0]} {value.dtype}" if value.ndim == 1 else f"{value.dtype} {list(value.shape)}"
