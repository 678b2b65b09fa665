"""Readiness that can be believed. Triton says ready while its stubs are dead; this looks at every process.

`Health.check` compares what the processes of a server say about themselves with the clock. `HealthServer` publishes the
outcome: GET /ready is 200 or 503, with the reason and the models' figures as JSON; GET /live is 200 while
the launcher lives; GET /metrics is for Prometheus.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..observability import text as launcher_metrics
from ..service.status import read_status
from .repository import MODELS
from .server_process import LOOPBACK, ServerProcess, process_lives

BEAT_LIMIT = 5.0  # seconds without a heartbeat: far above any pause of a loaded machine
CALL_LIMIT = 10.0  # seconds of one call to a model: its process hangs
PROBE_SECONDS = 1.0  # between two questions to Triton itself
PROBE_FAILURES = 3  # unanswered ones in a row: the server hangs


@dataclass
class Health:
    """Looks after one server. `check` returns what is wrong, or None; `part` is the process that it is about."""

    server: ServerProcess
    status: Path
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    part: str = "tritonserver"
    _probed: float = 0.0
    _failures: int = 0

    def check(self) -> str | None:
        self.part = "tritonserver"
        if not self.server.alive():
            return "tritonserver has died"
        for name in MODELS:
            self.part = name
            status = read_status(self.status, name)
            if status is None:
                return f"{name} is not loaded"
            self.models[name] = status
            if not process_lives(status["pid"]):
                return f"{name} (pid {status['pid']}) has died"
            age = time.monotonic() - status["beat"]
            if max(age, status.get("loop_s", 0.0)) > BEAT_LIMIT:
                return f"{name} (pid {status['pid']}) shows no life since {age:.1f} s"
            if not status.get("alive", True):
                return f"the worker thread of {name} has ended"
            if status.get("oldest_call_s", 0.0) > CALL_LIMIT:
                return f"a call of {name} has taken {status['oldest_call_s']:.1f} s so far"
        self.part = "tritonserver"
        return self._probe()

    def pids(self) -> dict[str, int]:
        return {name: status["pid"] for name, status in self.models.items()}

    def _probe(self) -> str | None:
        if time.monotonic() - self._probed >= PROBE_SECONDS:
            self._failures = 0 if self.server.ready() else self._failures + 1
            self._probed = time.monotonic()
        return f"tritonserver left {self._failures} questions unanswered" if self._failures >= PROBE_FAILURES else None


@dataclass
class Readiness:
    """What /ready says; written by the supervisor, read by the HTTP threads."""

    ready: bool = False
    reason: str = "starting"
    restarts: int = 0
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    fault: str | None = None  # the part of the server that is down
    faults: Counter[str] = field(default_factory=Counter)  # by part

    def set(self, ready: bool, reason: str) -> None:
        self.ready, self.reason = ready, reason
        if ready:
            self.fault = None

    def blame(self, part: str) -> None:
        """Books a fault of a process; the part is down until the server is ready again."""
        self.fault = part
        self.faults[part] += 1

    def body(self) -> bytes:
        return json.dumps(vars(self)).encode()

    def metrics(self) -> bytes:
        """What Prometheus reads."""
        return launcher_metrics.text(
            launcher_metrics.figures(self.ready, self.fault, self.faults, self.restarts)
        ).encode()


class HealthServer:
    """HTTP on `address`; port 0 takes a free one, which `port` names."""

    def __init__(self, readiness: Readiness, port: int, address: str = LOOPBACK) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path not in ("/ready", "/live", "/metrics"):
                    self.send_error(404, "expected /ready, /live or /metrics")
                    return
                scraped = self.path == "/metrics"
                good = self.path != "/ready" or readiness.ready
                body = readiness.metrics() if scraped else readiness.body()
                self.send_response(200 if good else 503)
                self.send_header("Content-Type", launcher_metrics.CONTENT_TYPE if scraped else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes every second are no news."""

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
