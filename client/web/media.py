"""Pictures between the wire and the model: JPEG or raw RGB <-> uint8 [n, H, W, 3].

The frames of one unit travel as a strip, one below the other: one image to encode, send and decode instead of four.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from client.stream.units import FRAMES_PER_UNIT, UInt8, UnitShape

JPEG_QUALITY = 92
MAX_PIXELS = 4096 * 4096  # of an image from outside, before it is scaled to the model's size


def encode_strip(frames: UInt8) -> bytes:
    """uint8 [n, H, W, 3] -> JPEG of n * H rows."""
    n, height, width, _ = frames.shape
    out = io.BytesIO()
    strip = Image.fromarray(frames.reshape(n * height, width, 3))
    strip.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # small faces suffer from halved colour
    return out.getvalue()


def decode_strip(data: bytes, shape: UnitShape) -> UInt8:
    """JPEG of 4 * H rows -> uint8 [4, H, W, 3]. Raises ValueError when it is no image of that size."""
    image = _open(data)
    expected = (shape.width, FRAMES_PER_UNIT * shape.height)
    if image.size != expected:
        raise ValueError(
            f"video: expected a strip of {expected[0]}x{expected[1]} pixels (4 frames), "
            f"got {image.size[0]}x{image.size[1]}"
        )
    return _pixels(image).reshape(shape.frames)


def raw_strip(data: bytes, shape: UnitShape) -> UInt8:
    """Raw RGB -> uint8 [4, H, W, 3]. Raises ValueError for another number of bytes."""
    expected = int(np.prod(shape.frames))
    if len(data) != expected:
        raise ValueError(f"video: expected {expected} bytes of RGB (4x{shape.height}x{shape.width}x3), got {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(shape.frames)


def decode_image(data: bytes, shape: UnitShape) -> UInt8:
    """One image of any size -> uint8 [1, H, W, 3], scaled to cover the model's frame and cropped around the centre.

    Raises ValueError when it is no image, or too large a one.
    """
    image = _open(data)
    scale = max(shape.width / image.width, shape.height / image.height)
    size = max(shape.width, round(image.width * scale)), max(shape.height, round(image.height * scale))
    image.draft("RGB", size)  # a JPEG is decoded at a fraction of its size where that is enough
    image = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    left, top = (size[0] - shape.width) // 2, (size[1] - shape.height) // 2
    return _pixels(image.crop((left, top, left + shape.width, top + shape.height)))[None]


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise ValueError(
            f"video: expected a JPEG, PNG or WebP image, got {len(data)} bytes of something else"
        ) from None
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise ValueError(f"video: expected at most {MAX_PIXELS} pixels, got {image.width}x{image.height}")
    return image


def _pixels(image: Image.Image) -> UInt8:
    try:
        return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.uint8))
    except (OSError, ValueError, SyntaxError) as error:  # truncated or damaged data shows only when it is decoded
        raise ValueError(f"video: the image cannot be decoded ({error})") from None
