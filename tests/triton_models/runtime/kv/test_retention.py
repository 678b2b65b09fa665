"""Retention policies: what is visible, what parses, and how many pages are enough."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_builder.presets import preset
from triton_models.runtime.kv.pages import BlockManager, PageTable
from triton_models.runtime.kv.retention import (
    Full,
    Retention,
    Window,
    WindowLanguage,
    av_tokens,
    history_tokens,
    language_tokens,
    pages_needed,
    parse,
    units_that_fit,
)

pytestmark = pytest.mark.unit
TINY = preset("tiny")

policies = st.one_of(
    st.just(Full()),
    st.builds(Window, st.integers(0, 4), st.integers(1, 6)),
    st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(0, 6)).map(
        lambda s: WindowLanguage(s[0], s[1], s[1] + s[2])
    ),
)


def test_window_keeps_sink_and_recent_units() -> None:
    policy = Window(sink=2, recent=3)
    assert [unit for unit in range(12) if policy.visible("av", unit, 9)] == [0, 1, 7, 8, 9]
    assert policy.visible("prompt", -1, 9)


def test_window_language_keeps_words_longer() -> None:
    policy = WindowLanguage(sink=1, recent=2, language_recent=4)
    assert [unit for unit in range(12) if policy.visible("av", unit, 9)] == [0, 8, 9]
    assert [unit for unit in range(12) if policy.visible("language", unit, 9)] == [0, 6, 7, 8, 9]


def test_full_sees_the_past_and_never_the_future() -> None:
    assert [unit for unit in range(6) if Full().visible("language", unit, 3)] == [0, 1, 2, 3]


@given(policies)
def test_json_round_trip(policy: Retention) -> None:
    assert parse(policy.to_json()) == policy


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ful", 'retention: expected "full"'),
        (None, "got None"),
        ({"window": {"sink": 1, "recent": 2}, "full": {}}, 'retention: expected "full"'),
        ({"window": 3}, "retention.window: expected the fields sink, recent, got 3"),
        ({"window": {"sink": 1}}, r"retention.window: expected the fields sink, recent, got \['sink'\]"),
        ({"window": {"sink": 1, "recent": 0}}, "retention.window.recent: expected an integer >= 1, got 0"),
        ({"window": {"sink": True, "recent": 1}}, "retention.window.sink: expected an integer >= 0, got True"),
        ({"window": {"sink": 1.5, "recent": 1}}, "retention.window.sink: expected an integer >= 0, got 1.5"),
        (
            {"window_language": {"sink": 0, "recent": 5, "language_recent": 4}},
            "retention.window_language.language_recent: expected an integer >= 5, got 4",
        ),
    ],
)
def test_errors_name_field_value_and_expectation(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(value)


@given(policies, st.integers(0, 40), st.integers(1, 24), st.integers(0, 40))
def test_pages_needed_is_enough_and_tight_for_full(policy: Retention, prompt: int, page: int, units: int) -> None:
    """Peak pages of a real page table that uses every text and slot position never exceed the bound."""
    blocks = BlockManager(5_000, page)
    table = PageTable(blocks, "s", policy)
    table.append("prompt", -1, prompt)
    peak = blocks.used
    most_tokens = prompt
    for unit in range(units):
        table.evict(unit)
        table.append("av", unit, av_tokens(TINY))
        table.append("language", unit, language_tokens(TINY))
        peak = max(peak, blocks.used)
        most_tokens = max(most_tokens, table.tokens)
    kept = history_tokens(policy, TINY, prompt)
    assert kept is None if isinstance(policy, Full) else kept is not None and most_tokens <= kept
    bound = pages_needed(policy, TINY, prompt, page, units)
    forever = pages_needed(policy, TINY, prompt, page, None)
    assert bound is not None
    assert peak <= bound
    assert bound <= peak + 3  # a ragged page per stream
    if isinstance(policy, Full):
        assert peak == bound
        assert forever is None
    else:
        assert forever is not None
        assert bound <= forever


@given(policies, st.integers(0, 30), st.integers(1, 24), st.integers(0, 60))
def test_units_that_fit_is_the_last_count_within_the_pages(
    policy: Retention, prompt: int, page: int, pages: int
) -> None:
    units = units_that_fit(policy, TINY, prompt, page, pages)
    if units is None:
        forever = pages_needed(policy, TINY, prompt, page, None)
        assert forever is not None
        assert forever <= pages
    else:
        here, after = (pages_needed(policy, TINY, prompt, page, n) for n in (units, units + 1))
        assert here is not None
        assert after is not None
        assert here <= pages or units == 0
        assert after > pages


def test_the_kinds_cover_a_whole_unit() -> None:
    assert av_tokens(TINY) + language_tokens(TINY) == TINY.unit_positions
