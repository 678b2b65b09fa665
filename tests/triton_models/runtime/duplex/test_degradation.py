"""The order in which a late unit is shortened."""

import pytest

from triton_models.runtime.duplex.degradation import Ladder

pytestmark = pytest.mark.unit


def test_order_counts_and_return_to_full() -> None:
    ladder = Ladder(frame_after_ns=5, silence_after_ns=50)
    assert ladder.judge(4, 4, ready_ns=105, deadline_ns=100) == []
    assert ladder.judge(2, 4, ready_ns=99, deadline_ns=100) == ["fewer_steps"]
    assert ladder.judge(1, 4, ready_ns=106, deadline_ns=100) == ["fewer_steps", "repeat_frame"]
    assert ladder.judge(1, 4, ready_ns=151, deadline_ns=100) == ["fewer_steps", "repeat_frame", "silence"]
    assert ladder.judge(4, 4, ready_ns=90, deadline_ns=100) == []
    assert ladder.counts == {"fewer_steps": 3, "repeat_frame": 2, "silence": 1}


def test_one_step_asked_has_none_to_cut() -> None:
    assert Ladder().judge(1, 1, ready_ns=1, deadline_ns=0) == ["repeat_frame"]


@pytest.mark.parametrize(("frame", "silence"), [(-1, 5), (10, 9)])
def test_the_order_cannot_be_turned_round(frame: int, silence: int) -> None:
    with pytest.raises(ValueError, match="silence_after_ns: expected >= frame_after_ns"):
        Ladder(frame, silence)
