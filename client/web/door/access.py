"""Who may use the gateway: which hosts and origins it answers, tokens with a short life, TLS.

On loopback anybody at this machine may come in, but no web site: a browser says where a page came from (Origin), and a
name that was re-bound to 127.0.0.1 shows in Host. Anywhere else a token is needed as well.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

TOKEN_SECONDS = 600.0
MIN_SECRET = 16  # characters
_PREFIX = "ek_"


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
    behind_proxy: TLS ends at a proxy in front, which alone can reach this port.
    """

    host: str = "127.0.0.1"
    secret: str | None = None
    origins: frozenset[str] = frozenset()
    tls: tuple[Path, Path] | None = None
    behind_proxy: bool = False
    token_seconds: float = TOKEN_SECONDS
    _key: bytes = field(init=False, repr=False, default=b"")

    def __post_init__(self) -> None:
        if self.secret is not None and len(self.secret) < MIN_SECRET:
            raise ValueError(f"token: expected at least {MIN_SECRET} characters, got {len(self.secret)}")
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
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
    def check_place(self, headers: Mapping[str, str]) -> None:
        """Host and Origin of a request. Raises Refused (403)."""
        host = headers.get("Host", "")
        origin = headers.get("Origin")
        name = urlsplit(f"//{host}").hostname or ""
        known = {urlsplit(origin).hostname for origin in self.origins}
        if name not in known and not (is_loopback(self.host) and is_loopback(name)):
            raise Refused(403, f"host: this gateway does not answer for {host!r}")
        if origin is not None and origin not in self.origins and origin != f"{self.scheme}://{host}":
            raise Refused(403, f"origin: pages of {origin!r} may not connect here (see --allow-origin)")

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
        """A token and the Unix time at which it ends: ek_<end>.<nonce>.<signature>."""
        end = int((time.time() if now is None else now) + self.token_seconds)
        body = f"{end}.{secrets.token_urlsafe(9)}"
        return f"{_PREFIX}{body}.{self._sign(body)}", end

    def is_token(self, given: str, now: float | None = None) -> bool:
        """Whether `given` was made here and still holds."""
        body, _, signature = given.removeprefix(_PREFIX).rpartition(".")
        if not given.startswith(_PREFIX) or not hmac.compare_digest(signature.encode(), self._sign(body).encode()):
            return False
        return int(body.split(".")[0]) > (time.time() if now is None else now)

    def _sign(self, body: str) -> str:
        digest = hmac.digest(self._key, body.encode(errors="replace"), "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


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
