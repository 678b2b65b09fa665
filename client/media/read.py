"""Real media files -> sound and pictures at the model's sizes.

Audio: any format, rate and channel count -> mono float32 at the model's rate. Pictures: any format, size and frame rate
-> 25 fps RGB at the model's size, scaled until they cover it and cropped around the centre (no bars, no distortion);
a frame is shown until the next one is due. A still image stays; a video that ends before the conversation holds its
last frame or, with `loop`, starts again.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame

from client.stream.errors import MediaError
from client.stream.units import FPS, Float32, UInt8


def read_audio(path: Path, rate: int, seconds: float | None = None) -> Float32:
    """The first audio stream of a file: float32 [n] in -1..1, mono, `rate` Hz, at most `seconds` long.

    Raises MediaError when the file is missing, has no audio, is empty or breaks off.
    """
    limit = None if seconds is None else max(1, round(seconds * rate))
    parts: list[np.ndarray] = []
    count = 0
    with _open(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path}: expected an audio stream, found {_kinds(container)}")
        stream = container.streams.audio[0]
        # Both channels are averaged here: FFmpeg's own way to mono adds 3 dB to what both have in common, and clips.
        layout = "mono" if stream.channels == 1 else "stereo"
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        try:
            for frame in chain(container.decode(stream), [None]):
                for piece in resampler.resample(frame):
                    parts.append(piece.to_ndarray().mean(axis=0))
                    count += parts[-1].size
                if limit is not None and count >= limit:
                    break
        except FFmpegError as error:
            raise MediaError(f"{path}: audio cannot be decoded after {count / rate:.2f} s ({_reason(error)})") from None
    if not count:
        raise MediaError(f"{path}: the audio stream is empty")
    pcm = np.concatenate(parts)[:limit]
    return np.clip(np.nan_to_num(pcm, nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0).astype(np.float32)


class VideoFile:
    """The pictures of a file at 25 fps and height x width; a picture without an end (see the module's text)."""

    def __init__(self, path: Path, height: int, width: int, *, loop: bool = False) -> None:
        """Opens the file, decodes its first frame and closes it again. Raises MediaError when that fails."""
        self.path = path
        self.height = height
        self.width = width
        self.loop = loop
        if next(self._once(), None) is None:
            raise MediaError(f"{path}: the video stream is empty")
        self.seconds = self._length()

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
        due = Fraction(0)  # when the newest decoded frame is due
        start: Fraction | None = None
        newest: VideoFrame | None = None
        picture: UInt8 | None = None  # `newest`, converted when it turned out to be seen
        with _open(self.path) as container:
            if not container.streams.video:
                raise MediaError(f"{self.path}: expected a video or an image, found {_kinds(container)}")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            period = 1 / Fraction(stream.average_rate or FPS)
            try:
                for frame in chain(container.decode(stream), [None]):
                    if frame is not None and frame.pts is not None and frame.time_base is not None:
                        at = frame.pts * frame.time_base
                        start = at if start is None else start
                        due = at - start
                    while newest is not None and tick < due:
                        if picture is None:
                            picture = _fit(newest, stream.sample_aspect_ratio, self.height, self.width)
                        yield picture
                        tick += Fraction(1, FPS)
                    newest, picture = frame, None
                    due += period
            except FFmpegError as error:
                at_s, reason = float(tick), _reason(error)
                raise MediaError(f"{self.path}: video cannot be decoded after {at_s:.2f} s ({reason})") from None

    def _length(self) -> float:
        """Seconds of moving picture, 0 for a still. From the container; counted when that does not know."""
        with _open(self.path) as container:
            stream = container.streams.video[0]
            if stream.duration is not None and stream.time_base is not None:
                seconds = float(stream.duration * stream.time_base)
            elif container.duration is not None:
                seconds = container.duration / av.time_base
            else:
                seconds = sum(p.size > 0 for p in container.demux(stream)) / float(stream.average_rate or FPS)
            return 0.0 if seconds <= 1.5 / float(stream.average_rate or FPS) else seconds


def has_audio(path: Path) -> bool:
    """Whether a file has a sound track."""
    with _open(path) as container:
        return bool(container.streams.audio)


def _fit(frame: VideoFrame, pixel_aspect: Fraction | None, height: int, width: int) -> UInt8:
    """Scales to cover height x width, honouring pixel aspect and camera rotation, and crops around the centre."""
    turns = round(frame.rotation / 90) % 4
    target_h, target_w = (width, height) if turns % 2 else (height, width)
    aspect = float(pixel_aspect) if pixel_aspect else 1.0
    scale = max(target_h / frame.height, target_w / (frame.width * aspect))
    scaled_h = max(target_h, round(frame.height * scale))
    scaled_w = max(target_w, round(frame.width * aspect * scale))
    smooth = "AREA" if scale < 1 else "BICUBIC"
    picture = frame.to_ndarray(format="rgb24", width=scaled_w, height=scaled_h, interpolation=smooth)
    top, left = (scaled_h - target_h) // 2, (scaled_w - target_w) // 2
    picture = picture[top : top + target_h, left : left + target_w]
    return np.ascontiguousarray(np.rot90(picture, turns), dtype=np.uint8)


def _open(path: Path) -> InputContainer:
    if not path.is_file():
        raise MediaError(f"{path}: no such file")
    try:
        return av.open(str(path))
    except (FFmpegError, ValueError) as error:
        raise MediaError(f"{path}: not a media file that can be decoded ({_reason(error)})") from None


def _kinds(container: InputContainer) -> str:
    return ", ".join(stream.type for stream in container.streams) or "no stream at all"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
