"""Where the agent's eyes look while nothing happens: to one side or the other, which it has to choose.

One evaluation of the flow gives the mean of all that may come, and the mean of two faces that look to the left and to
the right is no face. So the eyes of a unit are compared with drawn ones of both sides and with their mean.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..world.face import ASIDE, HEAD, LOOKS, Pose, film
from ..world.words import PEOPLE

EYES = (slice(18, 38), slice(18, 46))  # rows and columns
LEFT, MEAN, RIGHT, BLINK = -1, 0, 1, 2


@cache
def _known(person: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pictures of eyes [T, pixels] and which each is [T], at every height of the head."""
    look = LOOKS[person]
    heights, eyes = range(-HEAD, HEAD + 1), (slice(None), *EYES)
    left, right = (film([Pose(0, 0, gaze, h) for h in heights], look)[eyes] for gaze in (-ASIDE, ASIDE))
    lids = product((1, 2), (-ASIDE, 0, ASIDE), heights)
    closed = film([Pose(0, lid, gaze, h) for lid, gaze, h in lids], look)[eyes]
    mean = (left.astype(np.float32) + right) / 2
    kinds = [LEFT] * len(left) + [MEAN] * len(mean) + [RIGHT] * len(right) + [BLINK] * len(closed)
    pictures = np.concatenate([left, mean, right, closed]).astype(np.float32)
    return pictures.reshape(len(pictures), -1), np.array(kinds)


def sides(frames: NDArray[np.uint8], person: str = PEOPLE[0]) -> NDArray[np.int64]:
    """frames [K, 4, 64, 64, 3] of a person -> int64 [K]: LEFT, MEAN, RIGHT or BLINK, what the last frame of each unit
    is nearest to. Eyes that rest on the user, as they do while somebody speaks, are nearest to half-closed ones: BLINK
    as well."""
    pictures, kinds = _known(person)
    eyes = frames[:, -1, *EYES].reshape(len(frames), -1).astype(np.float32)
    # |a - b|^2 without |a|^2, which is the same for every b.
    return kinds[((pictures**2).sum(axis=1) - 2 * eyes @ pictures.T).argmin(axis=1)]
