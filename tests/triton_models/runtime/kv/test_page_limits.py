"""Engines of fixed sizes take so many pages a session: what would need more is refused when it opens, or ends there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from triton_models.runtime.kv.pages import BlockManager, PageTable, TooManyPages
from triton_models.runtime.kv.retention import Full
from triton_models.runtime.messages import CloseJob, OpenJob, SessionError
from triton_models.runtime.thinker.thinker import Thinker

pytestmark = pytest.mark.unit


def test_a_history_ends_at_the_limit_and_keeps_what_it_has() -> None:
    blocks = BlockManager(20, 4)
    table = PageTable(blocks, "a", Full(), max_pages=2)
    table.append("prompt", -1, 5)
    table.evict(0)
    table.append("av", 0, 3)  # fills the second page
    with pytest.raises(TooManyPages, match="session 'a' needs 3, the engines take 2 a session; keep less"):
        table.append("language", 0, 1)
    assert (table.pages, table.tokens, blocks.used) == (2, 8, 2)


def test_a_retention_that_cannot_be_kept_is_refused_at_the_start(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    thinker = Thinker(replace(bench.engines, max_pages=3), bench.pool, bench.blocks, bench.tokenizer)
    window = {"window": {"sink": 2, "recent": 50}}
    with pytest.raises(SessionError, match=r"RESOURCE_EXHAUSTED: kv pages: .* the engines take 3 a session") as refused:
        thinker.open(OpenJob("a", 1, "", 0, window))
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert thinker.open_sessions == 0
    thinker.open(OpenJob("a", 1, "", 0, "full"))  # lasts as long as it lasts
    thinker.close(CloseJob("a", 1))
