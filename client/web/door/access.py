"""Who may use the gateway: which hosts and origins it answers, tokens with a short life (JWT), TLS.

On loopback anybody at this machine may come in, but no web site: a browser says where a page came from (Origin), and a
name that was re-bound to 127.0.0.1 shows in Host. Anywhere else a token is needed as well.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import jwt

TOKEN_SECONDS = 600.0
PER_MINUTE = 120.0  # connections and tokens for one peer; half of it at once
MIN_SECRET = 16  # characters
API_KEY_PROTOCOL = "openai-insecure-api-key."  # how browsers, which cannot set headers, name their token
_PREFIX = "ek_"  # of OpenAI's short-lived keys
_AUDIENCE = "wan-web"


class Refused(Exception):
    """A request that may not come in; `status` is the HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Access:
    """The rules of one gateway. Construction raises ValueError for rules that would leave the door open.

    origins: of pages that may connect besides the gateway's own, such as https://demo.example.org.
    secret: long-lived; opens the door itself and signs tokens. None on loopback: no token is needed.
    ice_servers: STUN and TURN for WebRTC clients that come from elsewhere.
    behind_proxy: TLS ends at a proxy in front, which alone can reach this port.
    """

    host: str = "127.0.0.1"
    secret: str | None = None
    origins: frozenset[str] = frozenset()
    tls: tuple[Path, Path] | None = None
    behind_proxy: bool = False
    token_seconds: float = TOKEN_SECONDS
    per_minute: float = PER_MINUTE
    ice_servers: tuple[str, ...] = ()
    _key: bytes = field(init=False, repr=False, default=b"")
    # Tokens follow the wall clock as it was at the start: one that is set later neither ends nor prolongs them.
    _wall: float = field(init=False, repr=False, default_factory=lambda: time.time() - time.monotonic())

    def __post_init__(self) -> None:
        if self.secret is not None and len(self.secret) < MIN_SECRET:
            raise ValueError(f"token: expected at least {MIN_SECRET} characters, got {len(self.secret)}")
        for origin in self.origins:
            parts = _split(origin)
            if parts is None or parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
                raise ValueError(f"allow-origin: expected scheme://host[:port], got {origin!r}")
        if not is_loopback(self.host):
            missing = [
                name
                for name, given in (
                    ("--token (a secret)", self.secret),
                    ("--allow-origin (where the page is opened)", self.origins),
                    ("--tls-cert and --tls-key (or --behind-tls-proxy)", self.tls or self.behind_proxy),
                )
                if not given
            ]
            if missing:
                raise ValueError(f"host {self.host} can be reached from outside: expected {', '.join(missing)} as well")
        if not self.per_minute > 0:
            raise ValueError(f"connects-per-minute: expected more than 0, got {self.per_minute:g}")
        seed = (self.secret or secrets.token_hex(32)).encode()
        object.__setattr__(self, "_key", hashlib.sha256(b"wan-web-token" + seed).digest())

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS 1.2 or newer, or None. Raises ValueError for files that are no certificate and its key."""
        if self.tls is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(*self.tls)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"tls: expected a certificate chain and its key in PEM, got {error}") from None
        return context

    # -- requests ----------------------------------------------------------------------------------------------
    def check_place(self, headers: Mapping[str, str], *, any_host: bool = False) -> None:
        """Host and Origin of a request. any_host: a monitor may ask by an address. Raises Refused (400, 403)."""
        host = headers.get("Host", "")
        origin = headers.get("Origin")
        place = _split(f"//{host}")
        if place is None:
            raise Refused(400, f"host: expected a name or address and a port, got {host!r:.80}")
        name = place.hostname or ""
        known = {urlsplit(origin).hostname for origin in self.origins}
        if not any_host and name not in known and not (is_loopback(self.host) and is_loopback(name)):
            raise Refused(403, f"host: this gateway does not answer for {host!r:.80}")
        if origin is not None and origin not in self.origins and origin != f"{self.scheme}://{host}":
            raise Refused(403, f"origin: pages of {origin!r:.80} may not connect here (see --allow-origin)")

    def peer(self, headers: Mapping[str, str], remote: str | None) -> str:
        """Who asks: the address at the other end, or the one that the proxy in front has seen."""
        seen = headers.get("X-Forwarded-For", "").rpartition(",")[2].strip() if self.behind_proxy else ""
        return (seen or remote or "")[:64]

    def check_token(self, given: str | None) -> None:
        """The secret itself or a token made from it. Raises Refused (401)."""
        if self.secret is None:
            return
        if not given:
            raise Refused(401, "token: expected one, got none")
        if not (hmac.compare_digest(given.encode(), self.secret.encode()) or self.is_token(given)):
            raise Refused(401, "token: wrong or expired")

    def check_secret(self, given: str | None) -> None:
        """The secret itself, which alone may make tokens. Raises Refused (401)."""
        if self.secret is not None and not hmac.compare_digest((given or "").encode(), self.secret.encode()):
            raise Refused(401, "token: expected the gateway's secret")

    # -- tokens ------------------------------------------------------------------------------------------------
    def make_token(self, now: float | None = None) -> tuple[str, int]:
        """A token and the Unix time at which it ends."""
        end = int((self._now() if now is None else now) + self.token_seconds)
        claims = {"aud": _AUDIENCE, "exp": end, "jti": secrets.token_urlsafe(9)}
        return _PREFIX + jwt.encode(claims, self._key, "HS256"), end

    def is_token(self, given: str, now: float | None = None) -> bool:
        """Whether `given` was made here and still holds."""
        rules: Any = {"require": ["exp", "aud"], "verify_exp": False}  # by our clock, not by the wall's
        try:
            claims = jwt.decode(
                given.removeprefix(_PREFIX), self._key, algorithms=["HS256"], audience=_AUDIENCE, options=rules
            )
        except jwt.InvalidTokenError:
            return False
        return given.startswith(_PREFIX) and claims["exp"] > (self._now() if now is None else now)

    def _now(self) -> float:
        return self._wall + time.monotonic()


def _split(address: str) -> SplitResult | None:
    """None for what cannot be an address, such as `[`."""
    try:
        return urlsplit(address)
    except ValueError:
        return None


def bearer(headers: Mapping[str, str], protocols: list[str], prefixes: tuple[str, ...]) -> str | None:
    """The token of a request: `Authorization: Bearer <token>` or, from a browser, a subprotocol <prefix><token>."""
    kind, _, value = headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and value:
        return value.strip()
    for protocol in protocols:
        for prefix in prefixes:
            if protocol.startswith(prefix):
                return protocol.removeprefix(prefix)
    return None
