"""Timbres that nobody designed: eSpeak variants with formants, balance and pitch drawn at random, extremes included.

eSpeak's own 50 are sober. A voice whose third formant is missing, or whose first lies a quarter too low, is nothing
that an ear which heard only those has learnt to see through. The format is eSpeak NG's (docs/voices.md there).
"""

from __future__ import annotations

import random
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

COUNT = 36
_FORMANTS = 9
_LACKING = 0.2  # share of timbres without a third, and of those without a fourth formant


def variant(number: int) -> str:
    """The text of a variant file."""
    rng = random.Random(f"timbre-{number}")
    low = rng.randint(70, 190)
    lines = ["language variant", f"name made{number}", f"pitch {low} {round(low * rng.uniform(1.1, 1.6))}"]
    size = rng.uniform(0.8, 1.2)  # of the vocal tract: all formants together
    for formant in range(_FORMANTS):
        frequency = round(100 * size * rng.uniform(0.85, 1.15))
        strength, width = round(100 * 2 ** rng.uniform(-1, 0.8)), round(100 * 2 ** rng.uniform(-0.8, 0.8))
        if formant in (3, 4) and rng.random() < _LACKING:
            frequency = strength = width = 9
        lines.append(f"formant {formant} {frequency} {strength} {width}")
    lines += [f"voicing {round(100 * 2 ** rng.uniform(-1.2, 0.8))}", f"flutter {rng.randint(0, 8)}"]
    lines += [f"consonants {rng.randint(60, 140)} {rng.randint(60, 140)}", f"roughness {rng.randint(0, 5)}"]
    if rng.random() < 0.5:
        bands = ((600, 255), (1200, rng.randint(90, 255)), (2000, rng.randint(80, 255)), (3500, rng.randint(40, 255)))
        lines.append("tone " + " ".join(f"{frequency} {strength}" for frequency, strength in bands))
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
