"""Where a session is at home: the name of its server, signed with a key that the servers of a fleet share.

A client gets the token with its first answer and shows it when it comes back: in a header, by which a balancer finds
the server (it checks the signature, or a client could choose servers), and in its options, by which the server knows
that it may have the session. A token is for one session: another one's is refused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import jwt

from ..messages import SessionError
from .contract import SessionKey

ALGORITHM = "HS256"
MIN_KEY_BYTES = 32  # of the hash's length at least, as RFC 7518 wants it

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Home:
    """What one server signs and believes. name: what a balancer calls it."""

    name: str
    key: bytes = field(repr=False)

    def token(self, session: SessionKey) -> str:
        return jwt.encode({"srv": self.name, "sid": _subject(session)}, self.key, ALGORITHM)

    def check(self, token: str, session: SessionKey) -> None:
        """Raises SessionError: INVALID_ARGUMENT for a token that is none of this fleet's or of another session,
        NOT_FOUND for one of another server."""
        rules: Any = {"require": ["srv", "sid"]}
        try:
            claims = jwt.decode(token, self.key, algorithms=[ALGORITHM], options=rules)
        except jwt.InvalidTokenError as error:
            raise self._refuse(session, str(error)) from None
        if claims["sid"] != _subject(session):
            raise self._refuse(session, "it is another session's")
        if claims["srv"] != self.name:
            raise SessionError("NOT_FOUND", f"sequence_id: {session!r} is at home on another server, which is gone")

    def _refuse(self, session: SessionKey, why: str) -> SessionError:
        _log.warning("session %r: a forged home token was refused (%s)", session, why)
        return SessionError(
            "INVALID_ARGUMENT", f"options.home: expected the token of this session's first answer, got another ({why})"
        )


def _subject(session: SessionKey) -> str:
    """7 and "7" are two sessions."""
    return f"{'int' if isinstance(session, int) else 'str'}:{session}"
