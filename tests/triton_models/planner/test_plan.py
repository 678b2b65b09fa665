"""The planner's command line: prints a plan, writes CSV and plot, says what is wrong with its arguments."""

import csv
from pathlib import Path

import pytest

from triton_models.plan import main
from triton_models.planner.workload import gpu_like
from triton_models.runtime.budget.costs import CostTable

pytestmark = pytest.mark.unit
QUICK = ["--seconds", "4", "--seeds", "1", "--sessions", "2,20"]


def test_plan_from_measured_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = tmp_path / "costs.csv"
    gpu_like(3.0, 2.0).save(costs)
    out = tmp_path / "plan"
    arguments = ["--preset", "v0.1-1.7b", "--costs", str(costs), "--kv-gb", "40", "--out", str(out), *QUICK]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert f"costs {costs}" in text
    assert "sessions fit, for ever" in text
    rows = list(csv.DictReader((out / "plan.csv").open()))
    assert [(row["policy"], row["sessions"]) for row in rows[:2]] == [("step-level", "2"), ("step-level", "20")]
    assert float(rows[0]["on_time"]) == 1.0 > float(rows[1]["on_time"])
    assert (out / "plan.png").read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again"
    assert main([*arguments[: -len(QUICK) - 1], str(again), *QUICK]) == 0
    assert (again / "plan.csv").read_text() == (out / "plan.csv").read_text()


def test_assumed_costs_are_called_so_and_full_history_has_an_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--retention", '"full"', "--kv-gb", "80", "--kv-bytes", "2", "--devices", "1", "--out", str(tmp_path)]
    assert main([*arguments, *QUICK]) == 0
    text = capsys.readouterr().out
    assert "ASSUMED, not measured: 6 + 1.5 ms" in text
    assert "full history of one session lasts" in text


def test_assumed_costs_know_the_codecs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Wan VAE in float32 (8 TFLOP a unit) leaves room for nobody, TAEHV does."""
    arguments = ["--fixed-ms", "2", "--row-ms", "1", "--out", str(tmp_path), *QUICK]
    found = []
    for preset in ("v0.2-8b", "v0.2-8b-wan"):
        assert main(["--preset", preset, *arguments]) == 0
        text = capsys.readouterr().out
        found.append(int(text.rpartition("step-level")[2].split()[0]))
    assert "codecs 1.5e+02 ms a row more" in text
    assert "codec states: 2230.2 MB a session (perceive 0.5, render 2229.6): 3 sessions fit in 8 GB" in text
    assert found[0] > found[1] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "v9"], "preset: expected one of tiny"),
        (["--costs", "nowhere.csv"], "nowhere.csv"),
        (["--retention", '{"window": {"sink": 1}}'], "retention.window: expected the fields sink, recent"),
        (["--seconds", "1"], "seconds: expected more than 2 s of warm-up, got 1"),
        (["--sessions", "0"], "--sessions: expected a whole number from 1 to 10000, got '0'"),
    ],
)
def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    try:
        code = main([*QUICK, "--out", str(tmp_path), *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "--session-seconds 300" in text


def test_costs_file_is_the_one_the_server_writes(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    gpu_like().save(path)
    assert CostTable.load(path).ms("perform", 7) == pytest.approx(16.5)
