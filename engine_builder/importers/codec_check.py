"""`codec-check`: real media through the codecs of a checkpoint, unit by unit, and what came out beside what went in."""

from __future__ import annotations

import json
import math
import time
import wave
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoint import CONFIG, copy_tensors, read_tensors, read_weights_note
from ..config import FPS, FRAMES_PER_UNIT, ModelConfig
from ..model.codecs import Codec, PublishedCodec, audio_codec, video_codec

FRAME_DELAYS, SAMPLE_DELAY_MS = range(FRAMES_PER_UNIT), 40  # codecs may answer this much later; the best place counts


@dataclass(frozen=True)
class Result:
    """Of one stream. Milliseconds are medians of a unit on this machine, operations are counted."""

    stream: str
    codec: str
    weights: str
    units: int
    score: float  # dB: SI-SDR of sound, PSNR of pictures
    delay_ms: float  # at which it was found
    encode_ms: float
    decode_ms: float
    encode_gflop: float
    decode_gflop: float
    state_mb: float  # encoder's and decoder's

    def describe(self) -> str:
        measure = "SI-SDR" if self.stream == "audio" else "PSNR"
        return (
            f"{self.stream}: {self.codec}, {self.weights}; {self.units} units, {measure} {self.score:.1f} dB at "
            f"{self.delay_ms:.0f} ms; a unit: encode {self.encode_ms:.0f} ms ({self.encode_gflop:.2f} GFLOP), decode "
            f"{self.decode_ms:.0f} ms ({self.decode_gflop:.2f} GFLOP), state {self.state_mb:.1f} MB"
        )


