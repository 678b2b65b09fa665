"""Any sound -> mono float32 at the model's rate, in a scratch file: an hour needs no more memory than a minute."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import numpy as np

from ..stream.errors import MediaError
from ..stream.units import Float32
from .container import Clock, Reading, opened, stream_of

GAP_SECONDS = 0.05  # a hole in the time stamps that is longer is silence; a shorter one is rounding
CANCELLED = 0.01  # of the louder channel's energy: when less is left of both, one is the other upside down
CHUNK = 1 << 20  # samples


def read_audio(path: Path, rate: int, seconds: float | None = None, notes: list[str] | None = None) -> Float32:
    """The best audio stream of a file: float32 [n] in -1..1, mono, `rate` Hz, at most `seconds` long.

    It starts where it does in the file, and holes in it are silence. notes: takes sentences about what is not as it
    should be. Raises MediaError when the file is missing, or nothing in it can be decoded.
    """
    limit = None if seconds is None else max(1, round(seconds * rate))
    with opened(path) as container, tempfile.TemporaryFile() as file:
        stream = stream_of(path, container, "audio")
        reading = Reading(container, stream)
        _write_stereo(file, reading, Clock(container), rate, limit)
        said = f"{path}: {reading.errors} pieces of the sound cannot be decoded ({reading.why})"
        if not file.tell():
            raise MediaError(said if reading.errors else f"{path}: the audio stream is empty")
        if reading.errors and notes is not None:
            notes.append(f"{said}: they are left out")
        file.flush()
        return _mono(np.memmap(file, np.float32, "r").reshape(-1, 2)[:limit])


def to_pcm16(pcm: Float32) -> bytes:
    """float32 [n] -> 16-bit little-endian mono; louder than full scale is clipped, not wrapped."""
    return (np.clip(np.nan_to_num(pcm), -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def scratch(count: int) -> Float32:
    """`count` samples of silence on disk."""
    with tempfile.TemporaryFile() as file:
        file.truncate(max(count, 1) * 4)
        return np.memmap(file, np.float32, "r+")[:count]


def _write_stereo(file: IO[bytes], reading: Reading, clock: Clock, rate: int, limit: int | None) -> None:
    """float32 [n, 2], at the places that the time stamps give."""
    resampler: av.AudioResampler | None = None
    shape: tuple[str, int, str] | None = None

    def write(frame: av.AudioFrame | None) -> None:
        for piece in resampler.resample(frame) if resampler is not None else ():
            file.write(np.broadcast_to(piece.to_ndarray().T, (piece.samples, 2)).astype("<f4").tobytes())

    for frame in reading.frames():
        if not frame.samples or not frame.sample_rate:
            continue
        base = Fraction(1, frame.sample_rate)
        stamp = None if frame.pts is None or frame.time_base is None else round(frame.pts * frame.time_base / base)
        at = round(clock.place(stamp, base, frame.samples, None) * rate)
        now = (frame.format.name, frame.sample_rate, frame.layout.name)
        if now != shape or at - file.tell() // 8 > GAP_SECONDS * rate:
            write(None)
            # Both channels are averaged later: FFmpeg's own way to mono adds 3 dB to what they share, and clips.
            layout = "mono" if len(frame.layout.channels) == 1 else "stereo"
            resampler, shape = av.AudioResampler(format="fltp", layout=layout, rate=rate), now
            missing = at - file.tell() // 8
            if missing > GAP_SECONDS * rate:
                file.seek(missing * 8, 1)
        frame.pts = None
        write(frame)
        if limit is not None and file.tell() // 8 >= limit:
            break
    write(None)
    file.truncate()


def _mono(stereo: np.ndarray) -> Float32:
    """Both channels together; the louder one where they cancel each other."""
    parts = [slice(i, i + CHUNK) for i in range(0, len(stereo), CHUNK)]
    energy = np.zeros(3)
    for part in parts:
        left, right = np.clip(np.nan_to_num(stereo[part].astype(np.float64)), -1, 1).T
        energy += [(left**2).sum(), (right**2).sum(), ((left + right) ** 2).sum() / 4]
    louder = int(energy[1] > energy[0]) if energy[2] < CANCELLED * energy[:2].max() else None
    out = scratch(len(stereo))
    for part in parts:
        piece = stereo[part].mean(axis=1) if louder is None else stereo[part, louder]
        out[part] = np.clip(np.nan_to_num(piece, nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0)
    return out
