"""Who the agent is to be: a picture and a voice from files, in the words of the session option `persona`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..stream.errors import MediaError
from ..stream.units import UNIT_SECONDS, UnitShape
from .loudness import QUIET_DB, level_db
from .pictures import VideoFile
from .sound import read_audio, to_pcm16

UNITS = 13  # of a voice that a server takes
LOOK_SECONDS = 30  # of a file, for where somebody begins to speak


def with_references(
    options: Mapping[str, Any], shape: UnitShape, picture: Path | None = None, voice: Path | None = None
) -> dict[str, Any]:
    """`options` with the persona of these files; see `references` and `joined`."""
    return joined(options, references(shape, picture, voice))


def joined(options: Mapping[str, Any], references: Mapping[str, str]) -> dict[str, Any]:
    """`options` with `references` as their persona, the prompt as a part of it. None: as they were."""
    if not references:
        return dict(options)
    rest = dict(options)
    prompt = {"prompt": rest.pop("prompt")} if "prompt" in rest else {}
    return {**rest, "persona": {**prompt, **references}}


def references(shape: UnitShape, picture: Path | None = None, voice: Path | None = None) -> dict[str, str]:
    """`picture` and `voice` of a persona in base64, as far as there are files.

    picture: any picture, or a video's first, cropped as the user's own is.  voice: any sound; of it the first two
    seconds from where somebody speaks.
    Raises MediaError for a file that cannot be read and for a voice that is not heard.
    """
    made = {}
    if picture is not None:
        shown = next(VideoFile(picture, shape.height, shape.width).frames())
        made["picture"] = base64.b64encode(np.ascontiguousarray(shown).tobytes()).decode()
    if voice is not None:
        made["voice"] = base64.b64encode(_spoken(voice, shape)).decode()
    return made


def _spoken(path: Path, shape: UnitShape) -> bytes:
    """PCM16."""
    sound = read_audio(path, shape.sample_rate, LOOK_SECONDS)
    window = shape.sample_rate // 50
    loud = np.flatnonzero(level_db(sound, window) > QUIET_DB)
    if not loud.size:
        raise MediaError(f"{path}: nobody speaks in its first {LOOK_SECONDS} s; a voice is to be heard there")
    said = sound[loud[0] * window :][: UNITS * shape.samples]
    if said.size < shape.samples:
        raise MediaError(
            f"{path}: expected at least {UNIT_SECONDS:g} s of a voice, got {said.size / shape.sample_rate:.2f} s"
        )
    return to_pcm16(said)
