"""The public face of the client: everything that a program which talks with a served model needs."""

from .client import DuplexClient
from .errors import DuplexError, MediaError
from .pacing import Pacer
from .reconnect import Reconnect, Resumed
from .session import DuplexSession
from .tls import Tls
from .units import UnitResponse, UnitShape, UserUnit

__all__ = [
    "DuplexClient",
    "DuplexError",
    "DuplexSession",
    "MediaError",
    "Pacer",
    "Reconnect",
    "Resumed",
    "Tls",
    "UnitResponse",
    "UnitShape",
    "UserUnit",
]
