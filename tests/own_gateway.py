"""A gateway of one's own, as a process, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from client.own_server import ends_with_us, tail

ROOT = Path(__file__).parents[1]
START_SECONDS, STOP_SECONDS = 30.0, 20.0


@dataclass(frozen=True)
class OwnGateway:
    """url: http://host:port or https://host:port."""

    url: str
    process: psutil.Process


@contextlib.contextmanager
def own_gateway(upstream: str, log: Path, *flags: str, tree: Path = ROOT) -> Iterator[OwnGateway]:
    """The gateway of `tree` before the server at `upstream`, with what it prints in `log`. RuntimeError if it does not
    come up."""
    command = ends_with_us([sys.executable, "-m", "client.web", "--url", upstream, "--port", "0", *flags])
    variables = {**os.environ, "PYTHONPATH": str(tree.resolve())}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=tree, env=variables, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield OwnGateway(_url(process, log), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        for line in log.read_text().splitlines(keepends=True):
            if line.startswith("realtime") and line.endswith("\n"):
                return line.split()[1].removesuffix("/v1")
        time.sleep(0.1)
    raise RuntimeError(f"the gateway did not start\n{tail(log)}")
