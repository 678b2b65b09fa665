"""Codec families of the model: `audio.codec` and `video.codec` of a config name one each."""

from __future__ import annotations

from ...config import AudioConfig, VideoConfig
from .codec import Codec, PublishedCodec
from .mdct import Mdct
from .mimi_vae import MimiVae
from .patch import Patch
from .taehv import Taehv
from .wan21 import Wan21

_AUDIO = {"mdct": Mdct, "mimi-vae": MimiVae}
_VIDEO = {"patch": Patch, "taehv": Taehv, "wan21": Wan21}

__all__ = ["Codec", "PublishedCodec", "audio_codec", "video_codec"]


def audio_codec(c: AudioConfig) -> Codec:
    """The audio codec that a config names, without meaningful weights."""
    return _AUDIO[c.codec](c)


def video_codec(c: VideoConfig) -> Codec:
    """The video codec that a config names, without meaningful weights."""
    return _VIDEO[c.codec](c)
