"""Sound and pictures between the wire and the model.

Sound: bytes <-> float32 -1..1, and from one sample rate to another. Pictures: JPEG or raw RGB <-> uint8 [n, H, W, 3];
the frames of one unit travel as a strip, one below the other: one image to encode, send and decode instead of four.
"""

from __future__ import annotations

import asyncio
import base64
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from PIL import Image

from client.media.pictures import to_rgb
from client.media.sound import to_pcm16
from client.stream import UnitShape
from client.stream.units import FRAMES_PER_UNIT, Float32, UInt8

LOWEST_RATE, HIGHEST_RATE = 8_000, 48_000
G711_RATE = 8_000
JPEG_QUALITY = 92
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THEIR_SIDE = [_TURNS[number] for number in (5, 6, 7, 8)]
MAX_SIDE = 8192  # pixels of an image from outside
MAX_DECODED = 1 << 22  # pixels in memory: 12 MB of RGB; a JPEG may be larger, for it is decoded at a fraction


_decoders = ThreadPoolExecutor(2, "picture")  # images from outside in memory at once, whoever sends them


# -- sound ------------------------------------------------------------------------------------------------------
def _mu_law() -> Float32:
    """ITU-T G.711: what each byte stands for, [256]."""
    code = ~np.arange(256) & 0xFF
    size = (((code & 15) << 3) + 132 << (code >> 4 & 7)) - 132
    return (np.where(code & 0x80, -size, size) / 32768).astype(np.float32)


def _a_law() -> Float32:
    code = np.arange(256) ^ 0x55
    step, size = code >> 4 & 7, (code & 15) << 4
    size = np.where(step, size + 264 << np.maximum(step - 1, 0), size + 8)
    return (np.where(code & 0x80, size, -size) / 32768).astype(np.float32)


_G711 = {"pcmu": _mu_law(), "pcma": _a_law()}


@dataclass(frozen=True)
class Format:
    """Mono samples as bytes. kind: pcm (16-bit little-endian), pcmu or pcma (G.711, one byte a sample)."""

    kind: str = "pcm"
    rate: int = 24_000

    @property
    def width(self) -> int:
        """Bytes of a sample."""
        return 2 if self.kind == "pcm" else 1

    def decode(self, data: bytes) -> Float32:
        """-> float32 [n] in -1..1. Raises ValueError for half a sample."""
        return from_pcm16(data) if self.kind == "pcm" else _G711[self.kind][np.frombuffer(data, np.uint8)]

    def encode(self, pcm: Float32) -> bytes:
        if self.kind == "pcm":
            return to_pcm16(pcm)
        order = np.argsort(_G711[self.kind])
        levels = _G711[self.kind][order]
        return order[np.searchsorted((levels[1:] + levels[:-1]) / 2, np.nan_to_num(pcm))].astype(np.uint8).tobytes()


def from_pcm16(data: bytes) -> Float32:
    """16-bit little-endian mono -> float32 [n] in -1..1. Raises ValueError for half a sample."""
    if len(data) % 2:
        raise ValueError(f"audio: expected an even number of bytes (16-bit samples), got {len(data)}")
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768.0


