"""Stacking page tables, and the metrics that the runtime keeps."""

from __future__ import annotations

import numpy as np
import pytest

from triton_models.runtime.kv.pages import BlockManager, PageTable
from triton_models.runtime.kv.retention import Full
from triton_models.runtime.kv.tables import page_multiple, stack_tables, stack_views
from triton_models.runtime.messages import HistoryView
from triton_models.runtime.metrics import Metrics

pytestmark = pytest.mark.unit


def view(*pages: int) -> HistoryView:
    return HistoryView(np.array(pages, np.int64), np.array([[1, 4]] * len(pages), np.int64))


def test_shorter_rows_end_in_null_pages_of_which_nothing_is_visible() -> None:
    stacked = stack_views([view(5), view(7, 8, 9)], multiple=2)
    assert stacked["page_table"].tolist() == [[5, 0, 0, 0], [7, 8, 9, 0]]
    assert stacked["page_range"][0].tolist() == [[1, 4], [0, 0], [0, 0], [0, 0]]
    assert stacked["page_range"][1].tolist() == [[1, 4], [1, 4], [1, 4], [0, 0]]
    assert stacked["page_table"].dtype == stacked["page_range"].dtype == np.int64


def test_tables_are_stacked_as_their_views_are() -> None:
    blocks = BlockManager(16, 4)
    tables = [PageTable(blocks, name, Full()) for name in "abc"]
    for table, tokens in zip(tables, (3, 21, 0), strict=True):
        table.append("prompt", -1, tokens)
    for chosen in (tables, tables[:1], tables[2:]):
        expected = stack_views([table.view() for table in chosen], multiple=2)
        pages, ranges = stack_tables(chosen, multiple=2)
        np.testing.assert_array_equal(pages, expected["page_table"])
        np.testing.assert_array_equal(ranges, expected["page_range"])
        assert pages.dtype == ranges.dtype == np.int64


@pytest.mark.parametrize(
    ("page_tokens", "head_dim", "pages"),
    [(16, 128, 8), (16, 64, 16), (8, 64, 32), (16, 16, 64), (16, 80, 8), (16, 4, 64), (24, 128, 16), (256, 128, 1)],
)
def test_padding_is_by_whole_panels_and_whole_pages(page_tokens: int, head_dim: int, pages: int) -> None:
    assert page_multiple(page_tokens, head_dim) == pages


def test_metrics_sum_up() -> None:
    metrics = Metrics()
    metrics.count("opened")
    metrics.count("opened", 2)
    metrics.time("think", 5.0, rows=3)
    metrics.time("think", 2.0)
    expected = {"opened": 3, "think.calls": 2, "think.rows": 4, "think.total_ms": 7.0, "think.max_ms": 5.0}
    assert metrics.snapshot() == expected
