"""Errors that a user of the client meets. Both say what was expected and what was there."""

from __future__ import annotations

import re

# The codes that the wire contract lists, plus those that only the transport or the client itself can find.
SERVER_CODES = (
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "ABORTED",
    "INTERNAL",
)
_CODED = re.compile(rf"\b({'|'.join(SERVER_CODES)}): (.*)", re.DOTALL)
_REFUSALS = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
_RETRY = re.compile(r"retry after (\d+(?:\.\d+)?) s\b")
# What Triton says by itself: its sequence batcher of an id that was never started, or that it has forgotten; a server
# that has begun to end, and keeps its port a while longer than its models; one whose part has died.
_SAID_BY_TRITON = {
    "must specify the START flag": "NOT_FOUND",
    "has no available versions": "UNAVAILABLE",
    "is not healthy": "UNAVAILABLE",
}


class MediaError(ValueError):
    """A media file that cannot be used: missing, undecodable, empty, or without the needed kind of stream."""


class DuplexError(Exception):
    """Something went wrong with a session or with the way to the server.

    code: one of `SERVER_CODES`, or DEADLINE_EXCEEDED / CANCELLED found by the client.
    fatal: the session is over. A refused unit in mid-session is not fatal: it changed nothing on the server, which
    still expects a unit with the same index.
    broken: it is the way to the server that failed; the session there may be alive.
    """

    def __init__(self, code: str, message: str, *, fatal: bool = True, broken: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.fatal = fatal
        self.broken = broken

    @property
    def retry_after(self) -> float | None:
        """Seconds after which whoever said this wants to be asked again; None: it did not say."""
        found = _RETRY.search(self.message)
        return float(found[1]) if found else None


def from_server(text: str, *, session_open: bool) -> DuplexError:
    """Reads the contract's `CODE: field: what was expected, got what`; of what is Triton's own some means such a code,
    and the rest is INTERNAL.

    session_open: a unit of this session was answered before. Without one a refusal means that the start was refused,
    and there is no session that could go on.
    """
    found = _CODED.search(text)
    code, message = (found[1], found[2]) if found else (said_by_triton(text) or "INTERNAL", text)
    return DuplexError(code, message, fatal=not (code in _REFUSALS and session_open))


def said_by_triton(text: str) -> str | None:
    """The code for what Triton itself says; None if that is nothing we know."""
    return next((code for words, code in _SAID_BY_TRITON.items() if words in text), None)
