"""Plain figures into metric objects, and the table of names beside the page that explains them."""

from __future__ import annotations

import importlib
import re
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from triton_models.observability.table import CODES, TABLE
from triton_models.runtime.duplex.contract import ORDER
from triton_models.runtime.metrics import MAX_OBSERVATIONS, Metrics

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[3] / "build" / "observability" / "METRICS.md"


class FakeMetric:
    def __init__(self, labels: dict[str, str], buckets: list[float] | None = None) -> None:
        self.labels, self.buckets = labels, buckets
        self.value = 0.0
        self.observed: list[float] = []

    def increment(self, value: float) -> None:
        assert value > 0
        self.value += value

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.observed.append(value)


class FakeFamily:
    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    made: list[FakeFamily] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.description, self.kind = name, description, kind
        self.metrics: list[FakeMetric] = []
        FakeFamily.made.append(self)

    def Metric(self, **given: Any) -> FakeMetric:
        self.metrics.append(FakeMetric(**given))
        return self.metrics[-1]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The Exporter class over a Triton that is not there."""
    backend = types.ModuleType("triton_python_backend_utils")
    backend.MetricFamily = FakeFamily  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.delitem(sys.modules, "triton_models.observability.export", raising=False)
    FakeFamily.made.clear()
    yield importlib.import_module("triton_models.observability.export").Exporter
    monkeypatch.delitem(sys.modules, "triton_models.observability.export", raising=False)


def series(name: str) -> dict[str, FakeMetric]:
    """The metrics of a family by their only label value; "" if there is none."""
    family = next(family for family in FakeFamily.made if family.name == f"wan_streamer_{name}")
    return {next(iter(metric.labels.values()), ""): metric for metric in family.metrics}


def test_counters_grow_gauges_move_and_values_are_observed_once(exporter: Any) -> None:
    metrics = Metrics()
    figures = {"pages.free": 7, "pages.used": 3}
    made = exporter("thinker", lambda: {**figures, **metrics.snapshot()}, metrics.take)
    metrics.count("pages.evicted", 5)
    metrics.time("think", 20.0, rows=3)
    made.export()
    figures["pages.free"] = 6
    metrics.count("pages.evicted", 2)
    metrics.time("think", 30.0, rows=1)
    made.export()
    made.export()
    assert series("kv_pages_evicted_total")[""].value == 7
    assert series("kv_pages")["free"].value == 6
    assert series("thinker_engine_seconds_total")["think"].value == pytest.approx(0.05)
    assert series("thinker_batch_rows")["think"].observed == [3, 1]
    assert series("thinker_batch_rows")["perceive"].observed == []


def test_the_last_look_is_at_the_end(exporter: Any) -> None:
    metrics = Metrics()
    made = exporter("performer", metrics.snapshot, metrics.take)
    made.start()
    metrics.count("steps.skipped", 4)
    made.stop()
    assert series("solver_steps_skipped_total")[""].value == 4


def test_nothing_of_tritons_outlives_the_end(exporter: Any) -> None:
    """A family that was destroyed after its process's shared memory ended every stub by signal 11."""
    made = exporter("performer", dict, dict)
    made.start()
    left = [weakref.ref(each) for family in FakeFamily.made for each in (family, *family.metrics)]
    FakeFamily.made.clear()
    made.stop()
    assert left
    assert not [each for each in left if each() is not None]


def test_an_export_that_fails_is_caught_up(exporter: Any) -> None:
    metrics = Metrics()
    broken = [True]

    def figures() -> dict[str, float]:
        if broken:
            raise OSError("not now")
        return metrics.snapshot()

    made = exporter("performer", figures, metrics.take)
    metrics.count("steps.skipped")
    with pytest.raises(OSError, match="not now"):
        made.export()
    broken.clear()
    made.export()
    assert series("solver_steps_skipped_total")[""].value == 1


def test_observations_are_bounded() -> None:
    metrics = Metrics()
    for value in range(MAX_OBSERVATIONS + 10):
        metrics.observe("x", value)
    assert metrics.take()["x"][0] == 10
    assert metrics.take() == {}


def test_names_and_labels_are_fit_for_prometheus() -> None:
    names = [spec.name for specs in TABLE.values() for spec in specs]
    assert len(names) == len(set(names))
    for specs in TABLE.values():
        for spec in specs:
            assert re.fullmatch(r"wan_streamer_[a-z_]+", spec.name)
            assert spec.name.endswith("_total") == (spec.kind == "counter"), spec.name
            assert len({tuple(labels) for labels in spec.series.values()}) == 1, "one set of labels a metric"
            assert list(spec.buckets) == sorted(set(spec.buckets))
            assert bool(spec.buckets) == (spec.kind == "histogram")


def test_every_code_and_measure_has_a_series() -> None:
    doc = (Path(__file__).parents[3] / "triton_models/runtime/messages.py").read_text()
    stated = re.search(r"Codes follow gRPC: ([A-Z_, ]+)\.", doc)
    assert stated is not None
    assert tuple(stated[1].split(", ")) == CODES
    degraded = next(spec for spec in TABLE["duplex"] if spec.name.endswith("units_degraded_total"))
    assert [labels["kind"] for labels in degraded.series.values()] == list(ORDER)


def test_the_page_lists_what_there_is() -> None:
    rows = re.findall(r"^\| `(wan_streamer_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    stated = {name: (kind, re.findall(r"`(\w+)`", labels), text.strip()) for name, kind, labels, text in rows}
    there = {spec.name: (spec.kind, spec.labels, spec.help) for specs in TABLE.values() for spec in specs}
    assert stated == there
