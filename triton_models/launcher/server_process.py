"""One tritonserver: its command line, its processes, and its end without remains."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..service.settings import ENVIRONMENT
from .installation import ServerError, find_server

SHM = Path("/dev/shm")
TREE = Path(__file__).parents[2]  # where this package lies
_ERROR = re.compile(r"E\d{4} .*(?<!has not been initialized.\")$|error:")  # glog's E1122; no GPU is no error
# Seconds for Triton to unload its models, which takes 1.5, and for open streams; it looks once a second. Where they do
# not suffice it ends under its own threads, and now and then by signal 11.
EXIT_TIMEOUT = 3
LOG_BYTES = 16 << 20
LOOPBACK = "127.0.0.1"
CHILD = Path(__file__).with_name("child.py")
# For everybody. Clients need health, metadata, model-config (rates, limits) and inference.
SHUT = ("shared-memory", "model-repository", "statistics", "trace", "logging")
HEADER = "Shut"
HTTP_PORT = 8000
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and empty SETTINGS
HTTP2_SETTINGS = b"\x04"  # the type of the frame that a server sends first


@dataclass(frozen=True)
class Tls:
    """PEM files of gRPC. clients: the CA that must have signed a client's certificate; None: clients need none."""

    cert: Path
    key: Path
    clients: Path | None = None

    def arguments(self) -> list[str]:
        files = [f"--grpc-server-cert={self.cert}", f"--grpc-server-key={self.key}"]
        if self.clients is None:
            return ["--grpc-use-ssl=true", *files]
        return ["--grpc-use-ssl-mutual=true", *files, f"--grpc-root-cert={self.clients}"]


@dataclass(frozen=True)
class ServerPlan:
    """What one server runs on.

    backends: where links to the wheel's backend go.  log: None leaves output to the launcher's own.
    prefix: all its shared memory has names that begin so; nobody can guess it.
    opened: doors that stay shut otherwise ("http", "statistics").
    settings: file of `service.settings`, which the models find by their environment.
    """

    repository: Path
    backends: Path
    log: Path | None
    grpc_port: int
    metrics_port: int
    prefix: str
    grpc_address: str = LOOPBACK
    metrics_address: str = LOOPBACK
    opened: frozenset[str] = frozenset()
    settings: Path | None = None
    tls: Tls | None = None

    @property
    def home(self) -> Path:
        """A link to the run's folder. Triton starts stubs by a line of shell in which it quotes nothing, so paths of a
        user's own (with spaces, `&`, `$`) do not stand there."""
        return SHM / f"{self.prefix}run"

    def command(self) -> list[str]:
        """The command line. `ServerError` if there is no tritonserver for this Python."""
        found = find_server(self.backends)
        # Behind a header that nobody knows and that HTTP/2 does not carry: other users can read a command line, but the
        # name of a header has no capital letters there. In containers older than 26.07 this could be got round.
        shut = f"{','.join(name for name in SHUT if name not in self.opened)}:{HEADER}={secrets.token_hex(16)}"
        http = ["--allow-http=false"]
        if "http" in self.opened:
            http = [f"--http-address={LOOPBACK}", f"--http-port={HTTP_PORT}", f"--http-restricted-api={shut}"]
        return [
            str(found.server),
            f"--model-repository={self.home / self.repository.name}",
            "--model-control-mode=none",
            f"--backend-directory={self.home / 'backends' if found.backends == self.backends else found.backends}",
            "--disable-auto-complete-config",  # or every model is started twice: seconds
            *http,
            f"--grpc-address={self.grpc_address}",
            f"--grpc-port={self.grpc_port}",
            f"--grpc-restricted-protocol={shut}",
            *(self.tls.arguments() if self.tls is not None else ()),
            f"--metrics-address={self.metrics_address}",
            f"--metrics-port={self.metrics_port}",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={EXIT_TIMEOUT}",
            f"--backend-config=python,shm-region-prefix-name={self.prefix}",
            "--backend-config=python,stub-timeout-seconds=300",  # loading engines of gigabytes takes its time
        ]


