"""Cost tables: interpolation, file round trip, and what a damaged file is told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_models.runtime.budget.costs import Cost, CostTable, measure

pytestmark = pytest.mark.unit


def test_linear_costs_hold_at_any_batch() -> None:
    table = CostTable.linear({"perform": (6.0, 1.5)})
    assert table.ms("perform", 0) == 0.0
    assert [table.ms("perform", b) for b in (1, 2, 7, 100)] == [7.5, 9.0, 16.5, 156.0]
    assert table.ms("perform", 4, history=10_000) == 12.0


def test_interpolates_over_rows_and_history() -> None:
    table = CostTable(
        [Cost("think", b, h, ms) for b, h, ms in ((1, 0, 2.0), (5, 0, 6.0), (1, 100, 4.0), (5, 100, 16.0))]
    )
    assert table.ms("think", 3, 0) == 4.0
    assert table.ms("think", 3, 50) == pytest.approx(7.0)
    assert table.ms("think", 7, 100) == pytest.approx(22.0)
    assert table.ms("think", 1, 200) == pytest.approx(6.0)
    assert table.curve("think", 3) == [0.0, 2.0, 3.0, 4.0]


def test_noise_never_makes_more_work_cheaper() -> None:
    table = CostTable([Cost("render", 1, 0, 3.0), Cost("render", 2, 0, 2.5)])
    assert table.curve("render", 4) == [0.0, 3.0, 3.0, 3.0, 3.0]


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["think", "perform"]), st.integers(1, 64), st.integers(0, 4096)),
        st.integers(0, 10**6),
        min_size=1,
        max_size=20,
    )
)
def test_file_round_trip(tmp_path_factory: pytest.TempPathFactory, values: dict[tuple[str, int, int], int]) -> None:
    path = tmp_path_factory.getbasetemp() / "costs.csv"
    table = CostTable(Cost(*key, ms / 1000) for key, ms in values.items())
    table.save(path)
    assert CostTable.load(path).costs == table.costs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,ms\n", "expected the columns step,batch,history,ms"),
        ("step,batch,history,ms\nperform,1,0,1\nperform,x,0,1\n", r"costs.csv:3: invalid literal"),
        ("step,batch,history,ms\nsolve,1,0,1\n", "costs.csv:2: step: expected one of perceive"),
        ("step,batch,history,ms\nperform,0,0,1\n", "batch: expected >= 1 row, got 0"),
        ("step,batch,history,ms\nperform,1,-1,1\n", "history: expected >= 0 tokens, got -1"),
        ("step,batch,history,ms\nperform,1,0,nan\n", "ms: expected a finite time >= 0, got nan"),
        ("step,batch,history,ms\nperform,1,0\n", "costs.csv:2:"),
        ("step,batch,history,ms\nperform,1,0,1\nperform,1,0,2\n", "perform with batch 1, history 0 is given twice"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "costs.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        CostTable.load(path)


def test_one_measured_batch_promises_no_gain() -> None:
    table = CostTable([Cost("render", 2, 0, 3.0)])
    assert table.curve("render", 4) == [0.0, 3.0, 3.0, 4.5, 6.0]


def test_unknown_step_is_named() -> None:
    with pytest.raises(ValueError, match="no measurement of 'render', only of perform"):
        CostTable.linear({"perform": (1.0, 1.0)}).ms("render", 1)


def test_measure_takes_the_median_after_a_warm_up() -> None:
    now, calls = [0], []

    def call(batch: int) -> None:
        calls.append(batch)
        now[0] += 1_000_000 * (50 if len(calls) in (1, 3) else batch)  # the warm-up and one outlier

    costs = measure("perform", [2, 4], call, history=8, repeats=3, clock_ns=lambda: now[0])
    assert costs == [Cost("perform", 2, 8, 2.0), Cost("perform", 4, 8, 4.0)]
    assert calls == [2] * 4 + [4] * 4
