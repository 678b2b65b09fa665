"""Where measured step costs are kept: beside the engines, or elsewhere when those are a read-only volume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine_builder.manifest import MANIFEST
from triton_models.runtime.budget import probe as cost_probe
from triton_models.runtime.budget.costs import Cost, CostTable

pytestmark = pytest.mark.unit

COSTS = [Cost("perform", 1, 0, 2.0)]


def keep(place: Path, engines: Path, threads: int = 1) -> None:
    place.mkdir(parents=True, exist_ok=True)
    CostTable(COSTS).save(place / cost_probe.COSTS)
    (place / cost_probe.MEASURED_ON).write_text(json.dumps(cost_probe._fingerprint(engines, threads, "")))


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine directory; what cannot be written beside it would go below tmp_path / "cache"."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        cost_probe, "_fingerprint", lambda where, threads, device: [(where / MANIFEST).read_text(), threads, device]
    )
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / MANIFEST).write_text("{}")
    return tmp_path / "engines"


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_probe.os, "access", lambda *_: False)


def test_beside_the_engines(engines: Path) -> None:
    assert cost_probe.keeping_place(engines) == engines
    assert cost_probe.load_costs(engines, 1) is None
    keep(engines, engines)
    table = cost_probe.load_costs(engines, 1)
    assert table is not None
    assert list(table.costs) == COSTS
    assert cost_probe.load_costs(engines, 2) is None, "measured with another number of threads"


@pytest.mark.usefixtures("read_only")
def test_elsewhere_by_what_was_measured(engines: Path, tmp_path: Path) -> None:
    place = cost_probe.keeping_place(engines)
    assert place.is_relative_to(tmp_path / "cache"), "and not in a folder that all users share"
    keep(place, engines)
    assert cost_probe.load_costs(engines, 1) is not None
    (engines / MANIFEST).write_text('{"other": 1}')
    assert cost_probe.keeping_place(engines) != place
    assert cost_probe.load_costs(engines, 1) is None


@pytest.mark.usefixtures("read_only")
def test_costs_that_lie_beside_read_only_engines_count_if_they_are_of_this_machine(engines: Path) -> None:
    keep(engines, engines)
    assert cost_probe.load_costs(engines, 1) is not None
    (engines / cost_probe.MEASURED_ON).write_text('{"processor": "another"}')
    assert cost_probe.load_costs(engines, 1) is None
