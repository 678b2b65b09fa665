"""One frame of conversation.mp4: user left, agent right, who speaks, the last seconds of both voices, captions.

Everything that stays the same for a unit (labels, captions) is drawn once and reused for its four frames.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..stream.units import FPS, Float32, UInt8
from .captions import font, printable

PANEL = 560  # longest side of a picture, pixels
MARGIN, HEADER, WAVE, CAPTION = 32, 64, 72, 128
INSET = 128  # longest side of the model's view in the corner
WAVE_SECONDS = 4.0  # how much of the voices the strip shows
BACKGROUND, PLATE, INK, SOFT = (15, 19, 25), (26, 32, 41), (236, 240, 245), (132, 144, 158)
USER, AGENT, LATE = (86, 170, 255), (255, 176, 84), (255, 92, 92)


@dataclass(frozen=True)
class Side:
    """What is written about one of the two, during one unit."""

    name: str
    label: str  # state
    talking: bool
    caption: str = ""
    late: bool = False
    inset: bool = False  # show in a corner what the model sees of this picture


class Canvas:
    """Draws frames of one size: uint8 [height, width, 3], both even (H.264 needs that)."""

    def __init__(self, height: int, width: int, note: str = "") -> None:
        """height, width: of the model's pictures; they are scaled to `panel_height` x `panel_width`.

        note: a small line at the bottom of every frame.
        """
        self._note = printable(note)
        scale = PANEL / max(height, width)
        self.panel_height = round(height * scale / 2) * 2
        self.panel_width = round(width * scale / 2) * 2
        self._view = (width, height)
        self.width = 3 * MARGIN + 2 * self.panel_width
        self.height = HEADER + self.panel_height + WAVE + CAPTION
        plain = str(font())
        self._bold = ImageFont.truetype(str(font(bold=True)), 22)
        self._small = ImageFont.truetype(plain, 17)
        self._tiny = ImageFont.truetype(plain, 12)
        self._plain = ImageFont.truetype(plain, 21)
        self._columns = max(10, int(self.panel_width / self._plain.getlength("n")))
        self._base: tuple[tuple[Side, Side], Image.Image] | None = None

    def frame(
        self,
        sides: tuple[Side, Side],
        pictures: tuple[UInt8, UInt8],
        peaks: tuple[Float32, Float32],
        now: float,
    ) -> UInt8:
        """One frame.

        pictures: uint8 [h, w, 3] of any size.  peaks: loudness 0..1 every 40 ms of each voice, ending now.
        now: seconds since the start.
        """
        if self._base is None or self._base[0] != sides:
            self._base = (sides, self._labels(sides))
        image = self._base[1].copy()
        draw = ImageDraw.Draw(image)
        columns = zip(sides, pictures, peaks, self._lefts(), (USER, AGENT), strict=True)
        for side, picture, level, left, colour in columns:
            panel = Image.fromarray(picture)
            if panel.size != (self.panel_width, self.panel_height):
                panel = panel.resize((self.panel_width, self.panel_height), Image.Resampling.BICUBIC)
            if side.talking:
                box = (left - 4, HEADER - 4, left + self.panel_width + 3, HEADER + self.panel_height + 3)
                draw.rounded_rectangle(box, radius=8, fill=colour)
            image.paste(panel, (left, HEADER))
            if side.inset:
                self._inset(image, panel, left)
            self._wave(draw, level, left, colour)
        clock = f"{int(now // 60):02d}:{now % 60:04.1f}"
        draw.text((self.width - MARGIN, HEADER / 2), clock, font=self._small, fill=SOFT, anchor="rm")
        return np.asarray(image)

    def _lefts(self) -> tuple[int, int]:
        return MARGIN, 2 * MARGIN + self.panel_width

    def _labels(self, sides: tuple[Side, Side]) -> Image.Image:
        image = Image.new("RGB", (self.width, self.height), BACKGROUND)
        draw = ImageDraw.Draw(image)
        draw.text((self.width - MARGIN, self.height - 12), self._note, font=self._tiny, fill=SOFT, anchor="rs")
        for side, left, colour in zip(sides, self._lefts(), (USER, AGENT), strict=True):
            draw.text((left, HEADER / 2), side.name, font=self._bold, fill=INK, anchor="lm")
            end = left + draw.textlength(side.name, font=self._bold) + 16
            end = self._chip(draw, end, side.label, colour if side.talking else PLATE, side.talking)
            if side.late:
                self._chip(draw, end + 10, "late", LATE, True)
            top = HEADER + self.panel_height + WAVE + 6
            lines = textwrap.wrap(printable(side.caption), self._columns)[-3:]
            for row, line in enumerate(lines):
                draw.text((left, top + 30 * row), line, font=self._plain, fill=INK)
        return image

    def _chip(self, draw: ImageDraw.ImageDraw, left: float, text: str, fill: tuple[int, int, int], lit: bool) -> float:
        """A rounded label; returns where it ends."""
        text = printable(text) or "-"
        right = left + draw.textlength(text, font=self._small) + 24
        middle = HEADER / 2
        draw.rounded_rectangle((left, middle - 15, right, middle + 15), radius=15, fill=fill)
        ink = BACKGROUND if lit else SOFT
        draw.text(((left + right) / 2, middle), text, font=self._small, fill=ink, anchor="mm")
        return right

    def _inset(self, image: Image.Image, panel: Image.Image, left: int) -> None:
        """The picture at the model's own size, enlarged without smoothing."""
        seen = panel.resize(self._view, Image.Resampling.BOX)
        scale = INSET / max(self._view)
        seen = seen.resize((round(self._view[0] * scale), round(self._view[1] * scale)), Image.Resampling.NEAREST)
        x = left + self.panel_width - seen.width - 12
        y = HEADER + self.panel_height - seen.height - 12
        draw = ImageDraw.Draw(image)
        draw.rectangle((x - 2, y - 24, x + seen.width + 1, y + seen.height + 1), fill=BACKGROUND)
        label = f"model sees {self._view[0]}x{self._view[1]}"
        draw.text((x + seen.width / 2, y - 12), label, font=self._tiny, fill=SOFT, anchor="mm")
        image.paste(seen, (x, y))

    def _wave(self, draw: ImageDraw.ImageDraw, level: Float32, left: int, colour: tuple[int, int, int]) -> None:
        """Bars of the last seconds, the newest at the right."""
        slots = int(WAVE_SECONDS * FPS)
        step = self.panel_width / slots
        middle = HEADER + self.panel_height + WAVE / 2 + 4
        shown = level[-slots:]
        offset = slots - len(shown)
        for index, value in enumerate(shown):
            half = 1.0 + float(value) * (WAVE / 2 - 12)
            x = left + (offset + index) * step
            draw.rectangle((x, middle - half, x + step * 0.6, middle + half), fill=colour)
