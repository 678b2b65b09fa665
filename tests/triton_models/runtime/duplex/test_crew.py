"""Work is done once each, in order, by as many threads as are needed and allowed."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from triton_models.runtime.duplex.crew import Crew

pytestmark = pytest.mark.unit

WAIT = 20  # seconds until a hung test gives up


def test_every_piece_is_done_once() -> None:
    crew, done = Crew(4, "t"), queue.Queue[int]()
    for i in range(500):
        crew.submit(done.put, i)
    assert sorted(done.get(timeout=WAIT) for _ in range(500)) == list(range(500))
    crew.stop()


def test_one_thread_keeps_the_order() -> None:
    crew, done = Crew(1, "t"), queue.Queue[int]()
    for i in range(50):
        crew.submit(done.put, i)
    assert [done.get(timeout=WAIT) for _ in range(50)] == list(range(50))
    crew.stop()


def test_work_that_waits_for_other_work_gets_threads_up_to_the_limit() -> None:
    crew, gate = Crew(3, "t"), threading.Barrier(3)
    passed: queue.Queue[str] = queue.Queue()
    for _ in range(6):
        crew.submit(lambda: (gate.wait(WAIT), passed.put(threading.current_thread().name))[0])
    names = {passed.get(timeout=WAIT) for _ in range(6)}
    assert names == {"t-1", "t-2", "t-3"}
    crew.stop()


def test_an_idle_thread_is_used_again() -> None:
    crew, names = Crew(8, "t"), queue.Queue[str]()
    for _ in range(5):
        crew.submit(lambda: names.put(threading.current_thread().name))
        assert names.get(timeout=WAIT) == "t-1"
        end = time.monotonic() + WAIT
        while not crew._idle:
            assert time.monotonic() < end
            time.sleep(0.001)
    crew.stop()


def test_a_failure_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    crew, done = Crew(1, "t"), queue.Queue[int]()
    crew.submit(lambda: 1 // 0)
    crew.submit(done.put, 7)
    assert done.get(timeout=WAIT) == 7
    assert "ZeroDivisionError" in caplog.text
    crew.stop()


def test_stop_drops_what_waits_and_lets_threads_go() -> None:
    crew, gate, done = Crew(1, "t"), threading.Event(), []
    entered = threading.Event()
    crew.submit(lambda: (entered.set(), gate.wait(WAIT))[0])
    crew.submit(done.append, 1)
    assert entered.wait(WAIT)
    crew.stop()
    crew.submit(done.append, 2)
    gate.set()
    end = time.monotonic() + WAIT
    while any(thread.name == "t-1" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.001)
    assert done == []
