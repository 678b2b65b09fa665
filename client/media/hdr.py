"""Films that are brighter than a screen (PQ as in HDR10, HLG as phones record it) -> colours of an ordinary screen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..stream.units import UInt8

PQ, HLG = 16, 18  # transfer characteristics (ITU-T H.273)
PAPER_NITS, HLG_NITS = 203.0, 1000.0  # what white paper is graded to (ITU-R BT.2408); the peak of a HLG screen
KNEE = 0.75  # of white: brighter is compressed, darker stays
TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)


def toned(picture: NDArray[np.uint16], transfer: int) -> UInt8:
    """uint16 [H, W, 3] of BT.2020 -> uint8 sRGB."""
    light = np.maximum(_LIGHT[transfer][picture] @ TO_709.T, 0.0)
    light = np.where(light > KNEE, 1 - (1 - KNEE) * np.exp((KNEE - light) / (1 - KNEE)), light)
    coded = np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    return np.rint(coded * 255).astype(np.uint8)


def _pq(code: np.ndarray) -> np.ndarray:
    root = code ** (1 / 78.84375)
    light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    return 10_000 / PAPER_NITS * light


def _hlg(code: np.ndarray) -> np.ndarray:
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return HLG_NITS / PAPER_NITS * scene**1.2


_CODES = np.linspace(0, 1, 1 << 16)
_LIGHT = {PQ: _pq(_CODES).astype(np.float32), HLG: _hlg(_CODES).astype(np.float32)}  # 1 is white paper
