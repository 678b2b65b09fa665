"""`make bench-gpu` runs from start to end on a machine without a GPU, and its counts of work are right."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import floors
import gpu_goals
import gpu_work
import pytest

from engine_builder.model.codec_work import codec_works
from engine_builder.model.steps import state_sizes
from engine_builder.presets import preset
from triton_models.runtime.budget.costs import STEPS

pytestmark = pytest.mark.engine
CEILINGS = gpu_work.Ceilings(4300, 790, 53)
HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def test_the_benchmark_runs_and_survives_a_preset_that_fails(tmp_path):
    command = [sys.executable, str(HERE / "bench_gpu.py"), "--smoke", "--presets", "nonsense", "tiny"]
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    command += ["--out", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "nonsense failed: ConfigError: preset: expected one of" in done.stdout
    rows = list(csv.DictReader((tmp_path / "gpu_steps.csv").open()))
    assert [(row["step"], row["batch"]) for row in rows] == [(step, b) for step in STEPS for b in ("1", "2")]
    assert all(float(row[column]) > 0 for row in rows for column in ("ms", "device_ms", "floor_ms", "plain_ms"))
    failed, unit = csv.DictReader((tmp_path / "gpu_units.csv").open())
    assert failed["preset"] == "nonsense"
    assert failed["error"]
    assert float(unit["unit_ms_all_slots"]) > 0
    assert float(unit["plain_unit_ms"]) > 0
    assert all(row["chosen"] == "True" for row in csv.DictReader((tmp_path / "gpu_tiling.csv").open()))
    assert len(list(csv.DictReader((tmp_path / "gpu_goals.csv").open()))) == 2 + 2 * 4
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == ["smoke"]  # never to be taken for a measurement
    assert summary["smoke"]["weights"] == "random"
    assert "says" in summary["smoke"]["tensorrt_rtx"]["8.9"]


def test_a_bare_gpu_machine_collects_the_gpu_tests():
    """Python, torch, Triton and what builds engines are there; the server's and the clients' packages are not."""
    absent = (
        "tritonclient",
        "av",
        "aiohttp",
        "psutil",
        "tensorrt",
        "tensorrt_rtx",
        "prometheus_client",
        "opentelemetry",
    )
    program = f"import sys, pytest; sys.modules |= dict.fromkeys({absent}); sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "--collect-only", "-m", "gpu", str(ROOT / "tests/triton_models/gpu")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "test_gpu_parity.py::test_every_step_equals_the_oracle" in done.stdout


def test_goals_are_those_of_the_issue():
    presets = {"v0.1-8b": {"unit_ms": 111.0, "sessions": 3, "sessions_floor": 5, "plain_sessions": 0}, "lost": {}}
    steps = [
        {"preset": "v0.1-8b", "step": "perform", "batch": batch, "share_matmul": share, "share_copy": 0.1}
        for batch, share in ((1, 0.3), (4, 0.56), (8, 0.54))
    ]
    steps.append({"preset": "v0.1-8b", "step": "slot", "batch": 1, "share_matmul": 0.0, "share_copy": 0.61})
    found = gpu_goals.goals(presets, steps)
    met = [goal.met for goal in found]
    assert met == [False, True, True, True, False, True, None, None, None, None]
    assert [goal.got for goal in found[:6]] == ["111", "3", "60%", "inf", "54%", "61%"]


def test_without_a_gpu_it_says_so(tmp_path):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "bench_gpu.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "expected an NVIDIA GPU, found none" in done.stderr


def test_work_of_the_8b_solver_step():
    """Counted by hand: 36 layers of 192.9 M weights, 254 tokens, 15,000 of history, 32 heads of 128."""
    config = preset("v0.1-8b")
    work = gpu_work.step_work(config, "perform", 1, 15_000)
    weights = 36 * (4096 * (32 + 16) * 128 + 32 * 128 * 4096 + 3 * 4096 * 12288)
    assert weights == 6_945_767_424
    attention = 36 * 4 * 254 * 15_254 * 4096
    assert work.flops == 2 * 254 * weights + attention + 2 * 6 * 4096**2
    assert work.bytes == 2 * (weights + 36 * 2 * 15_000 * 1024 + 6 * 4096**2)
    assert work.floor_ms(CEILINGS) == pytest.approx(7.4, abs=0.1)
    fp8 = gpu_work.step_work(config, "perform", 1, 15_000, fp8=True)
    assert fp8.bytes == work.bytes - weights
    assert fp8.floor_ms(CEILINGS) == pytest.approx((254 * weights + attention + 12 * 4096**2) / 790e9)


def test_a_slot_is_bound_by_memory_and_a_solver_step_by_arithmetic():
    config = preset("v0.1-8b")
    slot = gpu_work.step_work(config, "slot", 1, 15_000)
    assert slot.floor_ms(CEILINGS) == slot.bytes / 4300e6
    solver = gpu_work.step_work(config, "perform", 4, 15_000)
    assert solver.floor_ms(CEILINGS) == solver.flops / 790e9
    render = gpu_work.step_work(config, "render", 1, 15_000)
    assert render.floor_ms(CEILINGS) == render.flops / 53e9  # codecs are float32


def conv(pixels, inputs, outputs, places=9):
    return 2 * pixels * places * inputs * outputs


def test_work_of_a_render_is_that_of_its_codecs():
    """TAEHV counted by hand from its published structure, at 192 x 336; the sound comes on top, and is small."""
    works = codec_works(preset("v0.1-8b"))
    cells = 24 * 42
    widths, frames = (256, 128, 64, 64), (1, 1, 2, 4)
    flops = conv(cells, 16, 256)
    for i in range(3):
        pixels = cells * 4**i * frames[i]
        flops += 3 * (conv(pixels, 2 * widths[i], widths[i]) + 2 * conv(pixels, widths[i], widths[i]))
        flops += conv(pixels, widths[i], widths[i] * frames[i + 1] // frames[i], places=1)
        flops += conv(cells * 4 ** (i + 1) * frames[i + 1], widths[i], widths[i + 1])
    flops += conv(cells * 64 * 4, 64, 3)
    assert 0 < works["render"].flops - flops < 0.03 * flops
    assert works["render"].state_bytes == 4 * state_sizes(preset("v0.1-8b"))["render"]
    # Decoders alone: the encoders, of which nothing is run, have about as many weights again.
    assert 4 * 19e6 < works["render"].weight_bytes < 4 * 22e6


@pytest.mark.parametrize(
    # Counted once more by a reader of the shapes (ms; slot and unit on an H200, then on an H100).
    ("name", "think", "slot", "perform", "render", "unit"),
    [
        ("v0.1-0.6b", 1.59, (0.66, 0.95), 1.37, 1.63, (10.0, 10.6)),
        ("v0.1-1.7b", 2.32, (1.19, 1.70), 1.99, 1.63, (14.3, 15.3)),
        ("v0.1-8b", 8.44, (4.02, 5.76), 7.26, 1.63, (47.1, 50.6)),
        ("v0.1-8b-wan", 8.44, (4.02, 5.76), 7.26, 41.2, (86.7, 90.2)),
        ("v0.2-8b", 53.1, (5.19, 7.43), 50.2, 5.88, (270, 275)),
        ("v0.2-8b-wan", 53.1, (5.19, 7.43), 50.2, 151, (415, 419)),
    ],
)
def test_floors_of_every_preset(name, think, slot, perform, render, unit):
    found = floors.Floors.of(name)
    for card, slot_ms, unit_ms in zip(floors.CARDS, slot, unit, strict=True):
        got = [found.step_ms(step, card) for step in ("think", "slot", "perform", "render")] + [found.unit_ms(card)]
        assert got == pytest.approx([think, slot_ms, perform, render, unit_ms], rel=0.01)


def test_the_page_has_the_table_that_the_script_prints():
    page = (ROOT / "docs/PERFORMANCE.md").read_text()
    assert floors.table() in page
    assert floors.fp8_table() in page


def test_a_window_of_eight_seconds():
    config = preset("v0.1-8b")
    assert gpu_work.history_tokens(config, 8.0, 2) == 50 * (254 + 28 + 4 + 1 + 2)
