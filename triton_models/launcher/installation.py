"""Where tritonserver comes from: NVIDIA's container (/opt/tritonserver), or the wheel nvidia-pytriton elsewhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

CONTAINER = Path("/opt/tritonserver")
BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub")
_LIBPYTHON = re.compile(rb"libpython(3\.\d+)\.so")


class ServerError(RuntimeError):
    """The server cannot be started; the message says what is missing or what it logged."""


@dataclass(frozen=True)
class Installation:
    """`server`: the binary.  `backends`: a directory for --backend-directory."""

    server: Path
    backends: Path


def find_server(scratch: Path) -> Installation:
    """The tritonserver to start: the container's, else the wheel's.

    scratch: directory that takes links to the wheel's backend.  `ServerError` if there is none that fits this Python.
    """
    if (CONTAINER / "bin" / "tritonserver").is_file():
        return _of_container(CONTAINER)
    wheel = _wheel()
    link_backend(wheel, scratch)
    return Installation(wheel / "bin" / "tritonserver", scratch)


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


def _of_container(place: Path) -> Installation:
    """NVIDIA's layout: bin/tritonserver and backends/python, whose stub is linked to one version of Python."""
    found = Installation(place / "bin" / "tritonserver", place / "backends")
    wanted = [found.server, *(found.backends / "python" / name for name in BACKEND_FILES)]
    missing = [str(path.relative_to(place)) for path in wanted if not path.is_file()]
    if missing:
        raise ServerError(f"{place}: expected a Triton with its Python backend, got none of {', '.join(missing)}")
    linked = _LIBPYTHON.search(wanted[-1].read_bytes())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if linked is not None and linked[1].decode() != version:
        raise ServerError(f"{place}: its Python backend is for Python {linked[1].decode()}, this is {version}")
    return found


def _wheel() -> Path:
    spec = importlib.util.find_spec("pytriton")  # found, not imported: importing it configures logging and more
    if spec is None or spec.origin is None:
        raise ServerError(
            f"expected {CONTAINER} (NVIDIA's container) or the nvidia-pytriton package, got neither; "
            "install it: pip install 'wan-streamer-triton[serve]'"
        )
    return Path(spec.origin).parent / "tritonserver"
