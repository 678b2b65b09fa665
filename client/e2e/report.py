"""Rows of the measurement as CSV, as a table, and as one picture with bars."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PARTS = (
    ("network", "#b5578d"),
    ("model", "#0a5a97"),
    ("server", "#8b9199"),
    ("codec", "#dd8f06"),
    ("jitter_buffer", "#0b8a66"),
    ("units", "#c3c7c4"),
)
WIDTH, BAR, GAP, LEFT, TOP = 1100, 20, 8, 230, 60
SPAN_MS = 1000.0


@dataclass(frozen=True)
class Row:
    """One transport behind one network; milliseconds are medians. units: the rest, most of it until a unit is full.
    lips_ms: see `feel.lips`."""

    transport: str
    rtt_ms: float
    loss: float
    words: int
    answered: int
    right: int
    sound_ms: float
    sound_p90_ms: float
    picture_ms: float
    network: float
    model: float
    server: float
    codec: float
    jitter_buffer: float
    units: float
    concealed: float
    lips_ms: float
    load: float

    @property
    def name(self) -> str:
        return f"{self.transport}  {self.rtt_ms:g} ms  {self.loss:.0%} loss"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(
            {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(row).items()} for row in rows
        )


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    parts = " + ".join(part.replace("_", " ") for part, _ in PARTS)
    heads = ("over", "round trip", "loss", "first sound, median (p90)", parts, "first picture", "mouth after voice")
    lines = [f"| {' | '.join((*heads, 'answered, right'))} |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for r in rows:
        sound = f"{r.sound_ms:.0f} ms ({r.sound_p90_ms:.0f})"
        counts = f"{r.answered} of {r.words}, {r.right}"
        where = " + ".join(f"{getattr(r, part):.0f}" for part, _ in PARTS)
        seen = (f"{r.picture_ms:.0f} ms", f"{r.lips_ms:.0f} ms")
        cells = (r.transport, f"{r.rtt_ms:g} ms", f"{r.loss:.0%}", sound, where, *seen, counts)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """A bar a row: where the time between the end of a word and the first sound went."""
    height = TOP + len(rows) * (BAR + GAP) + 30
    image = Image.new("RGB", (WIDTH, height), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    scale = (WIDTH - LEFT - 30) / SPAN_MS
    x = LEFT
    for part, colour in PARTS:
        label = part.replace("_", " ")
        pen.rectangle((x, 16, x + 12, 28), fill=colour)
        pen.text((x + 18, 14), label, "black", font)
        x += 40 + round(pen.textlength(label, font))
    for ms in range(0, round(SPAN_MS) + 1, 100):
        at = LEFT + ms * scale
        pen.line((at, TOP - 6, at, height - 26), fill="#dddddd")
        pen.text((at, height - 22), f"{ms}", "#555555", font, anchor="ma")
    for place, row in enumerate(rows):
        y, at = TOP + place * (BAR + GAP), float(LEFT)
        pen.text((LEFT - 10, y + BAR / 2), row.name, "black", font, anchor="rm")
        for part, colour in PARTS:
            end = min(at + max(0.0, getattr(row, part)) * scale, WIDTH - 30)
            pen.rectangle((at, y, end, y + BAR), fill=colour)
            at = end
        pen.text((at + 6, y + BAR / 2), f"{row.sound_ms:.0f} ms", "black", font, anchor="lm")
    image.save(path)
