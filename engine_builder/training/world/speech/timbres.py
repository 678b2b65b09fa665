"""Timbres that nobody designed: eSpeak variants with formants, balance and pitch drawn at random, extremes included.

The 50 of eSpeak's own that train are sober. A voice whose third formant is missing, or whose first lies a quarter too
low, is nothing that an ear which heard only those has learnt to see through. The format is eSpeak NG's (docs/voices.md
there).
"""

from __future__ import annotations

import random
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

COUNT = 160
_FORMANTS = 9
_LACKING = 0.2  # share of timbres without a third, and of those without a fourth formant
_SOME = 0.25  # share of timbres with one of the rarer traits, each for itself


def variant(number: int) -> str:
    """The text of a variant file. Everything is drawn from about as far apart as eSpeak's own list goes, without its
    whispers and without the timbres that judge."""
    rng = random.Random(f"timbre-{number}")

    def about(least: float, most: float) -> int:
        """A percentage, as often below 100 as above."""
        return round(100 * (least if rng.random() < 0.5 else most) ** rng.random())

    low = rng.randint(70, 190)
    lines = ["language variant", f"name made{number}", f"pitch {low} {round(low * rng.uniform(1.1, 1.6))}"]
    size = about(0.85, 1.17) / 100  # of the vocal tract: all formants together
    for formant in range(_FORMANTS):
        frequency = round(size * (about(0.78, 1.28) if formant < 3 else about(0.7, 1.4)))
        strength, width, offset = about(0.5, 1.7), about(0.5, 1.7), 0
        if formant in (3, 4) and rng.random() < _LACKING:
            frequency = strength = width = 9
        elif formant and rng.random() < _SOME:
            offset = rng.randint(-120, 150)
        lines.append(f"formant {formant} {frequency} {strength} {width} {offset}")
    lines += [f"voicing {about(0.4, 1.7)}", f"consonants {about(0.5, 2.0)} {about(0.4, 2.0)}"]
    lines += [f"flutter {rng.randint(0, 12)}", f"roughness {rng.randint(0, 5)}"]
    if rng.random() < 0.5:
        bands = ((600, 255), (1200, rng.randint(90, 255)), (2000, rng.randint(80, 255)), (3500, rng.randint(40, 255)))
        lines.append("tone " + " ".join(f"{frequency} {strength}" for frequency, strength in bands))
    if rng.random() < 2 * _SOME:
        lines.append("stressAdd " + " ".join(str(rng.randint(-20, 200)) for _ in range(8)))
        lines.append("stressAmp " + " ".join(str(rng.randint(14, 40)) for _ in range(8)))
    if rng.random() < _SOME:
        lines.append(f"echo {rng.randint(10, 200)} {rng.randint(10, 80)}")
    if rng.random() < _SOME:
        lines.append("breath " + " ".join(str(rng.randint(0, 12)) for _ in range(8)))
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=1)
def home() -> tempfile.TemporaryDirectory[str]:
    """A folder for `espeak-ng --path`: the data of the system's eSpeak NG with these variants beside its own. It is
    gone with the process."""
    told = subprocess.run(["espeak-ng", "--version"], capture_output=True, check=True, text=True, timeout=30).stdout
    found = re.search(r"Data at: (.+)", told)
    if found is None:
        raise RuntimeError(f"espeak-ng --version: expected 'Data at: DIR', got {told!r}")
    data = Path(found[1].strip())
    folder = tempfile.TemporaryDirectory(prefix="timbres-")
    own = Path(folder.name) / "espeak-ng-data"
    variants = own / "voices" / "!v"
    variants.mkdir(parents=True)
    for entry in (*data.iterdir(), *(data / "voices").iterdir()):
        link = own / entry.relative_to(data)
        if entry.name not in ("voices", "!v"):
            link.symlink_to(entry)
    for number in range(COUNT):
        (variants / f"made{number}").write_text(variant(number))
    return folder
