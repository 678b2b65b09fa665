"""A tritonserver with the `echo` model: the client's and Triton's own part of a unit, without anything of ours."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from engine_builder.config import FRAMES_PER_UNIT
from engine_builder.manifest import Manifest
from triton_models.launcher.checks import reserve_ports
from triton_models.launcher.repository import CONFIG, TEMPLATES, fill
from triton_models.launcher.server_process import LOOPBACK, ServerPlan, ServerProcess, clean_shared_memory

MODEL = "echo"
START_SECONDS = 30.0
PREFIX = "wst-bench-echo-"


@contextlib.contextmanager
def echo_server(engines: Path, run: Path) -> Iterator[str]:
    """host:port of a server whose `echo` has the configuration of `duplex` for these engines."""
    config = Manifest.load(engines).model
    run = run.resolve()  # tritonserver has a working directory of its own
    repository = run / "repository"
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(Path(__file__).parent / MODEL, repository / MODEL, ignore=shutil.ignore_patterns("__pycache__"))
    sizes = {
        "unit_samples": config.audio.unit_samples,
        "frames": FRAMES_PER_UNIT,
        "height": config.video.height,
        "width": config.video.width,
        "sequences": "",
        "parameters": "",
    }
    text = fill((TEMPLATES / "duplex" / CONFIG).read_text(), sizes).replace('"duplex"', f'"{MODEL}"')
    (repository / MODEL / CONFIG).write_text(text)
    sockets = reserve_ports([(LOOPBACK, 0)] * 2)
    grpc, metrics = (each.getsockname()[1] for each in sockets)
    server = ServerProcess(ServerPlan(repository, run / "backends", run / "server.log", grpc, metrics, PREFIX))
    server.start()
    try:
        end = time.monotonic() + START_SECONDS
        while not server.answers():
            if time.monotonic() > end or not server.alive():
                raise RuntimeError(f"the echo server did not start: {server.errors()}")
            time.sleep(0.05)
        yield f"127.0.0.1:{grpc}"
    finally:
        server.stop()
        clean_shared_memory(PREFIX)
        for each in sockets:
            each.close()