class Resampler:
    """A stream of mono samples from one rate to another; keeps the filter's state between calls."""

    def __init__(self, source: int, target: int) -> None:
        for name, rate in (("source", source), ("target", target)):
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise ValueError(f"{name} rate: expected {LOWEST_RATE} to {HIGHEST_RATE} Hz, got {rate}")
        self.source, self.target = source, target
        self._filter = None if source == target else av.AudioResampler(format="flt", layout="mono", rate=target)
        # What the filter holds back is silence: else the packet that ends a unit lacked 1 ms of it, and the next was
        # waited for.
        self.feed(np.zeros(source // 100, np.float32))

    def feed(self, pcm: Float32) -> Float32:
        """float32 [n] at the source rate -> float32 [about n * target / source] at the target rate."""
        if self._filter is None or not pcm.size:
            return pcm
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(pcm[None]), format="flt", layout="mono")
        frame.sample_rate = self.source
        parts = [part.to_ndarray().reshape(-1) for part in self._filter.resample(frame)]
        return np.concatenate(parts).astype(np.float32, copy=False) if parts else np.zeros(0, np.float32)


# -- pictures ---------------------------------------------------------------------------------------------------
def encode_strip(frames: UInt8) -> bytes:
    """uint8 [n, H, W, 3] -> JPEG of n * H rows."""
    n, height, width, _ = frames.shape
    out = io.BytesIO()
    strip = Image.fromarray(frames.reshape(n * height, width, 3))
    strip.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # small faces suffer from halved colour
    return out.getvalue()


async def show_strip(frames: UInt8) -> dict[str, Any]:
    """The fields of a `wan.video.delta` event."""
    strip = await asyncio.to_thread(encode_strip, frames)
    return {"format": "jpeg", "frames": len(frames), "delta": base64.b64encode(strip).decode()}


def decode_strip(data: bytes, shape: UnitShape) -> UInt8:
    """JPEG of 4 * H rows -> uint8 [4, H, W, 3]. Raises ValueError when it is no image of that size."""
    image = open_image(data)
    width, height = shape.width, FRAMES_PER_UNIT * shape.height
    if image.size != (width, height):
        raise ValueError(f"video: expected a strip of {width}x{height} pixels (4 frames), got {_size(image)}")
    return np.asarray(_decoded(image)).reshape(shape.frames)


def raw_strip(data: bytes, shape: UnitShape) -> UInt8:
    """Raw RGB -> uint8 [4, H, W, 3]. Raises ValueError for another number of bytes."""
    expected = int(np.prod(shape.frames))
    if len(data) != expected:
        raise ValueError(f"video: expected {expected} bytes of RGB (4x{shape.height}x{shape.width}x3), got {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(shape.frames)


def open_image(data: bytes) -> Image.Image:
    """Reads the head of an image only, and how large it would be: nothing is decoded. Raises ValueError."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except (OSError, ValueError, Image.DecompressionBombError):
        got = f"{len(data)} bytes of something else"
        raise ValueError(f"video: expected a JPEG, PNG or WebP image, got {got}") from None
    if not 0 < min(image.size) <= max(image.size) <= MAX_SIDE:
        raise ValueError(f"video: expected at most {MAX_SIDE} pixels a side, got {_size(image)}")
    return image


async def decode_in_turn(image: Image.Image, shape: UnitShape) -> UInt8:
    """`fit_image` in a thread; few are decoded at a time."""
    return await asyncio.get_running_loop().run_in_executor(_decoders, fit_image, image, shape)


def fit_image(image: Image.Image, shape: UnitShape) -> UInt8:
    """An image of `open_image` -> uint8 [1, H, W, 3]: the largest part around the centre that has the frame's shape.

    It is cut out before it is scaled, so that no picture on the way is larger than the one that was sent. Raises
    ValueError when it would be too large in memory.
    """
    turn = _turn(image)
    size = (shape.height, shape.width) if turn in _ON_THEIR_SIDE else (shape.width, shape.height)
    scale = min(image.width / size[0], image.height / size[1])
    image.draft("RGB", (round(image.width / scale), round(image.height / scale)))
    if image.width * image.height > MAX_DECODED:
        raise ValueError(f"video: expected at most {MAX_DECODED} pixels, got {_size(image)}")
    scale = min(image.width / size[0], image.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (max(0.0, left), max(0.0, top), min(image.width, left + width), min(image.height, top + height))
    small = _decoded(image).resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return np.asarray(small if turn is None else small.transpose(turn))[None]


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How a viewer turns it: phones say in the EXIF how they were held."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # what Pillow cannot read, and there is much that it raises, turns nothing
        return None


def _decoded(image: Image.Image) -> Image.Image:
    try:
        return to_rgb(image)
    except (OSError, ValueError, SyntaxError) as error:  # truncated or damaged data shows only when it is decoded
        raise ValueError(f"video: the image cannot be decoded ({error})") from None


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
