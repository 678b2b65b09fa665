"""Numbers as options take them: what is none, or none that can be meant, is refused where it is read."""

from __future__ import annotations

import argparse
from collections.abc import Callable

MOST = 10**9


def whole(least: int = 0, most: int = MOST) -> Callable[[str], int]:
    return lambda text: int(_number(int, text, least, most, "a whole number"))


def real(least: float = 0.0, most: float = MOST) -> Callable[[str], float]:
    return lambda text: _number(float, text, least, most, "a number")


def _number(kind: Callable[[str], float], text: str, least: float, most: float, what: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:  # neither is what is no number
        raise argparse.ArgumentTypeError(f"expected {what} from {least:.10g} to {most:.10g}, got {text!r}")
    return value


port = whole(0, 65535)
seed = whole(0, 2**63 - 1)
positive = real(1e-6)
share = real(0.0, 1.0)
