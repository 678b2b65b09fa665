"""The session object: what a client may configure, what is in force, and what this server can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from client.stream.units import FPS, UNIT_MS, UnitShape
from client.web.realtime.wording import EventError, Wording
from client.web.sound import HIGHEST_RATE, LOWEST_RATE

RATE = 24_000  # of `audio/pcm` and `pcm16`, unless the client names another
MODEL_OPTIONS = ("seed", "solver_steps", "retention")
# Taken without effect, because clients send them with every session: nothing in a duplex model answers to them.
IGNORED = (
    "client_secret",
    "id",
    "include",
    "input_audio_noise_reduction",
    "input_audio_transcription",
    "max_output_tokens",
    "max_response_output_tokens",
    "model",
    "object",
    "parallel_tool_calls",
    "prompt",
    "reasoning",
    "speed",
    "temperature",
    "tool_choice",
    "tracing",
    "truncation",
    "voice",
)

CAPABILITIES = {
    "full_duplex": "the model hears and speaks at the same time and decides by itself, every 160 ms, whether it speaks",
    "speech_events": "simulated: a level meter at the gateway, plus the model's own state when it takes or yields the "
    "floor; the model sees neither these events nor commits",
    "response_create": "a hint: response.created comes at once, the voice when the model speaks; done as failed with "
    "model_silent if it does not",
    "response_cancel": "fenced at the gateway: nothing more of that response is sent; the model is not told",
    "playback": "playback.ack and conversation.item.truncate record what was heard; the model's history keeps the rest",
    "video": "wan.video.append (JPEG, PNG or WebP in base64); session.wan.video.output = jpeg turns on wan.video.delta",
    "resume": "session.resume with session_id and last_event_id, after session.created of the new socket",
    "not_supported": ["tools", "transcription of the user", "editing of history", "voices", "G.711"],
}


@dataclass(frozen=True)
class SessionConfig:
    """What is in force. modality: of responses, audio (with transcript) or text."""

    instructions: str = ""
    modality: str = "audio"
    input_rate: int = RATE
    output_rate: int = RATE
    turn_detection: dict[str, Any] | None = field(default_factory=lambda: {"type": "server_vad"})
    video: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # of MODEL_OPTIONS

    def updated(self, given: Mapping[str, Any], *, started: bool) -> SessionConfig:
        """The configuration after `session.update`. started: the model has begun, its prompt and options are fixed.

        Raises EventError naming the field; nothing changes then.
        """
        new = self
        for name, value in given.items():
            new = new._with(name, value)
        if started and (new.instructions, new.options) != (self.instructions, self.options):
            where = "session.instructions" if new.instructions != self.instructions else "session.wan"
            raise EventError("session_started", f"{where}: the model takes it before its first unit only", where)
        return new

    def model_options(self) -> dict[str, Any]:
        """Options of the start request."""
        return {**({"prompt": self.instructions} if self.instructions else {}), **self.options}

    def show(self, key: str, model: str, shape: UnitShape, wording: Wording, grace: float) -> dict[str, Any]:
        """The session object of session.created and session.updated."""
        common: dict[str, Any] = {
            "id": key,
            "object": "realtime.session",
            "model": model,
            "instructions": self.instructions,
            "tools": [],
            "tool_choice": "none",
            "wan": {
                "unit_ms": UNIT_MS,
                "model_rate": shape.sample_rate,
                "video": {
                    "output": "jpeg" if self.video else None,
                    "width": shape.width,
                    "height": shape.height,
                    "fps": FPS,
                },
                "resume_grace_s": grace,
                "ignored": list(IGNORED),
                "capabilities": CAPABILITIES,
                **self.options,
            },
        }
        modalities = ["text", "audio"] if wording.beta and self.modality == "audio" else [self.modality]
        if wording.beta:
            return common | {
                "modalities": modalities,
                "voice": "model",
                "input_audio_format": "pcm16",
                "output_audio_format": "pcm16",
                "input_audio_transcription": None,
                "turn_detection": self.turn_detection,
                "temperature": 0.8,
                "max_response_output_tokens": "inf",
            }
        pcm = {"type": "audio/pcm"}
        return common | {
            "type": "realtime",
            "output_modalities": modalities,
            "max_output_tokens": "inf",
            "audio": {
                "input": {"format": pcm | {"rate": self.input_rate}, "turn_detection": self.turn_detection},
                "output": {"format": pcm | {"rate": self.output_rate}, "voice": "model"},
            },
        }

    def _with(self, name: str, value: Any) -> SessionConfig:
        where = f"session.{name}"
        if name == "type":
            return self if value == "realtime" else _no(where, "realtime", value)
        if name == "instructions":
            return replace(self, instructions=value) if isinstance(value, str) else _no(where, "a string", value)
        if name in ("output_modalities", "modalities"):
            if not isinstance(value, list) or not value or not set(value) <= {"audio", "text"}:
                _no(where, '["audio"] or ["text"]', value)
            return replace(self, modality="audio" if "audio" in value else "text")
        if name == "input_audio_format":
            return replace(self, input_rate=_rate(where, value))
        if name == "output_audio_format":
            return replace(self, output_rate=_rate(where, value))
        if name == "turn_detection":
            return replace(self, turn_detection=_turn_detection(where, value))
        if name == "audio":
            return self._with_audio(value)
        if name == "wan":
            return self._with_wan(value)
        if name == "tools":
            return _no(where, "no tools (this model calls none)", value) if value else self
        if name in IGNORED:
            return self
        raise EventError("unknown_parameter", f"{where}: unknown", where)

    def _with_audio(self, value: Any) -> SessionConfig:
        new = self
        for side, settings in _object("session.audio", value, ("input", "output")).items():
            where = f"session.audio.{side}"
            for name, inner in _object(where, settings).items():
                if name == "format":
                    rate = _rate(f"{where}.format", inner)
                    new = replace(new, input_rate=rate) if side == "input" else replace(new, output_rate=rate)
                elif name == "turn_detection" and side == "input":
                    new = replace(new, turn_detection=_turn_detection(f"{where}.turn_detection", inner))
                elif name not in ("transcription", "noise_reduction", "voice", "speed"):
                    raise EventError("unknown_parameter", f"{where}.{name}: unknown", f"{where}.{name}")
        return new

    def _with_wan(self, value: Any) -> SessionConfig:
        given = dict(_object("session.wan", value, ("video", *MODEL_OPTIONS)))
        new = self
        if "video" in given:
            output = _object("session.wan.video", given.pop("video"), ("output",)).get("output")
            if output not in (None, "jpeg"):
                _no("session.wan.video.output", "jpeg or null", output)
            new = replace(new, video=output == "jpeg")
        return replace(new, options={**new.options, **given}) if given else new


def _object(where: str, value: Any, names: tuple[str, ...] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _no(where, "an object", value)
    for name in value:
        if names is not None and name not in names:
            raise EventError("unknown_parameter", f"{where}.{name}: unknown", f"{where}.{name}")
    return value


def _rate(where: str, value: Any) -> int:
    """Sample rate of an audio format in either spelling; only 16-bit PCM is spoken here."""
    if value is None or value == "pcm16":
        return RATE
    if isinstance(value, dict) and value.get("type", "audio/pcm") == "audio/pcm":
        rate = value.get("rate") or RATE
        if isinstance(rate, int) and LOWEST_RATE <= rate <= HIGHEST_RATE:
            return rate
        _no(f"{where}.rate", f"{LOWEST_RATE} to {HIGHEST_RATE}", rate)
    return _no(where, "audio/pcm or pcm16", value)


def _turn_detection(where: str, value: Any) -> dict[str, Any] | None:
    """Only whether there is any: its thresholds belong to a detector that is not here."""
    if value is None:
        return None
    kind = _object(where, value).get("type", "server_vad")
    if kind not in ("server_vad", "semantic_vad", "none"):
        _no(f"{where}.type", "server_vad, semantic_vad or none", kind)
    return None if kind == "none" else {"type": kind}


def _no(where: str, expected: str, got: object) -> Any:
    raise EventError("invalid_value", f"{where}: expected {expected}, got {str(got)[:120]}", where)