def check(checkpoint: Path, audio: Path | None, video: Path | None, out: Path, seconds: float) -> list[Result]:
    """Streams at most `seconds` of each file; writes sound, pictures and `report.json` to `out`.

    Raises ValueError for media that hold no whole unit, CheckpointError for weights that do not fit.
    """
    config, note = ModelConfig.load(checkpoint / CONFIG), read_weights_note(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    results = []
    if audio is not None:
        codec = _load(audio_codec(config.audio), checkpoint, "audio")
        pcm = read_sound(audio, config.audio.sample_rate, seconds)
        pcm = _whole(pcm, config.audio.unit_samples, audio)
        decoded, facts = _stream(codec, pcm, config.audio.unit_samples)
        rate = config.audio.sample_rate
        score, delay = best_si_sdr(pcm, decoded, rate * SAMPLE_DELAY_MS // 1000)
        _write_wav(out / "sound_original.wav", pcm, rate)
        _write_wav(out / "sound_decoded.wav", decoded, rate)
        weights = _weights(codec, "audio", note)
        results.append(
            Result("audio", config.audio.codec, weights, facts.pop("units"), score, 1e3 * delay / rate, **facts)
        )
    if video is not None:
        codec = _load(video_codec(config.video), checkpoint, "video")
        frames = read_pictures(video, config.video.height, config.video.width, seconds)
        frames = _whole(frames, FRAMES_PER_UNIT, video)
        decoded, facts = _stream(codec, frames, FRAMES_PER_UNIT)
        decoded = np.floor(decoded + 0.5).astype(np.uint8)
        score, delay = best_psnr(frames, decoded)
        _write_film(out / "pictures.mp4", np.concatenate((frames, decoded), axis=2))
        weights = _weights(codec, "video", note)
        results.append(
            Result("video", config.video.codec, weights, facts.pop("units"), score, 1e3 * delay / FPS, **facts)
        )
    (out / "report.json").write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return results


def _load(codec: Codec, checkpoint: Path, stream: str) -> Codec:
    """The codec alone: the backbone of a checkpoint may have gigabytes."""
    prefix = f"{stream}_codec."
    found = ((name.removeprefix(prefix), t) for name, t in read_tensors(checkpoint, prefix))
    copy_tensors(codec, found, str(checkpoint))
    return codec.eval()


def _weights(codec: Codec, stream: str, note: str) -> str:
    if isinstance(codec, PublishedCodec) and f"{stream} codec from" not in note:
        return "RANDOM weights (nothing was imported): what comes out is noise, only the cost means something"
    return f"weights {note}"


def _whole(media: np.ndarray, size: int, file: Path) -> np.ndarray:
    units = len(media) // size
    if units < 1:
        raise ValueError(
            f"{file}: expected at least one unit of 160 ms, got {len(media)} of {size} samples or pictures"
        )
    return media[: units * size]


@torch.no_grad()
def _stream(codec: Codec, media: np.ndarray, size: int) -> tuple[np.ndarray, dict[str, Any]]:
    """What the decoder makes of the encoder's latents, unit by unit, and what that costs."""
    encoder, decoder = (state[None] for state in codec.start())
    state_mb = 4e-6 * (encoder.numel() + decoder.numel())
    parts, times, flops = [], {"encode": [], "decode": []}, [0.0, 0.0]
    for k in range(len(media) // size):
        unit = torch.from_numpy(media[k * size : (k + 1) * size].copy())[None]
        if k == 0:  # counting slows it down: the first unit is counted and run once more
            flops = [_gflop(codec.encode, unit, encoder), _gflop(codec.decode, codec.encode(unit, encoder)[0], decoder)]
        begin = time.perf_counter()
        latents, encoder = codec.encode(unit, encoder)
        middle = time.perf_counter()
        shown, decoder = codec.decode(latents, decoder)
        times["encode"].append(middle - begin)
        times["decode"].append(time.perf_counter() - middle)
        parts.append(shown[0].numpy())
    facts = {f"{name}_ms": 1e3 * float(np.median(values)) for name, values in times.items()}
    facts |= {"encode_gflop": flops[0], "decode_gflop": flops[1], "state_mb": state_mb, "units": len(parts)}
    return np.concatenate(parts), facts


def _gflop(run: Any, x: Tensor, state: Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        run(x, state)
    return counter.get_total_flops() / 1e9


def best_si_sdr(original: np.ndarray, decoded: np.ndarray, most: int) -> tuple[float, int]:
    """Scale-invariant signal to distortion in dB, and the delay in samples, up to `most`, where it is best."""
    size = 1 << (2 * len(original) - 1).bit_length()
    spectra = np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(original, size))
    delay = int(np.argmax(np.abs(np.fft.irfft(spectra, size)[: most + 1])))
    x = original[: len(original) - delay].astype(np.float64)
    y = decoded[delay:].astype(np.float64)
    part = (x @ y) / max(float(x @ x), 1e-12) * x
    return 10 * math.log10(max(float(part @ part), 1e-12) / max(float((y - part) @ (y - part)), 1e-12)), delay


def best_psnr(original: np.ndarray, decoded: np.ndarray) -> tuple[float, int]:
    """Of pictures uint8 in dB, and the delay in pictures where it is best."""
    scores = []
    for delay in FRAME_DELAYS:
        pairs = zip(original[: len(original) - delay], decoded[delay:], strict=True)
        error = float(np.mean([np.square(a.astype(np.float32) - b).mean() for a, b in pairs]))
        scores.append(10 * math.log10(255**2 / max(error, 1e-6)))
    return max(scores), scores.index(max(scores))


# -- files -----------------------------------------------------------------------------------------------------
def _av() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise RuntimeError("codec-check: expected PyAV, got none; pip install 'wan-streamer-triton[client]'") from None
    return av


def _opened(file: Path, kind: str) -> tuple[Any, Any]:
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        container = _av().open(f"file:{file}")  # without it `12:30.wav` is a protocol
        return container, getattr(container.streams, kind)[0]
    except (_av().error.FFmpegError, IndexError) as error:
        raise ValueError(f"{file}: expected a file with {kind} in it ({error})") from None


def read_sound(file: Path, rate: int, seconds: float) -> np.ndarray:
    """float32 [n], mono."""
    container, stream = _opened(file, "audio")
    resampler, parts, left = _av().AudioResampler(format="flt", layout="mono", rate=rate), [], round(seconds * rate)
    with container:
        for frame in container.decode(stream):
            frame.pts = None
            parts += [piece.to_ndarray().reshape(-1) for piece in resampler.resample(frame)]
            left -= sum(part.size for part in parts[-1:])
            if left <= 0:
                break
    return np.concatenate([*parts, np.zeros(0, np.float32)])[: round(seconds * rate)].astype(np.float32).clip(-1, 1)


def read_pictures(file: Path, height: int, width: int, seconds: float) -> np.ndarray:
    """uint8 [n, H, W, 3] at 25 a second: of each moment the last picture before it."""
    container, stream = _opened(file, "video")
    most, shown, last, end = round(seconds * FPS), [], None, 0.0
    start, lasts = float((stream.start_time or 0) * stream.time_base), 1 / float(stream.average_rate or FPS)

    def show_until(at: float) -> None:
        while last is not None and len(shown) < min(most, math.ceil(at * FPS - 1e-6)):
            shown.append(last)

    with container:
        for number, frame in enumerate(container.decode(stream)):
            at = number * lasts if frame.time is None else frame.time - start
            show_until(at)
            last, end = (
                frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC"),
                at + lasts,
            )
            if len(shown) >= most:
                break
    show_until(end)
    return np.stack(shown) if shown else np.zeros((0, height, width, 3), np.uint8)


def _write_wav(file: Path, pcm: np.ndarray, rate: int) -> None:
    with wave.open(str(file), "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(np.round(pcm * 32767).astype("<i2").tobytes())


def _write_film(file: Path, frames: np.ndarray) -> None:
    av = _av()
    with av.open(str(file), "w") as film:
        stream = film.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for picture in frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode(None))
