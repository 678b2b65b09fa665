"""Fields of a session object: what reads each that a client gives, a walk over all, and what every dialect says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from client.stream.units import FPS, UNIT_MS

from .call.call import Call
from .events import wrong

Read = Callable[[str, Any], Any]  # (place, value) -> what is kept; raises EventError
MAX_PATH = 80  # characters of a field's place that are quoted


def leaves(given: Mapping[str, Any], groups: Collection[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of each field; an object whose path is in `groups` is gone through, any other is a value."""
    for name, value in given.items():
        path = f"{above}{name}"
        if path in groups and isinstance(value, dict):
            yield from leaves(value, groups, f"{path}.")
        else:
            yield path[:MAX_PATH], value


def groups_of(fields: Collection[str]) -> set[str]:
    """Paths of the objects that hold `fields`."""
    out: set[str] = set()
    for path in fields:
        while path := path.rpartition(".")[0]:
            out.add(path)
    return out


def text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(where, "a string", value)
    return value


def whole(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise wrong(where, "a whole number from 0", value)
    return value


def jpeg_or_null(where: str, value: Any) -> bool:
    if value not in (None, "jpeg"):
        raise wrong(where, "jpeg or null", value)
    return value == "jpeg"


def voice(where: str, value: Any) -> str:
    """A name, or the object {"id": name} that stands for a voice of one's own."""
    return text(where, value.get("id") if isinstance(value, dict) else value)


def as_given(where: str, value: Any) -> Any:
    """The server knows what it takes."""
    return value


def start_options(prompt: str, voice: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the model's start request; what is empty is left to the server."""
    named = {"prompt": prompt, "voice": voice}
    return {**{name: value for name, value in named.items() if value}, **options}


def of_model(call: Call, video: bool) -> dict[str, Any]:
    """What a session object says of the model under `wan`, whatever the dialect. video: pictures are on."""
    return {
        "unit_ms": UNIT_MS,
        "model_rate": call.shape.sample_rate,
        "prompts": list(call.prompts.known),
        "voices": list(call.personas.names),
        "text_bytes": call.intake.text_bytes,
        "video": {
            "output": "jpeg" if video else None,
            "width": call.shape.width,
            "height": call.shape.height,
            "fps": FPS,
        },
    }


# Of the model's start request, by their place in a session object.
MODEL_OPTIONS: dict[str, Read] = {
    "wan.seed": whole,
    "wan.solver_steps": whole,
    "wan.retention": as_given,
    "wan.echo_canceller": as_given,
}
