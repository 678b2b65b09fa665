"""The kit of a GPU day: it packs, a stage that hangs or dies stops no other, its report claims nothing unmeasured."""

from __future__ import annotations

import csv
import json
import sys
import tarfile
from pathlib import Path

import day
import pack
import pytest
import report

pytestmark = pytest.mark.unit
HERE = Path(__file__).parent


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """As the first stages of a day leave it, with one that was stopped."""
    stages = [
        {"stage": "machine", "code": 0, "seconds": 9.0, "note": ""},
        {"stage": "v0.1-8b", "code": 0, "seconds": 80.0, "note": ""},
        {"stage": "overlap", "code": -9, "seconds": 60.0, "note": "stopped at its limit"},
    ]
    (tmp_path / "stages.json").write_text(json.dumps({"smoke": False, "stages": stages}))
    files = {
        "machine/machine.json": json.dumps({"gpu": "NVIDIA H200", "torch": "2.11.0"}),
        "v0.1-8b/gpu_steps.csv": "preset,precision,step,batch,ms,device_ms,floor_ms,plain_ms,share_matmul,share_copy\n"
        "v0.1-8b,bfloat16,perform,1,15.4,15.0,7.26,40,0.48,0.2\n",
        "v0.1-8b/gpu_units.csv": "preset,unit_ms,unit_floor_ms,sessions,sessions_floor,plain_sessions\n"
        "v0.1-8b,81.5,47.1,2,3,1\n",
        "v0.1-8b/gpu_goals.csv": "name,goal,got,met\n"
        '"v0.1-8b: unit, ms",<= 110,81.5,True\n'
        'v0.1-8b: sessions on time,">= 60% of 3, which the ceilings allow",67%,True\n'
        "v0.1-8b: sessions on time,>= 2 times those of plain PyTorch,not measured,\n",
        "overlap/overlap.json": '{"two streams": {"ov',  # cut short
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_report_has_what_was_measured_and_says_what_was_not(results, tmp_path):
    report.csv_files(results, tmp_path / "csv")
    text = report.readme(results)
    assert "| `v0.1-8b` | 81.5 | 47.1 | 2 | 3 | 1 |" in text
    assert "| `v0.2-8b` | not yet run | not yet run |" in text
    assert "| thinker and performer overlap, one process | >= 1.3 | not yet run | not yet run |" in text
    assert "| `v0.1-8b` perform, FP8 against bf16 | >= 1.5 | not yet run | not yet run |" in text
    assert "| v0.1-8b: unit, ms | <= 110 | 81.5 | True |" in text
    assert "| v0.1-8b: sessions on time | >= 60% of 3, which the ceilings allow | 67% | True |" in text
    assert "| v0.1-8b: sessions on time | >= 2 times those of plain PyTorch | not yet run | not yet run |" in text
    assert "Stages that failed: overlap (stopped at its limit)." in text
    assert [row["name"] for row in csv.DictReader((tmp_path / "csv/gpu_facts.csv").open())] == ["gpu", "torch"]
    report.figure(results, tmp_path / "csv")
    assert (tmp_path / "csv/gpu_steps.svg").stat().st_size > 1000
    nothing = report.readme(tmp_path / "none")
    assert nothing.count("not yet run") == 4 * 5 + 2 * (2 + 4 * 4) + 11, "each preset, each goal, overlap, memory, FP8"
    assert "| v0.1-8b: unit, ms | <= 110 | not yet run | not yet run |" in nothing
    assert "no GPU" in nothing


def test_a_smoke_run_is_no_measurement(results, monkeypatch, capsys):
    (results / "stages.json").write_text('{"smoke": true, "stages": []}')
    monkeypatch.setattr(sys, "argv", ["report.py", str(results)])
    assert report.main() == 1
    assert "no measurements" in capsys.readouterr().out


def test_a_stage_that_hangs_or_dies_stops_no_other(tmp_path, monkeypatch):
    (tmp_path / "kit/wheels").mkdir(parents=True)
    hang = "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'known').write_text('1'); print('on'); time.sleep(60)"
    stages = [
        day.Stage("hangs", 2, ("-c", hang, "{out}")),
        day.Stage("dies", 9, ("-c", "import os; os.abort()")),
        day.Stage("late", 9, ("-c", "pass"), least=1000),
        day.Stage("works", 9, ("-c", "import os; assert os.environ['TRITON_INTERPRET'] == '1'")),
    ]
    monkeypatch.setattr(day, "stages", lambda smoke: stages)
    one = day.Day(tmp_path / "kit", tmp_path / "work", tmp_path, 100_000.0, smoke=True)
    one.deadline = day.time.monotonic() + 60
    assert one.run() == 3
    found = {s["stage"]: (s["code"], s["note"]) for s in json.loads((tmp_path / "stages.json").read_text())["stages"]}
    assert found.pop("late")[0] is None
    assert found == {"hangs": (-9, "stopped at its limit"), "dies": (-6, ""), "works": (0, "")}
    assert (tmp_path / "hangs/known").exists()
    assert "stopped at its limit" in (tmp_path / "table.txt").read_text()


def test_every_stage_of_a_day_fits_in_nine_minutes_and_exists():
    names = [stage.name for stage in day.stages(smoke=False)]
    assert names[:4] == ["machine", "parity", "v0.1-8b", "overlap"]
    assert sum(stage.seconds for stage in day.stages(smoke=False)) < 540
    assert {stage.name for stage in day.stages(smoke=True)} >= {"machine", "parity", "overlap", "anchors", "served"}
    for stage in [*day.stages(smoke=False), *day.stages(smoke=True)]:
        paths = [day.ROOT / str(word) for word in stage.command if str(word).startswith(("/", "tests/"))]
        assert paths, stage
        assert all(path.exists() for path in paths), stage


def test_the_project_is_packed_without_what_is_large():
    import io

    with tarfile.open(fileobj=io.BytesIO(packed := pack.project())) as tar:
        names = tar.getnames()
    assert len(packed) < 4 << 20
    assert {"triton_models/gpu/serving.py", "tests/bench/gpu/kit/day.py", "pyproject.toml"} <= set(names)
    assert not any(name.startswith("checkpoints/") for name in names)
