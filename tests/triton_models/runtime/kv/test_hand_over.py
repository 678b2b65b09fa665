"""Hand-overs over a real socket: they arrive as they were sent, and what cannot be sent is said."""

from __future__ import annotations

import os
import queue
import socket
import stat
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_models.runtime.kv import hand_over
from triton_models.runtime.kv.hand_over import HandOverReceiver, HandOverSender, socket_path
from triton_models.runtime.messages import HandOver, HistoryView

pytestmark = pytest.mark.unit

WAIT = 20  # seconds until a hung test gives up


def over(unit: int, pages: int = 3) -> HandOver:
    view = HistoryView(np.arange(pages, dtype=np.int64), np.full((pages, 2), unit, np.int64))
    return HandOver("str:a#1", 1, unit, seed=7, origin=2, history=view, sent_ns=5)


class Ends:
    """Both ends of one pool's socket."""

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self.taken: queue.Queue[HandOver] = queue.Queue()
        self.receiver = HandOverReceiver(pool, self.taken.put)
        self.sender = HandOverSender(pool)
        self.receiver.start()

    def take(self) -> HandOver:
        return self.taken.get(timeout=WAIT)

    def close(self) -> None:
        self.sender.close()
        self.receiver.stop()


@pytest.fixture
def pool() -> str:
    return f"wst-test-{os.getpid()}-{time.monotonic_ns()}"


@pytest.fixture
def ends(pool: str) -> Iterator[Ends]:
    made = Ends(pool)
    yield made
    made.close()
    assert not os.path.exists(socket_path(pool))


def test_packets_arrive_in_order_and_whole(ends: Ends) -> None:
    sent = [over(unit, pages) for unit, pages in enumerate((1, 135, 5000))]
    for packet in sent:
        assert ends.sender.send(packet)
        taken = ends.take()
        assert (taken.session, taken.unit, taken.seed, taken.origin, taken.sent_ns) == ("str:a#1", packet.unit, 7, 2, 5)
        np.testing.assert_array_equal(taken.history.page_ids, packet.history.page_ids)
        np.testing.assert_array_equal(taken.history.ranges, packet.history.ranges)


@given(
    st.text(max_size=40),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9),
)
def test_a_packet_round_trip(session: str, epoch: int, unit: int, seed: int, pages: list[int]) -> None:
    ids = np.array(pages, np.int64)
    sent = HandOver(session, epoch, unit, seed, 3, HistoryView(ids, np.stack([ids, ids[::-1]], 1)), 17)
    got = hand_over.unpack(hand_over.pack(sent))
    assert (got.session, got.epoch, got.unit, got.seed, got.origin, got.sent_ns) == (session, epoch, unit, seed, 3, 17)
    np.testing.assert_array_equal(got.history.page_ids, sent.history.page_ids)
    np.testing.assert_array_equal(got.history.ranges, sent.history.ranges)


@pytest.mark.parametrize("cut", [0, 20, 60])
def test_a_packet_that_is_cut_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="packet: expected"):
        hand_over.unpack(hand_over.pack(over(1, pages=3))[:cut])


def test_only_its_owner_can_connect(ends: Ends) -> None:
    assert stat.S_IMODE(os.stat(socket_path(ends.pool)).st_mode) == 0o600


def test_nobody_listens_yet(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over, "RETRY_SECONDS", 0.0)
    sender = HandOverSender(pool)
    assert not sender.send(over(0))
    receiver = HandOverReceiver(pool, lambda handed: None)
    receiver.start()
    assert sender.send(over(1)), "the performer has come up meanwhile"
    sender.close()
    receiver.stop()
    assert not sender.send(over(2))


def test_a_history_too_long_for_a_packet_goes_another_way(ends: Ends) -> None:
    assert not ends.sender.send(over(0, pages=100_000))
    assert ends.sender.send(over(1))
    assert ends.take().unit == 1


def test_a_receiver_that_does_not_read_is_no_reason_to_wait(pool: str) -> None:
    gate = threading.Event()
    receiver = HandOverReceiver(pool, lambda handed: gate.wait(WAIT) and None)
    receiver.start()
    sender = HandOverSender(pool)
    sent = [sender.send(over(unit, 2000)) for unit in range(200)]
    assert sent[0]
    assert not sent[-1], "the buffer is full and send has come back"
    gate.set()
    sender.close()
    receiver.stop()


def test_a_bad_packet_does_not_end_the_thread(ends: Ends) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(socket_path(ends.pool))
        socket.send_fds(stranger, [hand_over.HELLO], [bell := os.eventfd(1)])
        stranger.send(b"not a message")
        os.close(bell)
    assert ends.sender.send(over(1)), "the next connection is taken when the first has gone"
    assert ends.take().unit == 1


def test_a_thinker_that_comes_back_is_heard(ends: Ends) -> None:
    assert ends.sender.send(over(0))
    ends.take()
    ends.sender.close()
    again = HandOverSender(ends.pool)
    assert again.send(over(1))
    assert ends.take().unit == 1
    again.close()


def test_the_socket_of_a_killed_performer_is_replaced(pool: str) -> None:
    first = HandOverReceiver(pool, lambda handed: None)
    first._listener.close()  # as when its process was killed: the file is left
    second = HandOverReceiver(pool, lambda handed: None)
    second.start()
    second.stop()
    assert not os.path.exists(socket_path(pool))
