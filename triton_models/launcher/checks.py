"""What must be so before a server is started; every refusal says what was expected and what to do."""

from __future__ import annotations

import fcntl
import importlib.util
import re
import resource
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

from engine_builder.manifest import GPU_TARGETS, TENSORRT_MODULES, Manifest

from ..runtime.duplex.guard import load_guard
from ..runtime.duplex.home import MIN_KEY_BYTES
from ..runtime.engines.devices import Devices
from ..runtime.engines.engine import TARGET
from ..runtime.kv.pool import PoolGeometry
from .server_process import Tls, clean_shared_memory

TRACE_BEGIN = b'{"resourceSpans"'  # of every line of a trace file
DESCRIPTORS, PER_SESSION = 128, 2  # an idle tritonserver has 66 open; a client is a connection
_PREFIX = re.compile(r"wst-[0-9a-f]{16}-")


class LaunchError(ValueError):
    """An argument that cannot work; the message says what was expected."""


def verified(engines: Path, device: str = "", trusted_key: Path | None = None) -> Manifest:
    """The manifest of an engine directory that this machine can serve; refuses before anything is loaded.

    Raises ManifestError, LaunchError, or EngineError if a library or a GPU is missing.
    """
    manifest = Manifest.load(engines)
    manifest.verify(
        engines, target=manifest.target if manifest.target in GPU_TARGETS else TARGET, trusted_key=trusted_key
    )
    if manifest.target in GPU_TARGETS:
        from ..gpu.serving import check_target

        try:
            check_target(manifest, Devices.parse(device))
        except ValueError as error:
            raise LaunchError(f"--{error}") from None
        return manifest
    if device:
        raise LaunchError(f"--device {device}: {engines} was built for {manifest.target}, which runs on any processor")
    if importlib.util.find_spec(TARGET) is None:
        raise LaunchError(
            f"{engines}: built for {TARGET} {manifest.libraries.get(TARGET, '')}, expected that package, got none; "
            "install it: pip install 'wan-streamer-triton[serve]'"
        )
    return manifest


def check_pool(manifest: Manifest, pages: int, device: str) -> int:
    """Bytes of the KV pool; LaunchError if it is known already that it cannot be made."""
    geometry = PoolGeometry.of(manifest.model, pages, manifest.limits["page_tokens"])
    if manifest.target not in GPU_TARGETS:
        size, free = geometry.bytes, psutil.virtual_memory().available
        if size > free:
            raise LaunchError(f"--pages {pages}: expected {size / 2**20:.0f} MiB of memory, got {free / 2**20:.0f}")
        return size
    if manifest.target in TENSORRT_MODULES and pages != manifest.limits["pool_pages"]:
        raise LaunchError(
            f"--pages {pages}: these plans were built for a pool of {manifest.limits['pool_pages']} pages; leave the "
            "option out, or build with another --pool-pages"
        )
    from ..gpu.cuda.device_pool import pool_bytes  # what fits a GPU shows when it is allocated

    return pool_bytes(geometry, manifest.pool_precision)


def check_state(manifest: Manifest, gigabytes: float) -> int:
    """Sessions whose codec state fits; LaunchError if not even one's does."""
    each, memory = max(1, manifest.state_bytes), gigabytes * 1e9
    if not each <= memory < 2**63:
        raise LaunchError(
            f"--state-gb: expected at least {each / 1e9:.3g}, the codec state of one session, got {gigabytes:g}"
        )
    return int(memory) // each


def check_descriptors(max_sessions: int) -> None:
    """Raises the limit of open files as far as this process may. LaunchError if that is too few for the sessions."""
    need = DESCRIPTORS + PER_SESSION * max_sessions
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        raise LaunchError(f"ulimit -n: expected at least {need} for {max_sessions} sessions, got {hard}")
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def check_trace(file: Path) -> None:
    """Removes the traces of an earlier run, for restarts append. LaunchError for a file that is none of ours."""
    try:
        with file.open("rb") as old:
            begin = old.read(len(TRACE_BEGIN))
        if begin and begin != TRACE_BEGIN:
            raise LaunchError(f"--trace {file}: expected no file or one of traces, got another one, which stays")
        file.unlink()
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()  # while there is somebody to tell that it cannot be written
        file.unlink()


def check_guard(file: Path | None) -> str:
    """Where the models find the guard; LaunchError if they would not."""
    if file is None:
        return ""
    try:
        load_guard(file)
    except ValueError as error:
        raise LaunchError(str(error)) from None
    return str(file.resolve())


def check_tls(cert: Path | None, key: Path | None, clients: Path | None) -> Tls | None:
    """The TLS of gRPC, its files read once; None without. LaunchError names the file that is none."""
    if cert is None and key is None and clients is None:
        return None
    if cert is None or key is None:
        raise LaunchError("--tls-cert, --tls-key: expected both, got one of them or --tls-clients alone")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise LaunchError(f"--tls-cert {cert}, --tls-key {key}: expected a certificate and its key ({error})") from None
    if clients is not None:
        try:
            context.load_verify_locations(clients)
        except OSError as error:
            raise LaunchError(f"--tls-clients {clients}: expected the certificate of a CA ({error})") from None
    return Tls(cert.resolve(), key.resolve(), clients.resolve() if clients is not None else None)


def read_key(file: Path) -> str:
    """The secret of a fleet, one line. LaunchError if it is too short to be one."""
    key = file.read_text(errors="replace").strip()
    if len(key) < MIN_KEY_BYTES or not key.isascii() or not key.isalnum():
        raise LaunchError(
            f"--fleet-key {file}: expected {MIN_KEY_BYTES} letters and digits or more (openssl rand -hex 32)"
        )
    return key


def reserve_ports(wanted: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """A socket bound to each (address, port); port 0 becomes a free one. LaunchError if one is taken.

    They do not listen. Whoever keeps them keeps the ports: Triton can listen there all the same (both allow an address
    to be used again), while nobody is given one of them as a free port.
    """
    sockets: list[socket.socket] = []
    for address, port in wanted:
        sockets.append(socket.socket())
        sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sockets[-1].bind((address, port))
        except OSError as error:
            for each in sockets:
                each.close()
            raise LaunchError(f"port {port} of {address}: expected a free one ({error}); 0 picks one") from None
    return sockets


def lock_run(run: Path, prefix: str) -> IO[str]:
    """Makes the folder of a run, private, and holds it for as long as the file is open; LaunchError if another does.

    The file remembers `prefix`, with which the names of the run's shared memory begin: what a killed run of this folder
    left is removed here.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        run.chmod(0o700)
        file = (run / "lock").open("a+")
    except OSError as error:
        raise LaunchError(f"{run}: expected a directory that can be written to ({error})") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.seek(0)
        if _PREFIX.fullmatch(stale := file.read(64)):
            clean_shared_memory(stale)
        file.truncate(0)
        file.write(prefix)
        file.flush()
    except BlockingIOError:
        file.close()
        raise LaunchError(f"{run}: expected no server of this name, got one that runs; choose another --name") from None
    except OSError as error:
        file.close()
        raise LaunchError(f"{run}: expected a directory that can be written to ({error})") from None
    return file
