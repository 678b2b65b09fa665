"""Block manager and page tables: no page lost or shared, and exactly the visible tokens in view."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from triton_models.runtime.kv.pages import NULL_PAGE, BlockManager, OutOfPages, PageTable, Span
from triton_models.runtime.kv.retention import Full, Kind, Window, WindowLanguage

pytestmark = pytest.mark.unit


def test_null_page_is_never_handed_out_and_errors_give_the_figures() -> None:
    blocks = BlockManager(5, 8)
    assert sorted(blocks.allocate("a", 3)) == [1, 2, 3]
    with pytest.raises(OutOfPages, match="RESOURCE_EXHAUSTED: kv pages: session 'b' needs 2 more, 1 of 4 are free"):
        blocks.allocate("b", 2)
    assert (blocks.free, blocks.used, blocks.owned("b")) == (1, 3, frozenset())


def test_release_refuses_pages_of_others() -> None:
    blocks = BlockManager(8, 8)
    mine, other = blocks.allocate("a", 2), blocks.allocate("b", 1)
    for wrong in (other, [mine[0], mine[0]], [NULL_PAGE]):
        with pytest.raises(ValueError, match="expected distinct pages of session 'a'"):
            blocks.release("a", wrong)
    assert blocks.release("a", mine[:1]) == mine[:1]
    assert blocks.release("a") == mine[1:]
    assert blocks.release("a") == []
    blocks.check_integrity()


@pytest.mark.parametrize("damage", ["lost", "shared", "free twice", "null"])
def test_check_integrity_finds_damage(damage: str) -> None:
    blocks = BlockManager(6, 8)
    pages = blocks.allocate("a", 2)
    blocks.check_integrity()
    if damage == "lost":
        blocks._free.pop()
    elif damage == "shared":
        blocks._owned["b"] = {pages[0]}
    elif damage == "free twice":
        blocks._free.append(pages[0])
    else:
        blocks._free.append(NULL_PAGE)
    with pytest.raises(RuntimeError):
        blocks.check_integrity()


def test_packing_is_contiguous_and_rolling_starts_on_its_own_page() -> None:
    table = PageTable(BlockManager(20, 4), "s", Window(sink=1, recent=2))
    assert table.append("prompt", -1, 3) == [Span(1, 0, 3)]
    table.evict(0)
    assert table.append("av", 0, 3) == [Span(1, 3, 1), Span(2, 0, 2)]
    table.evict(1)
    assert table.append("av", 1, 3) == [Span(3, 0, 3)]
    assert table.append("language", 1, 2) == [Span(3, 3, 1), Span(4, 0, 1)]
    assert table.append("language", 1, 1) == [Span(4, 1, 1)]  # one slot at a time
    table.evict(2)
    table.append("av", 2, 3)
    assert table.evict(3) == [3]  # unit 1 filled page 3 and two positions of page 4
    view = table.view()
    assert view.page_ids.tolist() == [1, 2, 4, 5]
    assert view.ranges.tolist() == [[0, 4], [0, 2], [2, 4], [0, 1]]


def check_staged(table: PageTable, multiple: int) -> None:
    """What engines get is the view, with null pages up to the next multiple."""
    view, (pages, ranges) = table.view(), table.staged(multiple)
    count = len(view.page_ids)
    assert pages.shape == (1, -(-count // multiple) * multiple)
    assert ranges.shape == (*pages.shape, 2)
    assert (pages[0, :count].tolist(), ranges[0, :count].tolist()) == (view.page_ids.tolist(), view.ranges.tolist())
    assert not pages[0, count:].any()
    assert not ranges[0, count:].any()


def test_a_view_stays_what_it_was_while_the_staged_table_moves_on() -> None:
    table = PageTable(BlockManager(20, 4), "s", Window(sink=0, recent=1))
    table.evict(0)
    table.append("av", 0, 6)
    view, staged = table.view(), table.staged(4)
    table.append("language", 0, 3)
    assert table.staged(4)[1] is staged[1]  # a slot makes no new table, not even where it begins a page
    check_staged(table, 4)
    assert (view.page_ids.tolist(), view.ranges.tolist()) == ([1, 2], [[0, 4], [0, 2]])
    table.evict(1)
    table.append("av", 1, 1)
    check_staged(table, 4)
    assert (view.page_ids.tolist(), view.ranges.tolist()) == ([1, 2], [[0, 4], [0, 2]])


def test_empty_view_is_one_null_page() -> None:
    view = PageTable(BlockManager(4, 4), "s", Full()).view()
    assert view.page_ids.tolist() == [NULL_PAGE]
    assert view.ranges.tolist() == [[0, 0]]


def test_misuse_is_refused_and_changes_nothing() -> None:
    table = PageTable(BlockManager(3, 4), "s", Window(0, 1))
    for kind, unit, count in (("av", 0, 1), ("prompt", 0, 1), ("prompt", -1, -1), ("video", -1, 1)):
        with pytest.raises(ValueError, match="expected"):
            table.append(kind, unit, count)  # type: ignore[arg-type]
    table.evict(0)
    with pytest.raises(ValueError, match="unit: expected more than 0"):
        table.evict(0)
    with pytest.raises(OutOfPages):
        table.append("av", 0, 9)
    assert table.tokens == table.pages == 0
    assert table.append("av", 0, 8)
    assert len(table.close()) == 2
    assert table.close() == []


def test_hours_of_window_need_no_more_pages_than_the_first_minute() -> None:
    blocks = BlockManager(64, 16)
    table = PageTable(blocks, "s", WindowLanguage(2, 5, 20))
    peaks = []
    for unit in range(22_500):
        table.evict(unit)
        table.append("av", unit, 7)
        table.append("language", unit, 1 + unit % 4)
        peaks.append(blocks.used)
    assert max(peaks) == max(peaks[:375])
    blocks.check_integrity()


def test_full_history_keeps_no_books_but_pages() -> None:
    table = PageTable(BlockManager(2_000, 16), "s", Full())
    for unit in range(1_000):
        table.evict(unit)
        table.append("av", unit, 7)
    assert not table._pinned.runs  # who is never evicted needs no list of units, which would grow for hours
    assert table.pages == -(-7_000 // 16)


class Pool(RuleBasedStateMachine):
    """Any interleaving of open, step, cancel and eviction over a small pool, mirrored token by token."""

    PAGE = 4

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(40, self.PAGE)
        self.tables: dict[str, PageTable] = {}
        self.labels: dict[str, list[tuple[Kind, int, int]]] = {}  # every committed token, in order, evicted ones too
        self.where: dict[tuple[int, int], tuple[str, Kind, int, int]] = {}  # (page, offset) -> last token written there
        self.opened = 0

    @precondition(lambda self: len(self.tables) < 4)
    @rule(
        policy=st.sampled_from([Full(), Window(0, 1), Window(2, 3), WindowLanguage(1, 2, 4), WindowLanguage(0, 1, 1)]),
        prompt=st.integers(0, 9),
    )
    def open(self, policy: Full | Window | WindowLanguage, prompt: int) -> None:
        self.opened += 1
        owner = f"s{self.opened}"
        self.tables[owner] = PageTable(self.blocks, owner, policy)
        self.labels[owner] = []
        self.commit(owner, "prompt", -1, prompt)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), av=st.integers(0, 9), slots=st.lists(st.integers(0, 3), max_size=4), skip=st.integers(1, 2))
    def step(self, data: st.DataObject, av: int, slots: list[int], skip: int) -> None:
        owner = data.draw(st.sampled_from(sorted(self.tables)))
        table = self.tables[owner]
        self.forget(table.evict(table.unit + skip))
        self.check_views()  # already right before anything is committed
        self.commit(owner, "av", table.unit, av)
        for count in slots:
            self.commit(owner, "language", table.unit, count)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.tables)))
        held = self.blocks.owned(owner)
        freed = self.tables.pop(owner).close()
        assert set(freed) == held
        self.forget(freed)
        del self.labels[owner]

    def commit(self, owner: str, kind: Kind, unit: int, count: int) -> None:
        free, tokens = self.blocks.free, self.tables[owner].tokens
        try:
            spans = self.tables[owner].append(kind, unit, count)
        except OutOfPages:
            assert (self.blocks.free, self.tables[owner].tokens) == (free, tokens)
            return
        places = [(s.page, s.offset + i) for s in spans for i in range(s.count)]
        assert len(places) == count
        for place in places:
            assert place not in self.where, "a live token was overwritten"
            assert 0 <= place[1] < self.PAGE
            label = (kind, unit, len(self.labels[owner]))
            self.labels[owner].append(label)
            self.where[place] = (owner, *label)

    def forget(self, pages: list[int]) -> None:
        for page in pages:
            for offset in range(self.PAGE):
                self.where.pop((page, offset), None)

    def check_views(self) -> None:
        for owner, table in self.tables.items():
            view = table.view()
            check_staged(table, multiple=3)
            seen = [
                self.where[page, offset]
                for page, (start, stop) in zip(view.page_ids.tolist(), view.ranges.tolist(), strict=True)
                for offset in range(start, stop)
            ]
            wanted = {
                (owner, *label)
                for label in self.labels[owner]
                if table.retention.visible(label[0], label[1], table.unit)
            }
            assert len(seen) == len(set(seen)) == table.tokens
            assert set(seen) == wanted

    @invariant()
    def pages_are_conserved_and_views_exact(self) -> None:
        self.blocks.check_integrity()
        assert self.blocks.free + self.blocks.used == self.blocks.total
        assert self.blocks.used == sum(table.pages for table in self.tables.values())
        self.check_views()


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
