"""The parameters in config.pbtxt of the three models, as typed records: the launcher writes, the models read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

Settings = TypeVar("Settings", "RoleSettings", "DuplexSettings")


@dataclass(frozen=True)
class RoleSettings:
    """Of `thinker` and `performer`."""

    engines: str  # engine directory
    status: str  # directory of the status files
    pool: str  # name of the KV pool in shared memory
    pages: int  # the null page included
    page_tokens: int
    max_sessions: int
    threads: int  # of each engine
    degrade: bool  # late units may get fewer solver steps
    device: str = ""  # of GPU engines: see gpu.devices.Devices


@dataclass(frozen=True)
class DuplexSettings:
    """Of `duplex`."""

    engines: str
    status: str
    max_sessions: int
    max_in_flight: int  # unanswered units of one session
    idle_ms: int  # a session that sends nothing ends after this time
    grace_ms: int  # a session that lost its stream can be resumed for this time
    poll_ms: int  # a vanished client is noticed within this time
    pages: int  # of the KV pool, the null page included
    page_tokens: int
    threads: int  # of each engine, for which the costs were measured
    sessions: int  # that the measured costs carry on time; 0: none is admitted
    degrade: bool  # late units may lose solver steps, picture and sound, in this order
    trace: str = ""  # file of traces; empty: none
    device: str = ""  # of GPU engines, for which the costs were measured
    admit_all: bool = False  # up to max_sessions, whatever `sessions` says


def read(kind: type[Settings], parameters: Mapping[str, str]) -> Settings:
    """From Triton's string parameters. ValueError names one that is missing or no integer."""
    values: dict[str, str | int | bool] = {}
    for field in fields(kind):
        text = parameters.get(field.name)
        if text is None:
            raise ValueError(f"{field.name}: expected among the parameters of the model, got {sorted(parameters)}")
        if field.type == "str":
            values[field.name] = text
        elif not text.isdecimal():
            raise ValueError(f"{field.name}: expected an integer, got {text!r}")
        else:
            values[field.name] = bool(int(text)) if field.type == "bool" else int(text)
    return kind(**values)  # pyright: ignore[reportArgumentType]


def write(settings: RoleSettings | DuplexSettings) -> dict[str, str]:
    """The parameters that `read` turns into `settings`."""
    values = ((field.name, getattr(settings, field.name)) for field in fields(settings))
    return {name: str(int(value)) if isinstance(value, bool) else str(value) for name, value in values}
