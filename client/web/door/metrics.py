"""The gateway's figures for Prometheus: its counters as they are, and how long units take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.24, 0.32, 0.64, 1.28, 5.0)
EVENTS = ("opened", "refused", "resumed", "waited", "expired", "closed", "mended")


class Metrics(Collector):
    """stats: `Desk.stats`."""

    def __init__(self, stats: Callable[[], dict[str, Any]]) -> None:
        self._stats = stats
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.unit_seconds = Histogram(
            "wan_gateway_unit_seconds",
            "From handing a unit to the model until its answer is here",
            buckets=BUCKETS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        now = self._stats()
        sessions = GaugeMetricFamily("wan_gateway_sessions", "Conversations now, by what they do", labels=["state"])
        sessions.add_metric(["attached"], now["sessions"] - now["waiting"])
        sessions.add_metric(["waiting"], now["waiting"])
        yield sessions
        events = CounterMetricFamily("wan_gateway_session_events", "What happened to conversations", labels=["event"])
        for name in EVENTS:
            events.add_metric([name], now.get(name, 0))
        yield events
        away = CounterMetricFamily("wan_gateway_turned_away", "Requests refused at the door", labels=["reason"])
        for reason, count in now["turned_away"].items():
            away.add_metric([reason], count)
        yield away
