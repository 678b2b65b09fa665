"""Readiness that can be believed. Triton says ready while its stubs are dead; this looks at every process.

`Health.check` compares what the processes of a server say about themselves with the clock; `Readiness` is what /ready
and /metrics publish of it.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from ..observability.table import LAUNCHER, PARTS
from ..runtime.budget.admission import Room
from ..service.status import read_status
from .connections import RULES, Rule
from .repository import MODELS
from .server_process import ServerProcess, process_lives

BEAT_LIMIT = 5.0  # seconds without a heartbeat: far above any pause of a loaded machine
CALL_LIMIT = 10.0  # seconds of one call to a model: its process hangs
MAX_WEIGHT = 256  # of HAProxy
DRAINING = "draining"  # the reason of a server that takes no new sessions and keeps the open ones
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
            # A record that is damaged or gone says nothing new: its process is judged by the last one, as it ages.
            status = read_status(self.status, name) or self.models.get(name)
            if status is None:
                return f"{name} is not loaded"
            self.models[name] = status
            if not process_lives(status["pid"]):
                return f"{name} (pid {status['pid']}) has died"
            age = time.monotonic() - status["beat"]
            if max(age, status.get("loop_s", 0.0)) > BEAT_LIMIT:
                return f"{name} (pid {status['pid']}) shows no life since {age:.1f} s"
            if status.get("fault"):
                return f"{name}: {status['fault']}"
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
            self._failures = 0 if self.server.answers() else self._failures + 1
            self._probed = time.monotonic()
        return f"tritonserver left {self._failures} questions unanswered" if self._failures >= PROBE_FAILURES else None


class Readiness:
    """What /ready and /metrics say: written by the supervisor, read by the thread of the web server.

    As a collector of prometheus_client it yields the launcher's own metrics, which can be read while the server is
    down.
    """

    def __init__(self, cut_off: Mapping[Rule, int] | None = None) -> None:
        """cut_off: connections that were, by rule."""
        self._cut_off = cut_off or {}
        self.ready, self.reason, self.restarts = False, "starting", 0
        self._models: dict[str, dict[str, Any]] = {}
        self._fault: str | None = None  # the part of the server that is down
        self._faults: Counter[str] = Counter()  # by part
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def set(self, ready: bool, reason: str) -> None:
        with self._lock:
            self.ready, self.reason = ready, reason
            if ready:
                self._fault = None

    def show(self, models: dict[str, dict[str, Any]]) -> None:
        """What the models' processes said last."""
        with self._lock:
            self._models = dict(models)

    def blame(self, part: str) -> None:
        """Books a fault of a process; the part is down until the server is ready again."""
        with self._lock:
            self._fault = part
            self._faults[part] += 1

    def room(self) -> Room:
        """What is published of the books: here, in the metrics, and to the balancer. A server that is down has none."""
        with self._lock:
            said = self._models.get("duplex", {}).get("room")
            draining = self.reason == DRAINING
            if said is None or not (self.ready or draining):
                return Room(capacity=0, admitted=0, reserved=0, free=0, draining=draining)
            return Room(**{**said, "draining": draining, "free": 0 if draining else said["free"]})

    def agent(self) -> bytes:
        """A line of HAProxy's agent-check protocol.

        The weight, in hundredths of the configured one, is how many streams this server could have: a balancer of least
        connections counts those by itself, from one look to the next. Without free room it is 0: another balancer's
        streams may be what fills it. Either way, and while draining, sessions that belong here still come through.
        """
        room = self.room()
        if room["draining"]:
            return b"up drain\n"
        if not self.ready:
            return b"down #not ready\n"
        return b"up ready %d%%\n" % (min(MAX_WEIGHT, room["admitted"] + room["free"]) if room["free"] else 0)

    def body(self) -> bytes:
        room = self.room()
        with self._lock:
            said = {
                "ready": self.ready,
                "reason": self.reason,
                "room": room,
                "restarts": self.restarts,
                "models": self._models,
                "fault": self._fault,
                "faults": self._faults,
            }
            return json.dumps(said).encode()

    def metrics(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        room = self.room()
        with self._lock:
            figures: dict[str, float] = {
                **{f"room.{name}": float(value) for name, value in room.items()},  # pyright: ignore[reportArgumentType]
                "ready": self.ready,
                "restarts": self.restarts,
                **{f"up.{part}": self._fault != part for part in PARTS},
                **{f"faults.{part}": self._faults[part] for part in PARTS},
                **{f"cut_off.{rule}": self._cut_off.get(rule, 0) for rule in RULES},
            }
        for spec in LAUNCHER:
            kind = GaugeMetricFamily if spec.kind == "gauge" else CounterMetricFamily
            family = kind(spec.name, spec.help, labels=spec.labels)
            for plain, labels in spec.series.items():
                family.add_metric([labels[name] for name in spec.labels], figures[plain])
            yield family
