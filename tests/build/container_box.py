"""A container without Docker: Linux namespaces with the root, user, limits and tmpfs that compose.yaml asks for.

`Box` starts this file as the first process of new user, mount, process, network and IPC namespaces. It makes a
read-only root out of this machine's directories and the given ones and runs the command in it without any privileges,
waiting like the init of `init: true`. No root is needed where users may make namespaces (`Box.possible`).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1000, 0x4000, 1 << 18, 2, 4, 8
SYS_MOUNT_SETATTR, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, 0x8000, 1
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_SET_DUMPABLE = 38, 24, 47, 4, 4
OWN = {"proc", "dev", "tmp", "run", "opt", "sys"}  # directories of the root that are not this machine's
FLAGS = {"noexec": MS_NOEXEC, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "exec": 0}


@dataclass
class Spec:
    """What to run and in what. `mounts`: path inside -> path here, read-only unless in `writable`."""

    root: str
    command: list[str]
    environment: dict[str, str]
    directory: str
    mounts: dict[str, str]
    tmpfs: list[str] = field(default_factory=list)  # PATH:OPTIONS, as in a compose file
    writable: list[str] = field(default_factory=list)
    shm_size: str = "64m"
    network: bool = True  # one of its own, with loopback only


class Box:
    """A running container."""

    def __init__(self, spec: Spec, user: str, log: Path, network_of: Box | None = None) -> None:
        Path(spec.root).mkdir(parents=True, exist_ok=True)
        uid, _, gid = user.partition(":")
        spec.network = network_of is None
        share = [] if network_of is None else [*network_of._enter, "--user", "--net", "--"]
        spaces = ["--mount", "--pid", "--ipc", *(["--net"] if spec.network else [])]
        unshare = ["unshare", "--user", f"--map-user={uid}", f"--map-group={gid}", "--keep-caps", *spaces]
        command = [*share, *unshare, "--fork", "--kill-child", sys.executable, "-I", __file__, json.dumps(asdict(spec))]
        self.spec, self.log = spec, log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    @staticmethod
    def possible() -> bool:
        """Whether this machine lets us: an empty one is started."""
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            return False
        with tempfile.TemporaryDirectory() as place:
            box = Box(
                Spec(f"{place}/root", ["true"], {"PATH": os.defpath}, "/", {}), "10001:10001", Path(place) / "log"
            )
            return box.process.wait(20) == 0

    @property
    def pid(self) -> int:
        """The first process in it, as it is called outside."""
        end = time.monotonic() + 20
        while time.monotonic() < end and self.process.poll() is None:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            if children:
                return int(children[0])
            time.sleep(0.01)
        raise AssertionError(f"the container did not start:\n{self.log.read_text()}")

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--preserve-credentials"]

    def run(self, *command: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """`docker exec`."""
        inside = [*self._enter, "--user", "--mount", "--pid", "--net", "--ipc", "--root", "--wd"]
        environment = [f"{name}={value}" for name, value in self.spec.environment.items()]
        return subprocess.run(
            [*inside, "--", "env", "-i", *environment, *command], capture_output=True, text=True, timeout=timeout
        )

    def stop(self, grace: float) -> int:
        """`docker stop`: SIGTERM, after `grace` seconds SIGKILL. The exit code."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        try:
            return self.process.wait(grace)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            self.process.kill()  # and with it (--kill-child) everything inside
            self.process.wait()


# -- inside ------------------------------------------------------------------------------------------------------------
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    arguments = (source.encode(), os.fsencode(target), kind.encode(), flags, data.encode())
    _check(_libc.mount(*arguments), f"mount {source} on {target}")


def _read_only(target: Path, recursive: bool) -> None:
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    _check(_libc.syscall(SYS_MOUNT_SETATTR, -1, os.fsencode(target), flags, attributes, 32), f"read-only {target}")


def _bind(source: Path, target: Path, read_only: bool = True) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(source), target, "", MS_BIND | MS_REC)
    if read_only:
        _read_only(target, recursive=True)


def _make_root(spec: Spec) -> None:
    root = Path(spec.root)
    _mount("none", Path("/"), "", MS_REC | MS_PRIVATE)
    _mount("root", root, "tmpfs")
    replaced = {"/" + path.strip("/").split("/")[0] for path in spec.mounts}
    for entry in sorted(Path("/").iterdir()):
        if entry.is_symlink():
            (root / entry.name).symlink_to(entry.readlink())
        elif entry.is_dir() and entry.name not in OWN and (str(entry) not in replaced or entry.name == "etc"):
            _bind(entry, root / entry.name)
    for entry in Path("/opt").iterdir():  # interpreters may live there
        if f"/opt/{entry.name}" not in spec.mounts and entry.is_dir():
            _bind(entry, root / "opt" / entry.name)
    for inside, here in spec.mounts.items():
        _bind(Path(here), root / inside.strip("/"), inside not in spec.writable)
    _bind(Path("/dev"), root / "dev", read_only=False)
    _mount(
        "shm",
        root / "dev/shm",
        "tmpfs",
        MS_NOSUID | MS_NODEV | MS_NOEXEC,
        "mode=1777,size=" + spec.shm_size.rstrip("b"),
    )
    (root / "proc").mkdir()
    _mount("proc", root / "proc", "proc")
    for line in spec.tmpfs:
        path, _, options = line.partition(":")
        words = options.split(",")
        (root / path.strip("/")).mkdir(parents=True, exist_ok=True)
        data = ",".join(word for word in words if word not in FLAGS)
        _mount("tmpfs", root / path.strip("/"), "tmpfs", sum(FLAGS.get(word, 0) for word in words), data)
    (root / spec.directory.strip("/")).mkdir(parents=True, exist_ok=True)  # WORKDIR is there in every image
    _read_only(root, recursive=False)
    os.chroot(root)


def _loopback_up() -> None:
    with socket.socket() as any_socket:
        request = struct.pack("16sH14x", b"lo", 0x1)  # IFF_UP
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def _give_up_privileges() -> None:
    """cap_drop: ALL and no-new-privileges."""
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):
        _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def _main() -> int:
    spec = Spec(**json.loads(sys.argv[1]))
    if spec.network:
        _loopback_up()
    _make_root(spec)
    os.chdir(spec.directory)
    child = subprocess.Popen(spec.command, env=spec.environment, preexec_fn=_give_up_privileges)
    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
    while True:  # reap whatever ends here, until the command itself does
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_main())
