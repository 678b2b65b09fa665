"""Every size of a model, in one frozen and validated place.

A `ModelConfig` is what `config.json` of a checkpoint holds and what the manifest of an engine directory repeats.
Nothing else in the package may state a shape: tokens per unit, samples per unit and cache geometry are derived here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

UNIT_MS = 160
FRAMES_PER_UNIT = 4
FPS = 25
CODEC_FRAMES_PER_UNIT = 8  # 50 Hz, the frame rate of the log-mel front end and of the MDCT
TAU_FREQUENCIES = 128  # of the embedding of the path time
SINK_UNITS, RECENT_UNITS = 4, 50  # retention of a session that asks for none: its first units and the last 8 s
WAN_CHANNELS, WAN_STRIDE = 16, 8  # latents of the Wan 2.1 VAE and of TAEHV: per 4 frames x 8 x 8 pixels
AUDIO_CODECS, VIDEO_CODECS = ("mdct", "mimi-vae"), ("patch", "taehv", "wan21")
PERCEIVE = ("conv", "codec")  # small encoders trained with the Transformer, or the codec's own and a projection
# Fields that configs of 0.1 lack, with what they mean there.
_LATER = {
    "audio": {"codec": "mdct", "codec_channels": 0, "perceive": "conv", "head_channels": 0},
    "video": {"codec": "patch", "codec_channels": 0, "perceive": "conv"},
    "language": {"state_bias": []},
}

T = TypeVar("T")


class ConfigError(ValueError):
    """A size that cannot work; the message names the field, the value and what was expected."""


def _check_codec(stream: str, c: AudioConfig | VideoConfig, known: tuple[str, ...]) -> None:
    _require(c.codec in known, f"{stream}.codec", c.codec, f"one of {', '.join(known)}")
    _require(c.perceive in PERCEIVE, f"{stream}.perceive", c.perceive, f"one of {', '.join(PERCEIVE)}")
    _require(c.codec_channels >= 0, f"{stream}.codec_channels", c.codec_channels, ">= 0")


def _require(condition: bool, where: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{where}: expected {expected}, got {value!r}")


def _positive(part: object, where: str, *names: str) -> None:
    for name in names:
        _require(0 < getattr(part, name) < 2**31, f"{where}.{name}", getattr(part, name), "> 0 and < 2^31")


@dataclass(frozen=True)
class AudioConfig:
    """Audio in and out. One unit is 160 ms = 8 codec frames of `hop` samples."""

    sample_rate: int = 16_000
    tokens: int = 2  # agent audio latent tokens a unit (z^a)
    latent_dim: int = 480  # channels of one latent token
    head_channels: int = 0  # of the head's hidden layer; 0: the head is linear, and `hidden_size` bounds its rank
    perceive_tokens: int = 2  # user audio tokens a unit (e^a)
    mel_bands: int = 40
    encoder_channels: int = 128
    encoder_dilations: tuple[int, ...] = (1, 2, 4, 8, 2, 1)  # one a convolution; together they hear 0.74 s
    codec: str = "mdct"
    codec_channels: int = 0  # base width of a published codec; 0: the published one
    perceive: str = "conv"

    @property
    def unit_samples(self) -> int:
        """PCM samples in one 160 ms unit."""
        return self.sample_rate * UNIT_MS // 1000

    @property
    def hop(self) -> int:
        """Samples between two codec frames (20 ms)."""
        return self.unit_samples // CODEC_FRAMES_PER_UNIT

    def check(self) -> None:
        _require(
            self.sample_rate > 0 and self.sample_rate % 50 == 0,
            "audio.sample_rate",
            self.sample_rate,
            "a multiple of 50 Hz",
        )
        for name in ("tokens", "perceive_tokens"):
            value = getattr(self, name)
            _require(
                value > 0 and CODEC_FRAMES_PER_UNIT % value == 0,
                f"audio.{name}",
                value,
                f"a divisor of {CODEC_FRAMES_PER_UNIT}",
            )
        _check_codec("audio", self, AUDIO_CODECS)
        if self.codec == "mimi-vae":
            for name, value in (("sample_rate", 24_000), ("tokens", 2), ("latent_dim", 32)):
                _require(getattr(self, name) == value, f"audio.{name}", getattr(self, name), f"{value} with mimi-vae")
        frames = CODEC_FRAMES_PER_UNIT // self.tokens
        _require(
            0 < self.latent_dim <= frames * self.hop,
            "audio.latent_dim",
            self.latent_dim,
            f"1 to {frames * self.hop} (MDCT coefficients per token)",
        )
        if self.perceive == "codec":
            expected = f"{self.tokens} (one a latent) with audio.perceive codec"
            _require(self.perceive_tokens == self.tokens, "audio.perceive_tokens", self.perceive_tokens, expected)
        _require(self.head_channels >= 0, "audio.head_channels", self.head_channels, "0 or more")
        _positive(self, "audio", "mel_bands", "encoder_channels")
        _require(
            len(self.encoder_dilations) > 0 and all(0 < d < 1024 for d in self.encoder_dilations),
            "audio.encoder_dilations",
            self.encoder_dilations,
            "at least one, each from 1 to 1023",
        )


@dataclass(frozen=True)
class VideoConfig:
    """Video in and out. One unit is 4 frames; one latent token covers 4 frames x stride x stride pixels."""

    height: int = 64
    width: int = 64
    stride: int = 32
    latent_dim: int = 64
    perceive_grid: tuple[int, int] = (1, 1)  # rows x columns of user video tokens (e^v)
    encoder_channels: int = 32
    refine_channels: int = 8  # hidden channels of the causal refinement (patch)
    codec: str = "patch"
    codec_channels: int = 0  # as in AudioConfig
    perceive: str = "conv"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latent tokens."""
        return self.height // self.stride, self.width // self.stride

    @property
    def tokens(self) -> int:
        """Agent video latent tokens a unit (z^v)."""
        return self.grid[0] * self.grid[1]

    @property
    def perceive_tokens(self) -> int:
        """User video tokens a unit (e^v)."""
        return self.perceive_grid[0] * self.perceive_grid[1]

    @property
    def patch_dim(self) -> int:
        """Pixels values under one latent token: 4 frames x stride x stride x RGB."""
        return FRAMES_PER_UNIT * self.stride * self.stride * 3

    def check(self) -> None:
        _positive(self, "video", "height", "width", "stride", "encoder_channels", "refine_channels")
        for name in ("height", "width"):
            value = getattr(self, name)
            _require(value % self.stride == 0, f"video.{name}", value, f"a multiple of the stride {self.stride}")
            _require(value % 16 == 0, f"video.{name}", value, "a multiple of 16 (the perception stride)")
        _require(0 < self.latent_dim <= self.patch_dim, "video.latent_dim", self.latent_dim, f"1 to {self.patch_dim}")
        _check_codec("video", self, VIDEO_CODECS)
        if self.codec != "patch":
            what = f"a multiple of {WAN_STRIDE} with {self.codec}"
            _require(self.stride % WAN_STRIDE == 0, "video.stride", self.stride, what)
            size = WAN_CHANNELS * (self.stride // WAN_STRIDE) ** 2
            _require(self.latent_dim == size, "video.latent_dim", self.latent_dim, f"{size} with {self.codec}")
        rows, columns = self.perceive_grid
        if self.perceive == "codec":
            what = f"at most the latents' grid {self.grid} with video.perceive codec"
            _require(rows <= self.grid[0] and columns <= self.grid[1], "video.perceive_grid", self.perceive_grid, what)
        _require(
            0 < rows <= self.height // 16 and 0 < columns <= self.width // 16,
            "video.perceive_grid",
            self.perceive_grid,
            f"at most ({self.height // 16}, {self.width // 16})",
        )


@dataclass(frozen=True)
class LanguageConfig:
    """Language and state slots, typed text, and the ids of the special tokens."""

    vocab_size: int = 512
    slots: int = 4  # S: the state slot plus up to S-1 text tokens a unit
    text_tokens: int = 4  # typed user tokens carried by one unit (u^t); more are spread over later units
    pad_id: int = 0
    query_id: int = 1  # asks for the first slot; last token of the bidirectional part of a block
    eou_id: int = 2  # ends the slots of a unit; never fed back
    states: tuple[str, ...] = ("listen", "speak")
    first_state_id: int = 3  # states occupy [first_state_id, first_state_id + len(states))
    state_bias: tuple[float, ...] = ()  # added to the logits of the states before the likeliest is chosen; (): nothing

    @property
    def state_ids(self) -> tuple[int, ...]:
        return tuple(self.first_state_id + i for i in range(len(self.states)))

    @property
    def biases(self) -> tuple[float, ...]:
        """`state_bias`, one of every state."""
        return self.state_bias or (0.0,) * len(self.states)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that are not text; every other id below vocab_size is."""
        return (self.pad_id, self.query_id, self.eou_id, *self.state_ids)

    def state_name(self, token_id: int) -> str:
        """The agent state that a state token stands for."""
        return self.states[token_id - self.first_state_id]

    def check(self) -> None:
        _require(self.slots >= 1, "language.slots", self.slots, ">= 1 (the state slot)")
        _require(self.text_tokens >= 1, "language.text_tokens", self.text_tokens, ">= 1")
        _require(
            len(self.states) >= 1 and len(set(self.states)) == len(self.states),
            "language.states",
            self.states,
            "distinct state names",
        )
        _require(
            len(self.state_bias) in (0, len(self.states)) and all(abs(bias) < 1e4 for bias in self.state_bias),
            "language.state_bias",
            self.state_bias,
            f"nothing, or {len(self.states)} finite numbers below 10,000",
        )
        specials = self.special_ids
        _require(
            len(set(specials)) == len(specials) and min(specials) >= 0 and max(specials) < self.vocab_size,
            "language special ids",
            specials,
            f"distinct ids below vocab_size {self.vocab_size}",
        )


@dataclass(frozen=True)
class BackboneConfig:
    """A Qwen3-shaped Transformer: RMSNorm, GQA, QK-norm, RoPE, SwiGLU."""

    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 768
    rope_theta: float = 1_000_000.0
    rms_eps: float = 1e-6
    tied_head: bool = True  # the language head is the embedding table

    def check(self) -> None:
        _positive(
            self, "backbone", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "intermediate_size", "rms_eps"
        )
        _require(
            self.heads % self.kv_heads == 0,
            "backbone.kv_heads",
            self.kv_heads,
            f"a divisor of heads ({self.heads})",
        )
        _require(self.head_dim % 2 == 0, "backbone.head_dim", self.head_dim, "an even number (RoPE)")
        _require(self.rope_theta > 1, "backbone.rope_theta", self.rope_theta, "> 1")


@dataclass(frozen=True)
class SolverConfig:
    """Flow-matching Euler schedule: `steps` evaluations from tau = 1 to 0, bent by `shift`."""

    steps: int = 4
    max_steps: int = 16
    shift: float = 1.0

    def taus(self, steps: int | None = None) -> list[float]:
        """The `steps + 1` path times, 1 first and 0 last.

        tau = shift * s / (1 + (shift - 1) * s) for s = 1 - i / steps: the resolution shift of Esser et al. 2024
        (arXiv 2403.03206, eq. 23), which the Wan models use as well.
        """
        n = self.steps if steps is None else steps
        _require(1 <= n <= self.max_steps, "solver steps", n, f"1 to {self.max_steps}")
        linear = [1.0 - i / n for i in range(n + 1)]
        return [self.shift * s / (1.0 + (self.shift - 1.0) * s) for s in linear]

    def check(self) -> None:
        _require(1 <= self.steps <= self.max_steps, "solver.steps", self.steps, f"1 to max_steps ({self.max_steps})")
        _require(self.shift > 0, "solver.shift", self.shift, "> 0")


@dataclass(frozen=True)
class ModelConfig:
    """All sizes of one model. Immutable; invalid sizes raise `ConfigError` on construction."""

    name: str = "tiny"
    audio: AudioConfig = field(default_factory=AudioConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)

    def __post_init__(self) -> None:
        for part in (self.audio, self.video, self.language, self.backbone, self.solver):
            part.check()

    # -- token counts of one unit ------------------------------------------------------------------------------
    @property
    def latent_tokens(self) -> int:
        """Tokens of one agent unit: z^v then z^a. Also the width of a performer pass."""
        return self.video.tokens + self.audio.tokens

    @property
    def av_tokens(self) -> int:
        """Tokens of sight and sound that a unit commits: latents, percepts and the query."""
        return self.latent_tokens + self.video.perceive_tokens + self.audio.perceive_tokens + 1

    @property
    def block_tokens(self) -> int:
        """Tokens of a think pass over a context block before its slots, padded text included."""
        return self.av_tokens + self.language.text_tokens

    @property
    def unit_positions(self) -> int:
        """RoPE positions reserved for one unit: block and all slots. Unit k starts at k * unit_positions."""
        return self.block_tokens + self.language.slots

    @property
    def kv_bytes_per_token(self) -> int:
        """float32 bytes that one committed token occupies in the pool, K and V, all layers."""
        b = self.backbone
        return 2 * b.layers * b.kv_heads * b.head_dim * 4

    # -- serialisation -----------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON: two configs with one digest are the same model shape."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def from_dict(cls, data: object) -> ModelConfig:
        """Builds a config from parsed JSON; unknown, missing and mistyped fields are named."""
        if isinstance(data, dict):
            absent = {stream: later for stream, later in _LATER.items() if isinstance(data.get(stream), dict)}
            data = {**data, **{stream: later | data[stream] for stream, later in absent.items()}}
            audio = data.get("audio")
            if isinstance(audio, dict) and isinstance(layers := audio.get("encoder_layers"), int) and 0 < layers < 100:
                named = {name: value for name, value in audio.items() if name != "encoder_layers"}
                data["audio"] = {"encoder_dilations": [1] * layers} | named
        return from_json(cls, data, "config")

    @classmethod
    def load(cls, path: Path) -> ModelConfig:
        try:
            data = msgspec.json.decode(path.read_bytes())
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; a checkpoint directory holds config.json") from None
        except (ValueError, RecursionError) as error:  # a Git LFS pointer, a cut file, a name that is no text
            raise ConfigError(f"{path}: not valid JSON ({error})") from None
        return cls.from_dict(data)


def from_json(kind: type[T], data: object, where: str) -> T:
    """Parsed JSON as `kind`, a dataclass: exactly its fields, each of its type. ConfigError names what is not."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    hints = get_type_hints(kind, include_extras=True)
    unknown, missing = sorted(set(data) - set(hints)), sorted(set(hints) - set(data))
    if unknown or missing:
        raise ConfigError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    values = {}
    for name, hint in hints.items():
        here, value = f"{where}.{name}", data[name]
        if is_dataclass(hint):
            values[name] = from_json(hint, value, here)  # type: ignore[type-var]
            continue
        try:
            values[name] = msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            # "Expected `int`, got `str` - at `$[0].name`": the place belongs to the name.
            what, _, place = str(error).partition(" - at ")
            got = "" if place else f" ({value!r:.80})"
            what = what.replace("Expected", "expected").replace("`", "")
            raise ConfigError(f"{here}{place.strip('`').removeprefix('$')}: {what}{got}") from None
    return kind(**values)
