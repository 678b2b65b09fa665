"""Drawing for the planner's pages: matplotlib where it is installed, without a screen."""

from __future__ import annotations

from typing import Any


def pyplot() -> Any | None:
    """matplotlib.pyplot, or None (with a word why) where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (it comes with the `client` extra)")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
