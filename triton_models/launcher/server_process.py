"""One tritonserver: its command line, its processes, and its end without remains."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import re
import secrets
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..service.settings import ENVIRONMENT
from .installation import ServerError, find_server

SHM = Path("/dev/shm")
TREE = Path(__file__).parents[2]  # where this package lies
_ERROR = re.compile(r"E\d{4} .*(?<!has not been initialized.\")$|error:")  # glog's E1122; no GPU is no error
EXIT_TIMEOUT = 1  # seconds that Triton gives open streams at its end; our sessions were drained before
PR_SET_PDEATHSIG = 1  # prctl(2)
LOOPBACK = "127.0.0.1"
# Of gRPC, for whoever comes from outside. Clients need health, metadata, model-config (rates, limits) and inference.
CLOSED = ("shared-memory", "model-repository", "statistics", "trace", "logging")


@dataclass(frozen=True)
class Ports:
    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True)
class ServerPlan:
    """What one server runs on.

    backends: where links to the wheel's backend go.  log: None leaves output to the launcher's own.
    prefix: all its shared memory has names that begin so.  triton: installation directory, None finds one.
    settings: file of `service.settings`, which the models find by their environment.
    Triton's HTTP listens on loopback always: it is for the launcher's questions.
    """

    repository: Path
    backends: Path
    log: Path | None
    ports: Ports
    prefix: str
    grpc_address: str = LOOPBACK
    metrics_address: str = LOOPBACK
    triton: Path | None = None
    settings: Path | None = None

    def command(self) -> list[str]:
        """The command line. `ServerError` if there is no tritonserver for this Python."""
        found = find_server(self.backends, self.triton)
        closed = []
        if not ipaddress.ip_address(self.grpc_address).is_loopback:
            # Behind a header that nobody knows. In containers older than 26.07 this could be got round.
            closed = [f"--grpc-restricted-protocol={','.join(CLOSED)}:closed={secrets.token_hex(16)}"]
        return [
            str(found.server),
            f"--model-repository={self.repository}",
            "--model-control-mode=none",
            f"--backend-directory={found.backends}",
            "--disable-auto-complete-config",  # or every model is started twice: seconds
            f"--grpc-address={self.grpc_address}",
            f"--http-address={LOOPBACK}",
            f"--metrics-address={self.metrics_address}",
            f"--grpc-port={self.ports.grpc}",
            f"--http-port={self.ports.http}",
            f"--metrics-port={self.ports.metrics}",
            *closed,
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
            raise ServerError("the server was not started")
        return self._process.pid

    def start(self) -> None:
        """Starts the server and returns at once; `ready` tells when it serves."""
        command = self.plan.command()
        environment = {
            **os.environ,
            ENVIRONMENT: str(self.plan.settings),
            # Stubs take the first interpreter environment on PATH and the libpython that it belongs to.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": os.pathsep.join(
                filter(None, (str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH")))
            ),
        }
        with contextlib.ExitStack() as files:
            log = files.enter_context(self.plan.log.open("ab")) if self.plan.log is not None else None
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=TREE,  # stubs look for modules there first: they run the code that started them
                start_new_session=True,  # Ctrl-C must reach the launcher alone, which drains first
                preexec_fn=_end_with_parent,
            )

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ready(self, timeout: float = 2.0) -> bool:
        """Triton's own word: it answers and all models are loaded. It does not notice a dead stub."""
        url = f"http://127.0.0.1:{self.plan.ports.http}/v2/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self, timeout: float = EXIT_TIMEOUT + 1.5) -> bool:
        """SIGTERM, then SIGKILL for whatever is left of the group. True if nothing had to be killed."""
        if self._process is None:
            return True
        if self.alive():
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        clean = not self.alive()
        self.kill()
        return clean

    def kill(self) -> None:
        """SIGKILL for the server and its stubs; returns when they are gone."""
        if self._process is None:
            return
        group = members(self._process.pid)
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        wait_until_gone(group, 5.0)

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


def reached(address: str) -> str:
    """Where processes of this machine reach what listens on `address`."""
    return LOOPBACK if ipaddress.ip_address(address).is_unspecified else address


def clean_shared_memory(prefix: str) -> list[str]:
    """Removes the shared memory that a killed server of this prefix left; returns the names."""
    names = sorted(path.name for path in SHM.iterdir() if path.name.startswith(prefix))
    for name in names:
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


def _end_with_parent() -> None:
    """In the child: the kernel sends SIGTERM when the launcher dies, whatever it died of."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
