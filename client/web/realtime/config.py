"""The session object: what a client may configure, what is in force, and what this server can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..call.call import Call
from ..events import EventError, wrong
from ..fields import MODEL_OPTIONS, Read, groups_of, jpeg_or_null, leaves, of_model, start_options, text, voice
from ..media import G711_RATE, HIGHEST_RATE, LOWEST_RATE, Format
from .wording import Wording

CAPABILITIES = {
    "full_duplex": "the model hears and speaks at the same time and decides by itself, every 160 ms, whether it speaks",
    "speech_events": "simulated: a level meter at the gateway, plus the model's own state when it takes or yields the "
    "floor; the model sees neither these events nor commits",
    "response_create": "hands over what was typed; response.created comes at once, the voice when the model speaks; "
    "completed and empty if it does not. Without turn detection, or with create_response false, what the model says is "
    "held until it is asked for",
    "response_cancel": "what is under way is given up, the rest fenced at the gateway; the model goes on unheard",
    "playback": "playback.ack and conversation.item.truncate record what was heard; the model's history keeps the rest",
    "history": "items of other roles than user, and text longer than the checkpoint reads (wan.text_bytes), are kept, "
    "and the model is not told; such a text says so in wan.untold",
    "video": "wan.video.append (JPEG, PNG or WebP in base64); session.wan.video.output = jpeg turns on wan.video.delta",
    "resume": "session.resume with session_id and last_event_id, after session.created of the new socket",
    "transcription": "what the model itself writes down of what it heard, where the checkpoint does; on unless set to "
    "null, and no other model or language can be asked for",
    "voice": "one of wan.voices, which this gateway offers; any other leaves the model's own, 'model'",
    "not_supported": ["tools", "responses outside the conversation"],
}
MAX_IGNORED = 64  # names that are kept
# As OpenAI fills in what a client leaves out: clients act on these, though nothing here listens to the thresholds.
_DETECTION: dict[str, dict[str, Any]] = {
    "server_vad": {"threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500, "idle_timeout_ms": None},
    "semantic_vad": {"eagerness": "auto"},
}
_TRANSCRIPTION = {"model": "model"}  # its own
_RESPONDS = {"create_response": True, "interrupt_response": True}


@dataclass(frozen=True)
class SessionConfig:
    """What is in force. modality: of responses, audio (with transcript) or text."""

    instructions: str = ""
    modality: str = "audio"
    input: Format = field(default_factory=Format)
    output: Format = field(default_factory=Format)
    turn_detection: dict[str, Any] | None = field(
        default_factory=lambda: {"type": "server_vad", **_DETECTION["server_vad"], **_RESPONDS}
    )
    transcription: dict[str, Any] | None = field(default_factory=lambda: dict(_TRANSCRIPTION))
    video: bool = False
    voice: str = ""  # as it was asked for; see Personas.in_force
    options: dict[str, Any] = field(default_factory=dict)  # of `MODEL_OPTIONS`
    ignored: tuple[str, ...] = ()  # what clients gave that nothing here answers to

    @property
    def answers_unasked(self) -> bool:
        """Whether what the model says is sent without a response.create."""
        return self.turn_detection is not None and self.turn_detection["create_response"] is not False

    def updated(
        self, given: Mapping[str, Any], choose: Callable[[str], str], *, started: bool
    ) -> tuple[SessionConfig, list[EventError]]:
        """The configuration after `session.update`, and an error for each field that is refused; the others count.

        choose: the prompt in force for what was asked.  started: the model has begun, its prompt and options are fixed.
        """
        new, refused, ignored = self, [], set(self.ignored)
        for path, value in leaves(given, _GROUPS):
            where = f"session.{path}"
            try:
                if path not in _FIELDS:
                    if path in _GROUPS and value is not None:
                        raise wrong(where, "an object", value)
                    if len(ignored) < MAX_IGNORED:
                        ignored.add(path)
                    continue
                name, read = _FIELDS[path]
                value = read(where, value)
                if name == "instructions":
                    value = self.instructions if started else choose(value)
                if name == "voice" and started:
                    value = self.voice
                if name != "options":
                    new = replace(new, **{name: value} if name else {})
                elif started and value != self.options.get(path.removeprefix("wan.")):
                    raise wrong(where, "it before the model's first unit", value, "session_started")
                else:
                    new = replace(new, options={**new.options, path.removeprefix("wan."): value})
            except EventError as error:
                refused.append(error)
        return replace(new, ignored=tuple(sorted(ignored))), refused

    def model_options(self) -> dict[str, Any]:
        """Options of the start request."""
        return start_options(self.instructions, self.voice, self.options)

    def show(self, call: Call, model: str, wording: Wording, grace: float) -> dict[str, Any]:
        """The session object of session.created and session.updated."""
        in_force = call.personas.in_force(self.voice)
        ignored = {*self.ignored, *(["audio.output.voice"] if self.voice not in ("", in_force) else [])}
        common: dict[str, Any] = {
            "id": call.key,
            "object": "realtime.session",
            "model": model,
            "instructions": self.instructions,
            "tools": [],
            "tool_choice": "none",
            "wan": {
                **of_model(call, self.video),
                "resume_grace_s": grace,
                "ignored": sorted(ignored),
                "capabilities": CAPABILITIES,
                **self.options,
            },
        }
        if wording.beta:
            return common | {
                "modalities": wording.modalities(self.modality),
                "voice": in_force,
                "input_audio_format": _BETA[self.input.kind],
                "output_audio_format": _BETA[self.output.kind],
                "input_audio_transcription": self.transcription,
                "turn_detection": self.turn_detection,
                "temperature": 0.8,
                "max_response_output_tokens": "inf",
            }
        hears = {"turn_detection": self.turn_detection, "transcription": self.transcription, "noise_reduction": None}
        return common | {
            "type": "realtime",
            "output_modalities": wording.modalities(self.modality),
            "max_output_tokens": "inf",
            "audio": {
                "input": {"format": _show_format(self.input), **hears},
                "output": {
                    "format": _show_format(self.output),
                    "voice": in_force,
                    "speed": 1.0,
                },
            },
        }


def read_modality(where: str, value: Any) -> str:
    """audio or text, from a list of modalities."""
    if not isinstance(value, list) or not value or not all(each in ("audio", "text") for each in value):
        raise wrong(where, '["audio"] or ["text"]', value)
    return "audio" if "audio" in value else "text"


# -- fields -----------------------------------------------------------------------------------------------------
_BETA = {"pcm": "pcm16", "pcmu": "g711_ulaw", "pcma": "g711_alaw"}
_NAMES = {name: kind for kind, beta in _BETA.items() for name in (beta, f"audio/{kind}")}


def _show_format(given: Format) -> dict[str, Any]:
    return {"type": f"audio/{given.kind}", **({"rate": given.rate} if given.kind == "pcm" else {})}


def _format(where: str, value: Any) -> Format:
    """An audio format in either spelling."""
    name, rate = (value.get("type", "audio/pcm"), value.get("rate")) if isinstance(value, dict) else (value, None)
    kind = _NAMES.get(name) if isinstance(name, str) else "pcm" if name is None else None
    if kind is None:
        raise wrong(where, f"one of {', '.join(_NAMES)}", value)
    if kind != "pcm":
        return Format(kind, G711_RATE)
    rate = Format.rate if rate is None else rate
    if not isinstance(rate, int) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise wrong(f"{where}.rate", f"{LOWEST_RATE} to {HIGHEST_RATE}", rate)
    return Format(kind, rate)


def _turn_detection(where: str, value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong(where, "an object or null", value)
    kind = value.get("type", "server_vad")
    if kind == "none":
        return None
    if not isinstance(kind, str) or kind not in _DETECTION:
        raise wrong(f"{where}.type", "server_vad, semantic_vad or none", kind)
    defaults = {**_DETECTION[kind], **_RESPONDS}
    return {"type": kind, **defaults, **{name: value[name] for name in defaults if name in value}}


def _transcription(where: str, value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise wrong(where, "an object or null", value)
    return None if value is None else dict(_TRANSCRIPTION)


def _realtime(where: str, value: Any) -> None:
    if value != "realtime":
        raise wrong(where, "realtime", value)


# Path in the session object -> field of SessionConfig, and what reads the value (EventError if it cannot).
_FIELDS: dict[str, tuple[str, Read]] = {
    "type": ("", _realtime),
    "instructions": ("instructions", text),
    "output_modalities": ("modality", read_modality),
    "modalities": ("modality", read_modality),
    "input_audio_format": ("input", _format),
    "audio.input.format": ("input", _format),
    "output_audio_format": ("output", _format),
    "audio.output.format": ("output", _format),
    "turn_detection": ("turn_detection", _turn_detection),
    "audio.input.turn_detection": ("turn_detection", _turn_detection),
    "input_audio_transcription": ("transcription", _transcription),
    "audio.input.transcription": ("transcription", _transcription),
    "wan.video.output": ("video", jpeg_or_null),
    "voice": ("voice", voice),
    "audio.output.voice": ("voice", voice),
    **{path: ("options", read) for path, read in MODEL_OPTIONS.items()},
}
_GROUPS = groups_of(_FIELDS)
