"""Configs by name: the tutor's size, and the geometries of the papers."""

from __future__ import annotations

from dataclasses import replace

from .config import AudioConfig, BackboneConfig, ConfigError, LanguageConfig, ModelConfig, SolverConfig, VideoConfig


def _geometry(name: str, video: VideoConfig, backbone: BackboneConfig) -> ModelConfig:
    return ModelConfig(
        name=name,
        audio=AudioConfig(
            sample_rate=24_000,
            tokens=2,
            latent_dim=32,
            perceive_tokens=4,
            mel_bands=80,
            encoder_channels=384,
            codec="mimi-vae",
        ),
        video=video,
        language=LanguageConfig(
            # Qwen3's table has 151,936 rows of which the tokenizer uses 151,669: the special ids are spare rows.
            vocab_size=151_936,
            slots=6,
            text_tokens=8,
            pad_id=151_900,
            query_id=151_901,
            eou_id=151_902,
            first_state_id=151_903,
        ),
        backbone=backbone,
        solver=SolverConfig(steps=4, shift=3.0),
    )


# v0.1: 192x336 is 12 x 21 = 252 tokens a unit, v0.2: 640x368 is 40 x 23 = 920 (inferred from the papers' frame sizes
# and a total spatial stride of 16): one latent frame of the Wan VAE, 2 x 2 neighbours a token. The papers name no
# codecs; these are public ones that fit a unit exactly. What is seen and heard goes through small encoders that are
# trained with the Transformer, as in the papers. Backbones have the published Qwen3 shapes.
_V01_VIDEO = VideoConfig(
    height=192, width=336, stride=16, latent_dim=64, perceive_grid=(4, 7), encoder_channels=128, codec="taehv"
)
_V02_VIDEO = replace(_V01_VIDEO, height=368, width=640, perceive_grid=(5, 8))
_QWEN3_06B = BackboneConfig(hidden_size=1024, layers=28, heads=16, kv_heads=8, head_dim=128, intermediate_size=3072)
_QWEN3_17B = replace(_QWEN3_06B, hidden_size=2048, intermediate_size=6144)
_QWEN3_8B = replace(_QWEN3_06B, hidden_size=4096, layers=36, heads=32, intermediate_size=12288, tied_head=False)

PRESETS: dict[str, ModelConfig] = {
    # The words of two voices span 400 directions, and a backbone of 256 channels alone would garble both.
    "tiny": ModelConfig(audio=AudioConfig(head_channels=512)),
    "v0.1-0.6b": _geometry("v0.1-0.6b", _V01_VIDEO, _QWEN3_06B),
    "v0.1-1.7b": _geometry("v0.1-1.7b", _V01_VIDEO, _QWEN3_17B),
    "v0.1-8b": _geometry("v0.1-8b", _V01_VIDEO, _QWEN3_8B),
    "v0.1-8b-wan": _geometry("v0.1-8b-wan", replace(_V01_VIDEO, codec="wan21"), _QWEN3_8B),
    "v0.2-8b": _geometry("v0.2-8b", _V02_VIDEO, _QWEN3_8B),
    "v0.2-8b-wan": _geometry("v0.2-8b-wan", replace(_V02_VIDEO, codec="wan21"), _QWEN3_8B),
}


def preset(name: str) -> ModelConfig:
    """The config of a named preset; an unknown name lists the known ones."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}") from None
