"""What the probe took down -> when each word ended, and when something was heard and seen. No browser, no network."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOUD = 0.1  # share of the loudest quantum, from which there is a voice
PAUSE = 0.6  # seconds without one end a word
WAIT = 2.0  # seconds for an answer
CHANGED = 4.0  # times the picture's usual change from one to the next
STEP, MOST_LAG = 0.01, 0.25  # seconds: of lip sync
STAGES = ("perceive", "think", "perform", "render")
# Frames of 20 ms each way, 6.5 ms of look-ahead up and 2.5 down; PCM over a WebSocket has neither.
CODEC_MS = {"webrtc": 20 + 6.5 + 20 + 2.5, "websocket": 0.0}

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Word:
    """Milliseconds from the word's last sample on; None: nothing came in time."""

    sound: float | None
    picture: float | None
    model: float
    server: float


def voiced(blocks: Sequence[tuple[float, Sequence[int]]], quantum: float) -> tuple[Times, NDArray[np.bool_]]:
    """Time of each quantum of sound, and whether there is a voice in it."""
    times, peaks = quanta(blocks, quantum)
    return times, peaks > LOUD * np.percentile(peaks, 99.5)


def quanta(blocks: Sequence[tuple[float, Sequence[int]]], quantum: float) -> tuple[Times, Times]:
    """Time and peak of each quantum of sound."""
    times = np.concatenate([start + quantum * np.arange(len(peaks)) for start, peaks in blocks])
    return times, np.concatenate([np.asarray(peaks, np.float64) for _, peaks in blocks])


def ends(times: Times, loud: NDArray[np.bool_]) -> list[float]:
    """When each word ended: its last loud quantum before a pause."""
    at = times[loud]
    last = np.append(np.diff(at) > PAUSE, True)
    return [float(t) for t in at[last]] if at.size else []


def words(probe: Mapping[str, Any], quantum: float) -> list[Word]:
    """One record a word whose time for an answer is over. A word that the agent talks into is left out."""
    mic, (out, loud) = voiced(probe["mic"], quantum), voiced(probe["out"], quantum)
    spoken = out[loud]
    found: list[Word] = []
    for end in ends(*mic):
        if end + WAIT > out[-1] or ((spoken > end - 0.1) & (spoken <= end)).any():
            continue
        answer = spoken[(spoken > end) & (spoken < end + WAIT)]
        sound = float(answer[0] - end) * 1e3 if answer.size else None
        units = [unit for unit in probe["units"] if end < unit["at"] < end + (sound or 0) / 1e3 + 0.1]
        speaking = next((unit for unit in units if unit["state"] == "speak"), None)
        model = sum(speaking["ms"].get(stage, 0.0) for stage in STAGES) if speaking else 0.0
        server = max(0.0, speaking["gateway"] - model) if speaking else 0.0
        found.append(Word(sound, _change(probe["pictures"], end), model, server))
    return found


def _change(pictures: Sequence[tuple[float, Sequence[int]]], end: float) -> float | None:
    """Milliseconds from `end` to the first picture that changes more than those of the second before did."""
    near = [(at, np.asarray(p, np.float64)) for at, p in pictures if end - 1.0 < at < end + WAIT]
    steps = [(at, float(np.abs(b - a).mean())) for (_, a), (at, b) in itertools.pairwise(near)]
    before = [step for at, step in steps if at <= end and step > 0]
    usual = float(np.median(before)) if before else 0.0
    changed = [at for at, step in steps if at > end and step > max(0.5, CHANGED * usual)]
    return (changed[0] - end) * 1e3 if changed else None


def lips(pictures: Sequence[tuple[float, Sequence[int]]], times: Times, loudness: Times) -> float:
    """Milliseconds by which the mouth is later than the voice, as loudspeaker and screen give them; negative: earlier.

    The lag at which some part of the picture follows the voice's loudness best; nan if nothing moves.
    """
    at, seen = np.array([at for at, _ in pictures]), np.array([p for _, p in pictures], np.float64)
    if at.size < 2 or times.size < 2:
        return float("nan")
    grid = np.arange(max(at[0], times[0]), min(at[-1], times[-1]), STEP)
    frame = max(1, round(0.04 / float(np.median(np.diff(times)))))  # a mouth has one opening a frame
    voice = np.interp(grid, times, np.convolve(loudness, np.full(frame, 1 / frame), "same"))
    parts = seen[np.searchsorted(at, grid, "right") - 1]
    lags = range(-round(MOST_LAG / STEP), round(MOST_LAG / STEP) + 1)
    inside = slice(len(lags), -len(lags))
    parts = parts[:, parts[inside].std(axis=0) > 0.5]
    if not parts.size or grid.size <= 3 * len(lags) or not voice[inside].std():
        return float("nan")

    def followed(lag: int) -> float:
        moved = np.roll(parts, -lag, axis=0)[inside]
        return float(np.nanmax(np.abs(np.corrcoef(voice[inside], moved, rowvar=False)[0, 1:])))

    return 1e3 * STEP * max(lags, key=followed)


def longest_silence(times: Times, loud: NDArray[np.bool_]) -> float:
    """Milliseconds, between the first and the last that is heard."""
    at = times[loud]
    return float(np.diff(at).max() * 1e3) if at.size > 1 else 0.0


def median(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else float("nan")