class ServerProcess:
    """A tritonserver and the stub processes it starts, in a process group of their own."""

    def __init__(self, plan: ServerPlan) -> None:
        self.plan = plan
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError("the server does not run")
        return self._process.pid

    def start(self) -> None:
        """Starts the server and returns at once; `answers` tells when it serves. ServerError or OSError."""
        child = [sys.executable, "-I", "-S", str(CHILD), str(os.getpid()), str(int(signal.SIGKILL))]
        command = [*child, *self.plan.command()]
        run = self.plan.repository.parent
        python = shown("python", Path(sys.executable).parent.parent, run, self.plan.prefix)
        environment = {
            **os.environ,
            ENVIRONMENT: str(self.plan.settings),
            # Stubs take the first interpreter environment on PATH and the libpython that it belongs to.
            "PATH": os.pathsep.join((python + "/bin", os.environ.get("PATH", os.defpath))),
            "LD_LIBRARY_PATH": os.pathsep.join(
                filter(None, (str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH")))
            ),
        }
        self.plan.home.unlink(missing_ok=True)
        self.plan.home.symlink_to(run)
        link(run / "tree", TREE)  # where model.py look for modules first
        with contextlib.ExitStack() as files:
            log = files.enter_context(self.plan.log.open("ab")) if self.plan.log is not None else None
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",  # stubs die in a folder that is not ASCII
                start_new_session=True,  # Ctrl-C must reach the launcher alone, which drains first
                umask=0o077,  # what stubs share is pictures, sound and text
            )

    def alive(self) -> bool:
        """Whether it runs. It is not reaped here: until `kill` its number, which is its group's, is nobody else's."""
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self._process is not None and os.waitid(os.P_PID, self._process.pid, ended) is None

    def answers(self, timeout: float = 2.0) -> bool:
        """Whether gRPC returns the greeting of HTTP/2, or of TLS, for we have no certificate of a client. Triton opens
        the port once all models are loaded; it does not notice a dead stub."""
        address = reached(self.plan.grpc_address), self.plan.grpc_port
        try:
            with socket.create_connection(address, timeout) as connection:
                if self.plan.tls is not None:
                    with _anybody().wrap_socket(connection):
                        return True
                connection.sendall(HTTP2_GREETING)
                return connection.recv(9, socket.MSG_WAITALL)[3:4] == HTTP2_SETTINGS
        except OSError:
            return False

    def stop(self, timeout: float = EXIT_TIMEOUT + 1.5) -> bool:
        """SIGTERM, then SIGKILL for whatever is left of the group. True if nothing had to be killed."""
        if self._process is None:
            return True
        os.kill(self._process.pid, signal.SIGTERM)  # send_signal would reap it
        end = time.monotonic() + timeout
        while self.alive() and time.monotonic() < end:
            time.sleep(0.02)
        clean = not self.alive()
        self.kill()
        return clean

    def kill(self) -> None:
        """SIGKILL for the server and its stubs; returns when they are gone. A second call does nothing."""
        if self._process is None:
            return
        group = members(self._process.pid)
        os.killpg(self._process.pid, signal.SIGKILL)  # its leader is there, alive or not reaped
        self._process.wait()
        self._process = None
        wait_until_gone(group, 5.0)

    def trim_log(self) -> None:
        """Keeps the log bounded: what is there moves to `.1`, and it goes on empty. A full disk is no reason to end."""
        log = self.plan.log
        with contextlib.suppress(OSError):
            if log is not None and log.stat().st_size > LOG_BYTES:
                with contextlib.suppress(OSError):
                    shutil.copyfile(log, log.with_name(f"{log.name}.1"))
                os.truncate(log, 0)  # Triton appends

    def errors(self, limit: int = 8) -> str:
        """The first errors in the server's log, or its end if it names none."""
        if self.plan.log is None:
            return "see the server's own lines above"
        try:
            lines = self.plan.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "no log was written"
        found = [line for line in lines if _ERROR.match(line)]
        return "\n".join(found[:limit] or lines[-limit:]).replace("\\n", "\n")


def link(place: Path, target: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def shown(name: str, path: Path, run: Path, prefix: str) -> str:
    """What a stub calls `path`: it reads ASCII alone (isolated Python in the C locale), so other names get a link."""
    if str(path).isascii():
        return str(path)
    link(run / name, path)
    return str(SHM / f"{prefix}run" / name)


def _anybody() -> ssl.SSLContext:
    """For a question to our own port, whoever the certificate is for."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def reached(address: str) -> str:
    """Where processes of this machine reach what listens on `address`."""
    return LOOPBACK if ipaddress.ip_address(address).is_unspecified else address


def hide_shared_memory(prefix: str) -> None:
    """Takes what is shared from all other users. Triton gives its regions a mode that no umask changes (boost does)."""
    for path in SHM.iterdir():
        if path.name.startswith(prefix) and not path.is_dir():
            with contextlib.suppress(OSError):
                path.chmod(0o600)


def clean_shared_memory(prefix: str) -> list[str]:
    """Removes the shared memory that a killed server of this prefix left; returns the names."""
    names = sorted(path.name for path in SHM.iterdir() if path.name.startswith(prefix))
    for name in names:
        if (SHM / name).is_dir() and not (SHM / name).is_symlink():
            shutil.rmtree(SHM / name, ignore_errors=True)
        else:
            (SHM / name).unlink(missing_ok=True)
    return names


def members(group: int) -> list[int]:
    """Live processes of a process group. Found by the group and not by the parent, which may be dead already."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) == group and process_lives(pid):
                found.append(pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def process_lives(pid: int) -> bool:
    """False for a process that is gone and for a zombie: tritonserver does not reap its stubs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: list[int], timeout: float) -> bool:
    """True if all of these processes ended within `timeout` seconds."""
    end = time.monotonic() + timeout
    while any(process_lives(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
