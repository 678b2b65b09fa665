"""One tritonserver: its files, its command line, its processes, and its end without remains.

The binary is the one inside the nvidia-pytriton wheel (Python backend only; no Docker, no GPU needed).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import shutil
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

SHM = Path("/dev/shm")
_ERROR = re.compile(r"E\d{4} .*(?<!has not been initialized.\")$|error:")  # glog's E1122; no GPU is no error
EXIT_TIMEOUT = 1  # seconds that Triton gives open streams at its end; our sessions were drained before
PR_SET_PDEATHSIG = 1  # prctl(2)


class ServerError(RuntimeError):
    """The server cannot be started; the message says what is missing or what it logged."""


@dataclass(frozen=True)
class Ports:
    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True)
class ServerPlan:
    """What one server runs on. `prefix`: all its shared memory has names that begin so."""

    repository: Path
    backends: Path
    log: Path
    ports: Ports
    prefix: str


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
        wheel = _wheel()
        link_backend(wheel, self.plan.backends)
        ports = self.plan.ports
        command = [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={self.plan.repository}",
            f"--backend-directory={self.plan.backends}",
            "--disable-auto-complete-config",  # or every model is started twice: seconds
            *(f"--{name}-address=127.0.0.1" for name in ("grpc", "http", "metrics")),
            f"--grpc-port={ports.grpc}",
            f"--http-port={ports.http}",
            f"--metrics-port={ports.metrics}",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={EXIT_TIMEOUT}",
            f"--backend-config=python,shm-region-prefix-name={self.plan.prefix}",
            "--backend-config=python,stub-timeout-seconds=300",  # loading engines of gigabytes takes its time
        ]
        environment = {
            **os.environ,
            # Stubs take the first interpreter environment on PATH and the libpython that it belongs to.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
        }
        with self.plan.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.plan.repository.parent,  # stubs look for modules there first
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
        try:
            lines = self.plan.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "no log was written"
        found = [line for line in lines if _ERROR.match(line)]
        return "\n".join(found[:limit] or lines[-limit:]).replace("\\n", "\n")


def link_backend(wheel: Path, backends: Path) -> None:
    """As shipped the Python backend does not find its stub: one directory with links to its three files mends that."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        known = sorted(path.name for path in (wheel / "python_backend_stubs").iterdir())
        raise ServerError(f"nvidia-pytriton has no stub for Python {version}; use one of {', '.join(known)}")
    target = backends / "python"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    source = wheel / "backends" / "python"
    for path in (source / "libtriton_python.so", source / "triton_python_backend_utils.py", stub):
        (target / path.name).symlink_to(path)


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


def _wheel() -> Path:
    spec = importlib.util.find_spec("pytriton")  # found, not imported: importing it configures logging and more
    if spec is None or spec.origin is None:
        raise ServerError("expected the nvidia-pytriton package; install it: pip install 'wan-streamer-triton[serve]'")
    return Path(spec.origin).parent / "tritonserver"


def _end_with_parent() -> None:
    """In the child: the kernel sends SIGTERM when the launcher dies, whatever it died of."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
