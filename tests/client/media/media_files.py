"""Files that people really have, made with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HERTZ = 440.0
LOUD = np.full(1600, 0.5, np.float32)  # 0.1 s at 16 kHz


def tone(rate: int, seconds: float, channels: int = 1, amplitude: float = 0.5) -> np.ndarray:
    """float32 [channels, n]"""
    wave = amplitude * np.sin(2 * np.pi * HERTZ * np.arange(round(rate * seconds)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def write_audio(path: Path, pcm: np.ndarray, rate: int, codec: str, fmt: str, layout: str) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm), format=fmt, layout=layout)
        frame.sample_rate = rate
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return path


def write_video(
    path: Path,
    pictures: list[np.ndarray],
    fps: Fraction | int = 25,
    codec: str = "mpeg4",
    times: list[Fraction] | None = None,
) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"qscale": "2", "flags": "+qscale"} if codec == "mpeg4" else {}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[index] * 1000), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def grey(level: int, height: int = 96, width: int = 128) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def levels(pictures) -> list[int]:
    return [int(np.median(p)) for p in pictures]


def write_film(path: Path, sound: list[tuple[float, np.ndarray]], pictures: list[tuple[float, int]]) -> Path:
    """sound: (second, float32 [n] at 16 kHz), pieces with the time stamps they get.  pictures: (second, grey level)."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=25)
        video.height, video.width, video.pix_fmt = 64, 64, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio = file.add_stream("pcm_s16le", rate=16_000, layout="mono")
        packets = []
        for at, level in pictures:
            frame = av.VideoFrame.from_ndarray(grey(level, 64, 64), format="rgb24")
            frame.pts, frame.time_base = round(at * 1000), Fraction(1, 1000)
            packets += [(at, packet) for packet in video.encode(frame)]
        for at, pcm in sound:
            frame = av.AudioFrame.from_ndarray((pcm[None] * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, round(at * 16_000), Fraction(1, 16_000)
            packets += [(at, packet) for packet in audio.encode(frame)]
        for _, packet in sorted(packets, key=lambda pair: pair[0]):
            file.mux(packet)
        file.mux([*video.encode(None), *audio.encode(None)])
    return path


def write_text(folder: Path, data: bytes = b"this is not a sound\n" * 50) -> Path:
    path = folder / "a.wav"
    path.write_bytes(data)
    return path
