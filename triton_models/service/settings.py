"""What the launcher tells the models of a run, in a file that the user of the server alone may read.

The file's name is in the environment of the server, and not in config.pbtxt: whoever may ask Triton for a model's
configuration would learn paths, and the secret by which a stage knows the duplex model.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from ..runtime.engines.target import Role

ENVIRONMENT = "WAN_STREAMER_RUN"
FILE = "settings.json"


class StageSettings(msgspec.Struct, frozen=True, kw_only=True):
    engines: str  # engine directory
    role: Role
    link: str  # name of the KV link between two stages
    pages: int  # of the KV pool, the null page included
    page_tokens: int
    max_sessions: int
    threads: int  # of each engine
    degrade: bool  # late units may get fewer solver steps
    orphan_seconds: float  # a session of which nothing is heard for so long is closed
    device: str = ""  # of GPU engines: see `runtime.engines.devices`
    trusted_key: str = ""  # public key that must have signed the engines; empty: none has to


class DuplexSettings(msgspec.Struct, frozen=True, kw_only=True):
    engines: str
    max_sessions: int
    max_in_flight: int  # unanswered units of one session
    idle_ms: int  # a session that sends nothing ends after this time
    grace_ms: int  # a session that lost its stream can be resumed for this time
    poll_ms: int  # a vanished client is noticed within this time
    pages: int  # of the KV pool, the null page included
    page_tokens: int
    threads: int  # of each engine, for which the costs were measured
    state_memory: int  # bytes for the codec states of all sessions
    sessions: int  # that the measured costs carry on time; 0: none is admitted
    degrade: bool  # late units may lose solver steps, picture and sound, in this order
    trace: str = ""  # file of traces; empty: none
    device: str = ""  # of GPU engines, for which the costs were measured
    admit_all: bool = False  # up to max_sessions, whatever `sessions` says
    guard: str = ""  # file of the guard; empty: none
    home: str = ""  # what a balancer calls this server
    home_key: str = ""  # by which the servers of a fleet sign that; empty: this is the only one


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of all models of one server. `stages` by model name, in the order think, perform."""

    status: str  # directory of the status files
    duplex: DuplexSettings
    stages: dict[str, StageSettings]
    secret: str = msgspec.field(default_factory=lambda: secrets.token_hex(32))  # of 32 bytes

    @property
    def key(self) -> bytes:
        return bytes.fromhex(self.secret)


def save(settings: RunSettings, run: Path) -> Path:
    """Writes the file of a run directory; returns its path."""
    path = run / FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(settings)))
    return path


def load() -> RunSettings:
    """In a model: the settings of its server. ValueError says how it was to be started."""
    path = os.environ.get(ENVIRONMENT)
    if path is None:
        raise ValueError(f"{ENVIRONMENT}: expected the settings of a run; start the server with triton_models.launch")
    return msgspec.json.decode(Path(path).read_bytes(), type=RunSettings)
