"""gRPC with TLS and mTLS: a real server, our client and tritonclient's; whoever has no certificate gets nothing."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.stream import DuplexClient, DuplexError, Tls
from client.stream.units import quiet
from triton_models.launcher.checks import LaunchError, check_tls


class Authority:
    """A CA of the test's own, and what it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.cert = self._sign(name, self.key, None)
        self.pem = folder / f"{name}.pem"
        self.pem.write_bytes(self.cert.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self._sign(name, key, self.cert)
        files = self.folder / f"{self.name}-{name}.pem", self.folder / f"{self.name}-{name}.key"
        files[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        files[1].write_bytes(pem)
        return files

    def _sign(self, name: str, key: Any, issuer: x509.Certificate | None) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        )
        return made.sign(self.key, hashes.SHA256())


async def ask(url: str, tls: Tls | None) -> int:
    """The number of answers to two units."""
    async with await DuplexClient.connect(url, timeout=2.0, tls=tls) as client, client.session() as session:
        for unit in range(2):
            await session.send(quiet(unit, client.shape, end=unit == 1))
        return len([answer async for answer in session])


@pytest.mark.server
def test_a_server_with_mtls_talks_with_whom_it_knows(start_server: Callable[..., Any], tmp_path: Path) -> None:
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    cert, key = ours.issue("server")
    server = start_server("--tls-cert", str(cert), "--tls-key", str(key), "--tls-clients", str(ours.pem))
    assert server.info["tls"] == "mutual"
    url = server.info["grpc"]
    assert asyncio.run(ask(url, Tls(ours.pem, *ours.issue("client")))) == 2
    strangers = {
        "no TLS": None,
        "no certificate": Tls(ours.pem),
        "signed by others": Tls(ours.pem, *others.issue("client")),
        "another server's CA": Tls(others.pem, *ours.issue("client")),
    }
    for tls in strangers.values():
        with pytest.raises(DuplexError, match="UNAVAILABLE"):
            asyncio.run(ask(url, tls))
    pair = tmp_path / "ours-client.pem", tmp_path / "ours-client.key"
    files = ["--tls-ca", ours.pem, "--tls-cert", pair[0], "--tls-key", pair[1]]
    command = [sys.executable, "-m", "client", "info", "--url", url, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "duplex" in done.stdout


@pytest.mark.server
def test_a_server_with_tls_and_the_usual_triton_client(start_server: Callable[..., Any], tmp_path: Path) -> None:
    import tritonclient.grpc as grpc

    ours = Authority(tmp_path, "ours")
    cert, key = ours.issue("server")
    server = start_server("--tls-cert", str(cert), "--tls-key", str(key))
    client = grpc.InferenceServerClient(server.info["grpc"], ssl=True, root_certificates=str(ours.pem))
    assert client.is_model_ready("duplex")
    client.close()
    assert asyncio.run(ask(server.info["grpc"], Tls(ours.pem))) == 2


@pytest.mark.unit
def test_files_that_are_none_are_refused_at_the_start(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    (cert, key), (_, other) = ours.issue("server"), ours.issue("other")
    assert check_tls(None, None, None) is None
    assert check_tls(cert, key, ours.pem) is not None
    for given, says in {
        (cert, None, None): "expected both",
        (None, None, ours.pem): "expected both",
        (cert, other, None): "expected a certificate and its key",
        (tmp_path / "none", key, None): "No such file",
        (key, cert, None): "expected a certificate and its key",
        (cert, key, key): "expected the certificate of a CA",
    }.items():
        with pytest.raises(LaunchError, match=says):
            check_tls(*given)
    for tls in (Tls(tmp_path / "none"), Tls(None, cert)):
        with pytest.raises(DuplexError, match="INVALID_ARGUMENT: tls: expected"):
            tls.credentials()
