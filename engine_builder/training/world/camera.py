"""The user's camera: 64x64 frames of a room, a person and, at times, a coloured card held into view.

Light, tint, background, card place, size, angle and sensor noise vary. The held-out split has scenes and a noise bank
of its own and takes its light from the dark and the bright end; training covers a wider range of light and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine_builder.config import FRAMES_PER_UNIT

SIZE = 64
# Reference RGB of the cards, in the order of `words.COLOURS`; hue and shade vary around it.
CARD_RGB = np.array(
    [[200, 30, 35], [30, 150, 50], [30, 60, 190], [225, 205, 40], [240, 240, 240], [18, 18, 20]], dtype=np.float32
)
_RIM = 1.8  # pixels: a printed edge, dark on light cards and light on dark ones, tells a white card from a wall
_CARD_SPREAD = np.array([18, 18, 18, 14, 12, 12], dtype=np.float32)
_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


@dataclass(frozen=True)
class CardShow:
    """A card in view during frames [start, stop); it slides in and out within `slide` frames."""

    colour: int
    start: int
    stop: int
    slide: int = 2


class Camera:
    """One user's camera: a fixed scene and light, then frames with cards and sensor noise."""

    def __init__(self, rng: np.random.Generator, noise_bank: NDArray[np.int16], held_out: bool = False) -> None:
        self._rng = rng
        self._bank = noise_bank
        self._gain = (
            rng.uniform(0.5, 1.3) if not held_out else rng.choice([rng.uniform(0.6, 0.7), rng.uniform(1, 1.15)])
        )
        self._tint = 1.0 + rng.uniform(-0.07, 0.07, size=3).astype(np.float32)
        self._noise = rng.uniform(0.3, 2.0) if held_out else rng.uniform(0.2, 3.0)
        self._scene = _scene(rng)

    def frames(self, count: int, shows: list[CardShow]) -> NDArray[np.uint8]:
        """uint8 [count, 64, 64, 3]."""
        still = self._lit(self._scene)
        film = np.broadcast_to(still, (count, SIZE, SIZE, 3)).copy()
        for show in shows:
            self._hold_card(film, show)
        for unit in range(0, count, FRAMES_PER_UNIT):  # one cut of the noise bank a unit, shifted for every frame
            offset = int(self._rng.integers(self._bank.size - (FRAMES_PER_UNIT + 1) * SIZE * SIZE * 3))
            part = film[unit : unit + FRAMES_PER_UNIT]
            part += (self._bank[offset : offset + part.size].reshape(part.shape) * self._noise).astype(np.int16)
        return np.clip(film, 0, 255).astype(np.uint8)

    def _lit(self, image: NDArray[np.float32]) -> NDArray[np.int16]:
        return np.clip(image * self._gain * self._tint, 0, 255).astype(np.int16)

    def _hold_card(self, film: NDArray[np.int16], show: CardShow) -> None:
        rng = self._rng
        spread = _CARD_SPREAD[show.colour]
        colour = np.clip(CARD_RGB[show.colour] + rng.uniform(-spread, spread, size=3), 0, 255)
        rim = 40.0 if colour.mean() > 128 else 215.0
        width, height = rng.uniform(17, 30), rng.uniform(17, 30)
        angle = rng.uniform(-0.5, 0.5)
        x, y = rng.uniform(18, 46), rng.uniform(20, 46)
        enter = SIZE - y + height  # comes from below
        shade = 1.0 + rng.uniform(-0.12, 0.12) * (_X - x) / 20.0
        stop = min(show.stop, film.shape[0])
        for frame in range(max(show.start, 0), stop):
            inside = min(frame - show.start + 1, show.stop - frame, show.slide + 1)
            shift = enter * (1.0 - inside / (show.slide + 1))
            if shift or frame in (max(show.start, 0), show.start + show.slide) or frame % FRAMES_PER_UNIT == 0:
                jitter_x, jitter_y = rng.uniform(-0.7, 0.7, size=2)
                place = x + jitter_x, y + shift + jitter_y
                alpha = _rectangle(*place, width, height, angle)
                inside_rim = _rectangle(*place, width - 2 * _RIM, height - 2 * _RIM, angle)[..., None]
                card = rim + inside_rim * (colour - rim)
                lit = np.clip(card * shade[..., None] * self._gain * self._tint, 0, 255)
            film[frame] += (alpha[..., None] * (lit - film[frame])).astype(np.int16)


def sensor_noise_bank(seed: int) -> NDArray[np.int16]:
    """Gaussian noise of standard deviation 3 grey levels, a few units long; cameras scale and shift it."""
    return np.round(np.random.default_rng([seed, 91]).normal(0, 3.0, size=16 * 64 * 64 * 3)).astype(np.int16)


def _rectangle(x: float, y: float, width: float, height: float, angle: float) -> NDArray[np.float32]:
    """Antialiased coverage [SIZE, SIZE] of a rotated rectangle."""
    cos, sin = np.cos(angle), np.sin(angle)
    across = np.abs((_X - x) * cos + (_Y - y) * sin) - width / 2
    along = np.abs((_Y - y) * cos - (_X - x) * sin) - height / 2
    return np.clip(0.5 - np.maximum(across, along), 0.0, 1.0).astype(np.float32)


def _muted(rng: np.random.Generator) -> NDArray[np.float32]:
    """A wall or furniture colour: between dark and light grey, weakly saturated."""
    return (rng.uniform(60, 180) + rng.uniform(-25, 25, size=3)).astype(np.float32)


def _scene(rng: np.random.Generator) -> NDArray[np.float32]:
    """A wall with a gradient, furniture, and (mostly) a person: head, hair, shoulders."""
    tilt = rng.uniform(-0.5, 0.5, size=2)
    image = _muted(rng) + (tilt[0] * (_X - 32) + tilt[1] * (_Y - 32))[..., None]
    image = image.astype(np.float32)
    for _ in range(int(rng.integers(0, 4))):
        (x, y), (width, height) = rng.uniform(0, 64, size=2), rng.uniform(6, 30, size=2)
        angle = rng.uniform(-0.3, 0.3) if rng.random() < 0.5 else 0.0
        box = _rectangle(x, y, width, height, angle)
        image += box[..., None] * (_muted(rng) - image)
    if rng.random() < 0.85:
        x, y, size = rng.uniform(20, 44), rng.uniform(22, 34), rng.uniform(0.75, 1.15)
        skin = np.array([225, 175, 145], dtype=np.float32) * rng.uniform(0.4, 1.05)
        parts = [
            (x, y + 36 * size, 24 * size, 20 * size, _muted(rng)),
            (x, y - 4 * size, 12 * size, 14 * size, _muted(rng) * 0.5),
            (x, y, 10 * size, 13 * size, skin),
        ]
        for cx, cy, rx, ry, colour in parts:
            distance = np.sqrt(((_X - cx) / rx) ** 2 + ((_Y - cy) / ry) ** 2)
            image += np.clip((1 - distance) * rx + 0.5, 0, 1)[..., None] * (colour - image)
    return np.clip(image, 0, 255).astype(np.float32)
