"""The session object of `session.start`: read strictly, all of it or nothing, and shown as what is in force."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..call.call import Call
from ..events import wrong
from ..fields import MODEL_OPTIONS, Read, groups_of, jpeg_or_null, leaves, of_model, start_options, text, voice
from ..media import G711_RATE, Format

PCM_RATES = (16_000, 24_000)
MAX_HISTORY = 128  # messages of `input`
_PARTS = {"developer": ("input_text",), "user": ("input_text",), "assistant": ("text", "output_text")}

CAPABILITIES = {
    "full_duplex": "the model hears and speaks at the same time; each unit of 160 ms is sent, silence too",
    "append": "instructions, thinking and commentary are text that the model reads as typed to it, within what the "
    "checkpoint reads (`text_bytes`); it has no silent channel",
    "video": "wan.video.append (JPEG, PNG or WebP in base64); session.wan.video.output = jpeg turns on wan.video.delta",
    "not_supported": ["forks, stored sessions and recordings", "Responses and Decisions backends", "fixtures", "SIP"],
}


@dataclass(frozen=True)
class LiveConfig:
    """What is in force. delegation: its type as asked for.  no_effect: what was asked for and changes nothing."""

    instructions: str = ""
    voice: str = ""
    form: Format = field(default_factory=Format)
    delegation: str = "client"
    video: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    no_effect: tuple[str, ...] = ()

    @classmethod
    def read(cls, given: Any, choose: Callable[[str], str], voices: Collection[str] = ()) -> LiveConfig:
        """choose: the prompt in force for what was asked.  voices: names that there are.

        Raises EventError for the first field that is wrong.
        """
        if not isinstance(given, dict):
            raise wrong("session", "an object", given)
        if "model" not in given:
            raise wrong("session.model", "a name", code="missing_required_parameter")
        values: dict[str, Any] = {}
        for path, value in leaves(given, _GROUPS):
            where = f"session.{path}"
            if path in _GROUPS and value is not None:
                raise wrong(where, "an object", value)
            if path not in _FIELDS and path not in _GROUPS:
                raise wrong(where, "no such field", code="unknown_parameter")
            if value is not None:
                values[path] = _FIELDS[path](where, value)
        asked = values.get("instructions", "")
        in_force = choose(asked)
        no_effect = [f"session.{path}: {why}" for path, why in _NO_EFFECT.items() if values.get(path)]
        if (asked_voice := values.get("audio.output.voice", "")) and asked_voice not in voices:
            known = f"one of {', '.join(voices)}, or its own" if voices else "one voice, its own"
            no_effect.append(f"session.audio.output.voice: the model has {known}")
        if asked and asked != in_force:
            no_effect.append(f"session.instructions: the checkpoint knows its own prompts; {in_force!r} is in force")
        delegation = values.get("delegation", "client")
        if delegation != "client":
            no_effect.append(f"session.delegation: no {delegation} backend is here; the application answers")
        return cls(
            instructions=in_force,
            voice=asked_voice,
            form=values.get("audio.format", Format()),
            delegation=delegation,
            video=values.get("wan.video.output", False),
            options={path.removeprefix("wan."): values[path] for path in MODEL_OPTIONS if path in values},
            no_effect=tuple(no_effect),
        )

    def model_options(self) -> dict[str, Any]:
        """Options of the start request."""
        return start_options(self.instructions, self.voice, self.options)

    def show(self, call: Call, model: str, expires_at: int) -> dict[str, Any]:
        """The session resource."""
        return {
            "id": call.key,
            "object": "live.session",
            "status": "active",
            "expires_at": expires_at,
            "model": model,
            "instructions": self.instructions,
            "audio": {
                "format": {"type": f"audio/{self.form.kind}", "rate": self.form.rate},
                "output": {"voice": call.personas.in_force(self.voice)},
            },
            "delegation": {"type": "client"},
            "store": False,
            "wan": {
                **of_model(call, self.video),
                "capabilities": CAPABILITIES,
                **self.options,
            },
        }


def read_update(given: Any, config: LiveConfig) -> LiveConfig:
    """What is in force after `session.update`: delegation of the same type, no triggers, pictures on or off.

    Raises EventError.
    """
    if not isinstance(given, dict):
        raise wrong("session", "an object", given)
    for name, value in given.items():
        where = f"session.{name}"[:80]
        if name == "wan" and isinstance(value, dict):
            config = replace(config, video=_pictures(value, config.video))
        elif name not in _FIELDS and name not in _GROUPS:
            raise wrong(where, "no such field", code="unknown_parameter")
        elif name not in _UPDATES:
            raise wrong(where, "it in session.start only", code="immutable_parameter")
        elif value is not None and (kind := _FIELDS[name](where, value)) and kind != config.delegation:
            raise wrong(f"{where}.type", config.delegation, kind)
    return config


def _pictures(given: Mapping[str, Any], now: bool) -> bool:
    """Of `wan` in an update: whether wan.video.delta is sent."""
    for path, value in leaves(given, _GROUPS, "wan."):
        if path != "wan.video.output":
            code = "immutable_parameter" if path in _FIELDS else "unknown_parameter"
            raise wrong(f"session.{path}", "wan.video.output; the rest is for session.start", code=code)
        now = jpeg_or_null("session.wan.video.output", value)
    return now


# -- fields -----------------------------------------------------------------------------------------------------
def _only(where: str, value: Any, names: tuple[str, ...]) -> Mapping[str, Any]:
    """An object with no other fields than `names`."""
    if not isinstance(value, dict):
        raise wrong(where, "an object", value)
    for name in value:
        if name not in names:
            raise wrong(f"{where}.{name}"[:80], "no such field", code="unknown_parameter")
    return value


def _format(where: str, value: Any) -> Format:
    given = _only(where, value, ("type", "rate"))
    kind = {f"audio/{kind}": kind for kind in ("pcm", "pcmu", "pcma")}.get(str(given.get("type")))
    if kind is None:
        raise wrong(f"{where}.type", "audio/pcm, audio/pcmu or audio/pcma", given.get("type"))
    rates = PCM_RATES if kind == "pcm" else (G711_RATE,)
    rate = given.get("rate", rates[-1])
    if rate not in rates:
        raise wrong(f"{where}.rate", " or ".join(map(str, rates)), rate)
    return Format(kind, rate)


def _voice(where: str, value: Any) -> str:
    return voice(where, _only(where, value, ("id",)) if isinstance(value, dict) else value)


def _delegation(where: str, value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("client", "responses", "decisions"):
        raise wrong(f"{where}.type", "client, responses or decisions", kind)
    backend = () if kind == "client" else (kind,)
    _only(where, value, ("type", "acknowledgement_delay_ms", *backend))
    return kind


def _history(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_HISTORY:
        raise wrong(where, f"a list of at most {MAX_HISTORY} messages")
    for place, message in enumerate(value):
        here = f"{where}[{place}]"
        given = _only(here, message, ("type", "role", "content", "id", "status"))
        kinds, content = _PARTS.get(str(given.get("role"))), given.get("content")
        if kinds is None:
            raise wrong(f"{here}.role", "developer, user or assistant", given.get("role"))
        if not isinstance(content, list) or len(content) != 1:
            raise wrong(f"{here}.content", "exactly one text part")
        part = _only(f"{here}.content[0]", content[0], ("type", "text"))
        if part.get("type", kinds[0]) not in kinds or not isinstance(part.get("text"), str):
            raise wrong(f"{here}.content[0]", f"{' or '.join(kinds)} with a text")
    return value


def _triggers(where: str, value: Any) -> None:
    if value != []:
        raise wrong(where, "none, for no Decisions backend is here", code="unsupported_parameter")


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(where, "true or false", value)
    return value


def _webrtc_only(where: str, value: Any) -> None:
    raise wrong(where, "it for WebRTC only", code="unsupported_parameter")


_FIELDS: dict[str, Read] = {
    "model": text,
    "instructions": text,
    "audio.format": _format,
    "audio.output.voice": _voice,
    "delegation": _delegation,
    "input": _history,
    "store": _flag,
    "safety_identifier": text,
    "triggers": _triggers,
    "client": _webrtc_only,
    "wan.video.output": jpeg_or_null,
    **MODEL_OPTIONS,
}
_GROUPS = groups_of(_FIELDS)
_UPDATES = ("delegation", "triggers")
_NO_EFFECT = {
    "input": "the model knows what it has lived through, and no history before that",
    "store": "nothing is stored",
    "safety_identifier": "nobody reads it",
}
