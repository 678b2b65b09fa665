"""Carries the runtime's plain figures into Triton's metrics, which Prometheus scrapes from the metrics port.

A thread of its own looks twice a second. So no unit waits for a metric: a call into Triton takes 11 us, and a unit is
about ten of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

from .table import TABLE, MetricSpec

PERIOD_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Exporter:
    """The metrics of one role. Make it in `initialize`; `stop` it in `finalize`, before what it looks at.

    figures       counters and gauges now, by plain name; a name that is missing has not happened yet
    observations  values of distributions since the last call, by plain name
    """

    def __init__(
        self,
        role: str,
        figures: Callable[[], Mapping[str, Any]],
        observations: Callable[[], Mapping[str, Sequence[float]]],
    ) -> None:
        self._figures, self._observations = figures, observations
        self._families: list[Any] = []  # Triton drops the metrics of a family that nobody refers to
        self._metrics: list[tuple[MetricSpec, str, Any]] = []  # (what, plain name, Triton metric)
        self._exported: dict[str, float] = {}  # counters so far, by plain name
        for spec in TABLE[role]:
            self._create(spec)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after a last look. What Triton holds goes now: a family that outlives its process's shared
        memory, which ends with `finalize`, ends the process by signal 11."""
        self._stop.set()
        self._thread.join(2.0)
        self._metrics.clear()
        self._families.clear()

    def export(self) -> None:
        """One look: brings every metric up to the figures of now."""
        figures, observations = self._figures(), self._observations()
        for spec, plain, metric in self._metrics:
            if spec.kind == "histogram":
                for value in observations.get(plain, ()):
                    metric.observe(value * spec.scale)
            elif spec.kind == "gauge":
                metric.set(float(figures.get(plain, 0)) * spec.scale)
            else:
                total = float(figures.get(plain, 0))
                grown = total - self._exported.get(plain, 0.0)
                if grown > 0:
                    metric.increment(grown * spec.scale)
                    self._exported[plain] = total

    def _create(self, spec: MetricSpec) -> None:
        kinds = {
            "counter": pb_utils.MetricFamily.COUNTER,
            "gauge": pb_utils.MetricFamily.GAUGE,
            "histogram": pb_utils.MetricFamily.HISTOGRAM,
        }
        family = pb_utils.MetricFamily(name=spec.name, description=spec.help, kind=kinds[spec.kind])
        self._families.append(family)
        for plain, labels in spec.series.items():
            buckets = {"buckets": list(spec.buckets)} if spec.kind == "histogram" else {}
            self._metrics.append((spec, plain, family.Metric(labels=dict(labels), **buckets)))

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(PERIOD_SECONDS)
            try:
                self.export()
            except Exception:
                _log.exception("metrics could not be exported")  # the next look catches up
