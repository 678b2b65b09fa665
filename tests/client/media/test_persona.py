"""What leaves here of a persona is what a server takes, and a file that cannot be one is refused with the reason."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.media.persona import UNITS, with_references
from client.stream import MediaError, UnitShape
from engine_builder.presets import preset
from triton_models.runtime.duplex.options import OptionLimits, SessionOptions

pytestmark = pytest.mark.unit
CONFIG = preset("tiny")
SHAPE = UnitShape(CONFIG.audio.unit_samples, CONFIG.video.height, CONFIG.video.width)


def sound(path: Path, seconds: float, silence: float = 0.0, rate: int = 22_050) -> Path:
    tone = 0.3 * np.sin(np.arange(round(seconds * rate)) * 0.1)
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes((np.concatenate((np.zeros(round(silence * rate)), tone)) * 32767).astype("<i2").tobytes())
    return path


def test_a_server_takes_what_files_give(tmp_path: Path) -> None:
    face = tmp_path / "face.png"
    Image.new("RGB", (200, 100), (200, 30, 30)).save(face)
    voice = sound(tmp_path / "voice.wav", seconds=5.0, silence=3.0)
    options = with_references({"prompt": "english", "seed": 3}, SHAPE, face, voice)
    took = SessionOptions.parse(json.dumps(options), OptionLimits(model=CONFIG, encodes=True))
    assert (took.prompt, took.seed) == ("english", 3)
    assert took.persona.picture is not None
    assert took.persona.picture.shape == (SHAPE.height, SHAPE.width, 3)
    assert np.abs(took.persona.picture.astype(int) - (200, 30, 30)).max() < 8
    assert took.persona.voice is not None
    assert took.persona.voice.shape == (UNITS, SHAPE.samples), "two seconds of it, from where it begins"
    assert np.sqrt((took.persona.voice[0] ** 2).mean()) > 0.1


def test_without_files_the_options_stay() -> None:
    assert with_references({"prompt": "english"}, SHAPE) == {"prompt": "english"}


@pytest.mark.parametrize(
    ("seconds", "silence", "message"), [(0.0, 2.0, "nobody speaks"), (0.1, 0.5, "at least 0.16 s of a voice")]
)
def test_a_voice_that_is_none_is_refused(seconds: float, silence: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=message):
        with_references({}, SHAPE, voice=sound(tmp_path / "voice.wav", seconds, silence))
