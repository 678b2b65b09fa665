"""Any pictures -> 25 fps RGB at the model's size.

They are scaled until they cover it and cropped around the centre (no bars, no distortion), turned and mirrored as a
viewer shows them; a frame is shown until the next one is due. A still image stays; a video that ends before the
conversation holds its last frame or, with `loop`, starts again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image, ImageOps, ImageSequence

from ..stream.errors import MediaError
from ..stream.units import FPS, UInt8
from .container import Clock, Reading, opened, stream_of
from .hdr import HLG, PQ, toned

IMAGES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # by Pillow: it turns them by their EXIF, and WebP moves
MOVING = ("PNG", "WEBP", "GIF")
GIF_SECONDS = 0.1  # of a frame that gives no time, as browsers do
STRIP = 16  # times the wanted picture: what is larger when scaled is cropped first


class VideoFile:
    """The pictures of a file at 25 fps and height x width; a picture without an end (see the module's text).

    notes: sentences about what is not as it should be.
    """

    def __init__(self, path: Path, height: int, width: int, *, loop: bool = False) -> None:
        """Decodes the first picture and looks for the end. Raises MediaError when there is no picture."""
        self.path, self.height, self.width, self.loop = path, height, width, loop
        self.notes: list[str] = []
        self._image = _is_image(path)
        if next(self._once(), None) is None:
            raise MediaError(f"{path}: the video stream is empty")
        self.seconds = float(self._length())

    @property
    def still(self) -> bool:
        """Whether there is only one picture."""
        return self.seconds == 0.0

    def frames(self) -> Iterator[UInt8]:
        """uint8 [H, W, 3] every 40 ms, for ever."""
        last: UInt8 | None = None
        while last is None or (self.loop and not self.still):
            for last in self._once():
                yield last
        while True:
            yield last

    def _once(self) -> Iterator[UInt8]:
        """One pass over the file, resampled to 25 fps: picture i is the newest that was due at i / 25 s."""
        tick = Fraction(0)  # when the next picture is due
        newest: VideoFrame | Image.Image | None = None
        picture: UInt8 | None = None  # `newest`, converted when it turned out to be seen
        for frame, due in self._drawn() if self._image else self._filmed():
            while newest is not None and tick < due:
                if picture is None:
                    picture = self._fit(newest)
                yield picture
                tick += Fraction(1, FPS)
            newest, picture = frame, None

    def _filmed(self) -> Iterator[tuple[VideoFrame | None, Fraction]]:
        """Frames and when each is due; at last None and the end."""
        with opened(self.path) as container:
            stream = stream_of(self.path, container, "video")
            stream.thread_type = "AUTO"
            self._aspect = stream.sample_aspect_ratio
            clock, reading, count = Clock(container), Reading(container, stream), 0
            for frame in reading.frames():
                count += 1
                yield frame, clock.place(frame.pts, frame.time_base, frame.duration, stream)
            if not count and reading.errors:
                raise MediaError(f"{self.path}: the video cannot be decoded ({reading.why})")
            if reading.errors:
                self.notes[:] = [f"{self.path}: {reading.errors} pictures cannot be decoded ({reading.why})"]
            yield None, clock.end

    def _drawn(self) -> Iterator[tuple[Image.Image | None, Fraction]]:
        due = Fraction(0)
        try:
            with Image.open(self.path, formats=IMAGES) as file:
                for frame in ImageSequence.Iterator(file) if file.format in MOVING else (file,):
                    ImageOps.exif_transpose(frame, in_place=True)
                    yield to_rgb(frame), due
                    due += Fraction((frame.info.get("duration") or GIF_SECONDS * 1e3) / 1e3).limit_denominator(1000)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if not due:
                raise MediaError(f"{self.path}: the picture cannot be decoded ({error})") from None
            self.notes[:] = [f"{self.path}: breaks off after {float(due):.2f} s ({error})"]
        yield None, due

    def _length(self) -> Fraction:
        """Seconds of moving picture, 0 for a still."""
        if self._image:
            with Image.open(self.path, formats=IMAGES) as file:
                if file.format not in MOVING or getattr(file, "n_frames", 1) == 1:
                    return Fraction(0)
            return max(due for _, due in self._drawn())
        with opened(self.path) as container:
            return Reading(container, stream_of(self.path, container, "video")).length()

    def _fit(self, frame: VideoFrame | Image.Image) -> UInt8:
        """Scales to cover height x width and crops around the centre."""
        if isinstance(frame, Image.Image):
            return np.asarray(ImageOps.fit(frame, (self.width, self.height), Image.Resampling.BICUBIC))
        turn = _turned(frame)
        high, wide = (self.width, self.height) if turn[0] else (self.height, self.width)
        aspect = float(self._aspect) if self._aspect else 1.0
        scale = max(high / frame.height, wide / (frame.width * aspect))
        scaled_h, scaled_w = max(high, round(frame.height * scale)), max(wide, round(frame.width * aspect * scale))
        transfer = int(frame.color_trc)
        colours = "rgb48le" if transfer in (PQ, HLG) else "rgb24"
        if scaled_h * scaled_w > STRIP * high * wide:  # a strip: scaling all of it would take gigabytes
            keep_h, keep_w = min(frame.height, round(high / scale)), min(frame.width, round(wide / scale / aspect))
            strip = _cropped(frame.to_ndarray(format=colours), max(1, keep_h), max(1, keep_w))
            frame, scaled_h, scaled_w = VideoFrame.from_ndarray(strip, format=colours), high, wide
        smooth = "AREA" if scale < 1 else "BICUBIC"
        picture = frame.to_ndarray(format=colours, width=scaled_w, height=scaled_h, interpolation=smooth)
        transposed, mirror_x, mirror_y = turn
        picture = _cropped(picture, high, wide)
        picture = toned(picture, transfer) if transfer in (PQ, HLG) else picture
        picture = picture.transpose(1, 0, 2) if transposed else picture
        return np.ascontiguousarray(picture[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1], dtype=np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Pillow cuts 16 bits of grey off at 255, which is white, instead of scaling them."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path, formats=IMAGES):
            return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _cropped(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


def _turned(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How the camera was held: whether rows and columns change places, and what is mirrored then, x or y."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack_from("<5i", bytes(matrix))
    return (True, c < 0, b < 0) if abs(a) < abs(b) else (False, a < 0, d < 0)
