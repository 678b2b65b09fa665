"""The agent's face: 64x64 frames drawn from mouth opening, eyelids, gaze and head position.

An idle face follows one clock of `CYCLE_UNITS` units: the head breathes up and down, and the eyes blink at the top of
each breath. Four times a breath they look to the left or to the right, which nothing foretells: it is what the flow has
to choose, and the mean of the two is no face.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from engine_builder.config import FRAMES_PER_UNIT

from .speech.voices import Pcm

Frames = NDArray[np.uint8]
SIZE = 64
CYCLE_UNITS = 24  # 3.84 s: a resting breath, and a blink about 15 times a minute
GLANCE_UNITS = CYCLE_UNITS // 4  # the eyes stay where they are
ASIDE = 7  # quarter pixels
HEAD = 4  # quarter pixels that it breathes up and down
MOUTH_LEVELS = 12
NOD_FRAMES = 8
_CYCLE_FRAMES = CYCLE_UNITS * FRAMES_PER_UNIT
_CACHE_FRAMES = 6000  # 12 KiB each

_BACKGROUND = np.array([52, 66, 94], dtype=np.float32)
_WHITE = np.array([246, 246, 246], dtype=np.float32)
_IRIS = np.array([44, 60, 96], dtype=np.float32)
_MOUTH = np.array([70, 18, 26], dtype=np.float32)


@dataclass(frozen=True)
class Look:
    """What tells two faces apart: colours, RGB, and how far the hair reaches, pixels."""

    skin: tuple[int, ...]
    hair: tuple[int, ...]
    shirt: tuple[int, ...]
    lips: tuple[int, ...]
    hair_width: float
    hair_height: float


LOOKS: dict[str, Look] = {
    "woman": Look((236, 196, 164), (92, 58, 40), (70, 130, 120), (186, 74, 78), 20.5, 22.0),
    "man": Look((206, 158, 126), (150, 144, 140), (120, 50, 58), (160, 86, 80), 18.5, 19.0),
}


@dataclass(frozen=True)
class Pose:
    """One frame. mouth 0..MOUTH_LEVELS-1; lid 0 open, 1 half, 2 closed; gaze_x and head_y in quarter pixels."""

    mouth: int
    lid: int
    gaze_x: int
    head_y: int


_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def _blend(image: NDArray[np.float32], alpha: NDArray[np.float32], colour: NDArray[np.float32]) -> None:
    image += alpha[..., None] * (colour - image)


def _ellipse(x: float, y: float, rx: float, ry: float) -> NDArray[np.float32]:
    """Antialiased coverage [SIZE, SIZE] of an ellipse."""
    distance = np.sqrt(((_X - x) / rx) ** 2 + ((_Y - y) / ry) ** 2)
    return np.clip((1.0 - distance) * min(rx, ry) + 0.5, 0.0, 1.0)


@lru_cache(_CACHE_FRAMES)
def draw(pose: Pose, look: Look = LOOKS["woman"]) -> Frames:
    """One frame uint8 [64, 64, 3], not to be written to: it is kept for the next such pose."""
    skin, hair, shirt, lips = (np.array(c, dtype=np.float32) for c in (look.skin, look.hair, look.shirt, look.lips))
    image = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    image[:] = _BACKGROUND + (_Y[..., None] - 32) * 0.35
    x, y = 31.5, 30.0 + pose.head_y / 4
    _blend(image, _ellipse(x, 72.0, 27.0, 17.0), shirt)
    _blend(image, _ellipse(x, y + 22, 7.0, 10.0), skin * 0.88)
    _blend(image, _ellipse(x, y - 4, look.hair_width, look.hair_height), hair)
    _blend(image, _ellipse(x, y + 1, 17.5, 21.0), skin)
    for side in (-1, 1):
        eye_x, eye_y = x + side * 7.5, y - 2.0
        opening = (3.4, 1.7, 0.5)[pose.lid]
        if pose.lid < 2:
            white = _ellipse(eye_x, eye_y, 4.2, opening)
            _blend(image, white, _WHITE)
            _blend(image, white * _ellipse(eye_x + pose.gaze_x / 4, eye_y, 2.2, 2.6), _IRIS)
        else:
            _blend(image, _ellipse(eye_x, eye_y + 0.6, 4.2, 0.8), hair)
        _blend(image, _ellipse(eye_x, eye_y - 6.0, 4.6, 0.9), hair)
    _blend(image, 0.5 * _ellipse(x, y + 5, 1.6, 2.6), skin * 0.75)
    opening = pose.mouth / (MOUTH_LEVELS - 1)
    mouth_y = y + 12.5
    _blend(image, _ellipse(x, mouth_y, 7.0 - 1.2 * opening, 1.5 + 4.6 * opening), lips)
    if pose.mouth:
        _blend(image, _ellipse(x, mouth_y, 5.6 - 1.2 * opening, 0.2 + 4.4 * opening), _MOUTH)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def film(poses: list[Pose], look: Look = LOOKS["woman"]) -> Frames:
    """uint8 [len(poses), 64, 64, 3]."""
    return np.stack([draw(pose, look) for pose in poses])


def mouth_levels(pcm: Pcm, delay: int = 320) -> NDArray[np.int64]:
    """Mouth opening of each 40 ms frame from the voice's envelope, 0..MOUTH_LEVELS-1.

    pcm [F * 640]. `delay` samples: the audio codec's synthesis is one hop late, so the mouth is as well.
    """
    late = np.concatenate([np.zeros(delay, dtype=np.float32), pcm])[: pcm.size]
    rms = np.sqrt((late.reshape(-1, 640) ** 2).mean(axis=1))
    return np.minimum(np.round(np.sqrt(rms / 0.22) * (MOUTH_LEVELS - 1)), MOUTH_LEVELS - 1).astype(np.int64)


def glances(rng: np.random.Generator, phase: int, count: int) -> NDArray[np.int64]:
    """Where idle eyes look in each frame, -ASIDE or ASIDE: a new toss of a coin at every quarter of the cycle."""
    number = (phase + np.arange(count)) // (GLANCE_UNITS * FRAMES_PER_UNIT)
    number -= number[0]
    return ASIDE * (2 * rng.integers(2, size=number[-1] + 1) - 1)[number]


def poses(
    phase: int,
    mouths: NDArray[np.int64],
    attentive: NDArray[np.bool_],
    nod_starts: list[int],
    aside: NDArray[np.int64],
) -> list[Pose]:
    """Pose of every frame. `phase`: frames into the breathing cycle at frame 0; mouths [F]; attentive [F]: the eyes
    rest on the user instead of looking `aside` [F]; nod_starts: frames at which a nod begins."""
    count = mouths.size
    clock = (phase + np.arange(count)) % _CYCLE_FRAMES
    angle = 2 * np.pi * clock / _CYCLE_FRAMES
    head = HEAD * np.sin(angle)
    for start in nod_starts:
        span = np.arange(start, min(start + NOD_FRAMES, count))
        head[span] += 14.0 * np.sin(np.pi * (span - start + 0.5) / NOD_FRAMES)
    gaze = np.where(attentive, 0.0, aside)
    # The eyes need two frames to move: a saccade that a 25 Hz camera can see.
    gaze[1:] = 0.5 * gaze[1:] + 0.5 * gaze[:-1]
    top = _CYCLE_FRAMES * 3 // 4  # sin = -1: the head is highest
    lid = np.zeros(count, dtype=np.int64)
    lid[(clock == top) | (clock == top + 3)] = 1
    lid[(clock == top + 1) | (clock == top + 2)] = 2
    return [
        Pose(int(m), int(li), int(g), int(h))
        for m, li, g, h in zip(mouths, lid, np.round(gaze), np.round(head), strict=True)
    ]
