"""The persona of a session: a prompt, and a picture and a voice that are prefilled as the agent's own past.

    "persona": {"prompt": "..", "picture": base64 of RGB [H, W, 3], "voice": base64 of PCM16, mono, at the model's rate}

Any of the three may be missing. A voice is cut into units, silence after its end; a picture stands still for as long.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import numpy as np

from engine_builder.config import ModelConfig

from ..messages import MAX_PERSONA_UNITS, Float32, UInt8

_FIELDS = ("prompt", "picture", "voice")


@dataclass(frozen=True, eq=False)
class Persona:
    """picture: uint8 [H, W, 3].  voice: float32 [units, N]."""

    picture: UInt8 | None = None
    voice: Float32 | None = None

    @property
    def units(self) -> int:
        """Of the agent's past."""
        return len(self.voice) if self.voice is not None else int(self.picture is not None)

    @classmethod
    def parse(cls, given: object, config: ModelConfig, encodes: bool, prompt: object = "") -> tuple[Persona, object]:
        """The references, and the prompt as it was given, or `prompt`. encodes: whether the engines take references.

        Raises ValueError that names the field, the value and what was expected.
        """
        if not isinstance(given, dict) or not set(given) <= set(_FIELDS):
            raise ValueError(f"persona: expected an object of {', '.join(_FIELDS)}, got {str(given)[:80]!r}")
        picture, voice = (_bytes(f"persona.{name}", given.get(name)) for name in ("picture", "voice"))
        if (picture is not None or voice is not None) and not encodes:
            raise ValueError(
                "persona: expected a prompt alone, for these engines cannot encode references; rebuild them"
            )
        made = cls(
            None if picture is None else _picture(picture, config), None if voice is None else _voice(voice, config)
        )
        return made, given.get("prompt", prompt)


NOBODY = Persona()


def largest(config: ModelConfig) -> int:
    """Bytes of base64 of the largest references."""
    pixels, samples = config.video.height * config.video.width * 3, MAX_PERSONA_UNITS * config.audio.unit_samples
    return 4 * (pixels // 3 + 1) + 4 * (2 * samples // 3 + 1)


def _bytes(where: str, value: object) -> bytes | None:
    if value is None:
        return None
    try:
        return base64.b64decode(value, validate=True)  # pyright: ignore[reportArgumentType]
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"{where}: expected base64, got {str(value)[:40]!r}") from None


def _picture(data: bytes, config: ModelConfig) -> UInt8:
    shape = (config.video.height, config.video.width, 3)
    if len(data) != np.prod(shape):
        raise ValueError(f"persona.picture: expected {np.prod(shape)} bytes, RGB {list(shape)}, got {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _voice(data: bytes, config: ModelConfig) -> Float32:
    unit, most = config.audio.unit_samples, MAX_PERSONA_UNITS * config.audio.unit_samples
    if len(data) % 2 or not unit <= len(data) // 2 <= most:
        raise ValueError(
            f"persona.voice: expected {unit} to {most} samples of PCM16 at {config.audio.sample_rate} Hz, "
            f"got {len(data)} bytes"
        )
    pcm = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    return np.pad(pcm, (0, -len(pcm) % unit)).reshape(-1, unit)
