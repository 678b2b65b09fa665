"""TLS to a server: whom the client trusts, and who it says it is."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import grpc

from .errors import DuplexError


@dataclass(frozen=True)
class Tls:
    """PEM files. ca: of the server's certificate; None: those that gRPC trusts. cert, key: for a server that asks."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises DuplexError (INVALID_ARGUMENT) for a file that cannot be read."""
        if (self.cert is None) != (self.key is None):
            raise DuplexError("INVALID_ARGUMENT", "tls: expected a certificate and its key, got one of them")
        try:
            ca, key, cert = (file.read_bytes() if file is not None else None for file in (self.ca, self.key, self.cert))
        except OSError as error:
            raise DuplexError("INVALID_ARGUMENT", f"tls: expected a file that can be read ({error})") from None
        return grpc.ssl_channel_credentials(ca, key, cert)


def add_tls(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Options of every program that talks to a server; `read_tls` reads them. prefix: of their names, before "tls"."""
    add = parser.add_argument_group("TLS to the server").add_argument
    add(f"--{prefix}tls", action="store_true", help="the server has a certificate of a public CA")
    add(f"--{prefix}tls-ca", type=Path, metavar="PEM", help="the CA of its certificate")
    add(f"--{prefix}tls-cert", type=Path, metavar="PEM", help="certificate of this client, if the server asks for one")
    add(f"--{prefix}tls-key", type=Path, metavar="PEM", help="and its key")


def read_tls(args: argparse.Namespace, prefix: str = "") -> Tls | None:
    wanted, *files = (getattr(args, f"{prefix}tls{part}") for part in ("", "_ca", "_cert", "_key"))
    return Tls(*files) if wanted or any(files) else None
