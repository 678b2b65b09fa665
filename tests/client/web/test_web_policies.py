"""The gateway's policies, alone: unit clock, intake, fence, outbox, journal, level meter."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.stream.units import UNIT_SECONDS, UnitShape
from client.web.call.fence import Fence
from client.web.call.hearing import Hearing
from client.web.call.intake import GREY, MAX_TEXT_BYTES, Intake, Stamp
from client.web.call.outbox import LIMITS, MAX_BYTES, REMEMBERED, Journal, Message, Outbox, OutboxFull
from client.web.call.unit_clock import EARLY, LATE, UnitClock

pytestmark = pytest.mark.unit
SHAPE = UnitShape(samples=2560, height=32, width=48)


def _ramp(start: int, count: int) -> np.ndarray:
    return (np.arange(start, start + count) / 1e6).astype(np.float32)


# -- unit clock -------------------------------------------------------------------------------------------------


def test_units_leave_every_160_ms_when_nothing_arrives():
    clock, now, moments = UnitClock(0.0), 0.0, []
    for _ in range(100):
        now += clock.wait(now, 0.0)
        clock.left(now, complete=False, backlog=0.0)
        moments.append(now)
    np.testing.assert_allclose(np.diff(moments), UNIT_SECONDS)


@given(phase=st.floats(0, UNIT_SECONDS), drift=st.floats(-3e-4, 3e-4))
@settings(max_examples=40, deadline=None)
def test_the_clock_falls_into_step_with_a_microphone_and_then_adds_no_delay(phase, drift):
    clock, now, waits = UnitClock(0.0), 0.0, []
    chunks = [phase + (k + 1) * UNIT_SECONDS * (1 + drift) for k in range(300)]
    heard = 0
    while len(waits) < 250:
        arrived = sum(c <= now for c in chunks[: heard + 4])
        backlog = float(arrived - heard)
        wait = clock.wait(now, backlog)
        if wait > 1e-9:
            coming = [c for c in chunks[heard : heard + 4] if c > now]
            now = min(now + wait, coming[0])
            continue
        clock.left(now, complete=backlog >= 1, backlog=max(0.0, backlog - 1))
        if backlog >= 1:
            waits.append(now - chunks[heard])
            heard += 1
    assert max(waits[100:]) < 0.002


def test_a_burst_is_played_in_real_time():
    clock, now, moments = UnitClock(0.0), 0.0, []
    for left in range(50, 1, -1):
        now += max(0.0, clock.wait(now, float(left)))
        clock.left(now, complete=True, backlog=float(left - 1))
        moments.append(now)
    assert np.diff(moments).min() >= UNIT_SECONDS - EARLY
    assert moments[-1] - moments[0] >= 47 * UNIT_SECONDS


def test_after_a_stall_the_beat_goes_on_from_now_instead_of_sending_a_burst():
    clock = UnitClock(0.0)
    clock.left(5.0, complete=True, backlog=0.0)
    assert clock.slips == 1
    assert clock.due == pytest.approx(5.0 + UNIT_SECONDS)
    assert clock.wait(5.0, 0.0) == pytest.approx(UNIT_SECONDS + LATE)


# -- intake -----------------------------------------------------------------------------------------------------


def test_audio_is_cut_into_units_and_padded_at_the_end():
    intake = Intake(SHAPE, live=False, limit_seconds=2.0)
    for start in range(0, 3000, 500):
        intake.add_pcm(_ramp(start, 500), Stamp(float(start), 0.0))
    first, second = intake.take(0), intake.take(1)
    np.testing.assert_array_equal(np.concatenate([first.unit.pcm, second.unit.pcm])[:3000], _ramp(0, 3000))
    assert (first.padded, second.padded) == (0, 2120)
    assert first.backlog == pytest.approx(440 / 2560)
    assert first.stamp is not None
    assert second.stamp is not None
    assert (first.stamp.captured, second.stamp.captured) == (2000.0, 2500.0)
    assert intake.take(2).stamp is None


def test_a_live_user_loses_the_oldest_and_a_burst_is_refused():
    live = Intake(SHAPE, live=True, limit_seconds=0.32)
    live.add_pcm(_ramp(0, 6000))
    assert live.dropped == 880
    np.testing.assert_array_equal(live.take(0).unit.pcm, _ramp(880, 2560))
    burst = Intake(SHAPE, live=False, limit_seconds=0.32)
    burst.add_pcm(_ramp(0, 5000))
    with pytest.raises(ValueError, match=r"audio: expected at most 0\.32 s ahead of real time, got 0\.3"):
        burst.add_pcm(_ramp(0, 200))
    assert burst.backlog == pytest.approx(5000 / 2560)


def test_a_live_backlog_that_never_empties_is_cut():
    intake = Intake(SHAPE, live=True, limit_seconds=0.64)
    intake.add_pcm(_ramp(0, 2 * SHAPE.samples))
    for unit in range(20):
        intake.add_pcm(_ramp(0, SHAPE.samples))
        intake.take(unit)
    assert intake.backlog == 0.0
    assert intake.dropped == 2 * SHAPE.samples


def test_a_live_backlog_is_cut_in_its_pauses():
    """Under load words lost their beginnings, and the agent answered other numbers."""
    intake = Intake(SHAPE, live=True, limit_seconds=2.0)
    word, pause = np.full(SHAPE.samples, 0.2, np.float32), np.full(SHAPE.samples, 1e-4, np.float32)
    said = [word, word, word, word, word, word, pause, pause, word, pause, pause, pause]
    intake.add_pcm(word)
    intake.add_pcm(word)
    heard = []
    for unit, part in enumerate(said):
        intake.add_pcm(part)
        heard.append(intake.take(unit).unit.pcm)
    assert intake.dropped == 2 * SHAPE.samples
    assert sum(float(part.max()) > 0.1 for part in heard) == 9, "every unit of a word"


@pytest.mark.parametrize(("by_file", "late_units"), [(False, 0), (True, 5)])
def test_who_comes_in_real_time_is_not_late_for_good(monkeypatch, by_file, late_units):
    """Frameworks speak to `/v1/realtime` by microphones: every second that a server was slow was one for good."""
    now = 100.0
    monkeypatch.setattr("client.web.call.intake.time", SimpleNamespace(monotonic=lambda: now))
    intake = Intake(SHAPE, live=False, limit_seconds=60.0)
    word, pause = np.full(SHAPE.samples, 0.2, np.float32), np.full(SHAPE.samples, 1e-4, np.float32)
    said, words = [word, word, *[pause] * 8] * 4, 0
    for part in said if by_file else []:
        intake.add_pcm(part)
    for tick, part in enumerate(said):
        now += UNIT_SECONDS
        if not by_file:
            intake.add_pcm(part)
        if tick >= 5:  # the server stood still
            words += float(intake.take(tick - 5).unit.pcm.max()) > 0.1
    assert words == 8, "every unit of a word"
    assert intake.backlog == late_units


def test_pictures_are_spread_over_the_unit_and_the_last_one_stays():
    intake = Intake(SHAPE, live=True, limit_seconds=1.0)
    assert set(np.unique(intake.take(0).unit.frames)) == {GREY}
    pictures = np.stack([np.full((SHAPE.height, SHAPE.width, 3), v, np.uint8) for v in range(1, 7)])
    intake.add_frames(pictures)
    assert intake.take(1).unit.frames[:, 0, 0, 0].tolist() == [1, 3, 4, 6]
    assert intake.take(2).unit.frames[:, 0, 0, 0].tolist() == [6] * 4
    intake.add_frames(pictures[:2])
    assert intake.take(3).unit.frames[:, 0, 0, 0].tolist() == [1, 1, 2, 2]
    intake.clear_frames()
    assert set(np.unique(intake.take(4).unit.frames)) == {GREY}
    for _ in range(100):
        intake.add_frames(pictures)
    assert intake.take(5).unit.frames.shape == SHAPE.frames


def test_typed_text_goes_with_one_unit_and_is_bounded():
    intake = Intake(SHAPE, live=True, limit_seconds=1.0)
    intake.add_text("hello")
    intake.add_text("there \ud83d")
    assert intake.take(0).unit.text == "hello there ?"
    with pytest.raises(ValueError, match=r"text: expected at most 1024 bytes"):
        intake.add_text("x" * (MAX_TEXT_BYTES + 1))


# -- fence ------------------------------------------------------------------------------------------------------


def test_a_cut_drops_the_rest_of_the_run_and_nothing_after_it():
    fence = Fence()
    states = ["listen", "speak", "speak", "speak", "speak", "listen", "speak"]
    passed = []
    for unit, state in enumerate(states):
        epoch = fence.stamp(unit, state)
        if unit == 2:
            assert not fence.muted
            fence.cut(last_sent=3)
            assert fence.muted
        passed.append(fence.passes(epoch))
    assert passed == [True, True, False, False, False, True, True]
    assert fence.fenced == 3
    assert fence.passes(None)


def test_a_run_that_was_under_way_when_the_user_cut_is_of_the_past():
    fence = Fence()
    fence.stamp(0, "speak")
    fence.cut(last_sent=2)
    assert not fence.passes(fence.stamp(1, "speak"))
    assert fence.passes(fence.stamp(2, "listen"))
    fence.stamp(3, "listen")
    assert fence.passes(fence.stamp(4, "speak"))
    fence.stamp(5, "listen")
    fence.cut(last_sent=7)
    assert not fence.passes(fence.stamp(6, "speak"))


# -- outbox and journal -----------------------------------------------------------------------------------------


async def _drain(outbox: Outbox) -> list[Message]:
    outbox.close("ended")
    found = []
    while (message := await outbox.get()) is not None:
        found.append(message)
    return found


async def test_a_slow_reader_loses_old_pictures_then_old_sound_and_no_control():
    outbox = Outbox(Fence())
    for unit in range(40):
        outbox.put(Message("control", f"unit {unit}"))
        outbox.put(Message("audio", bytes([unit])))
        outbox.put(Message("video", bytes([unit])))
    assert not outbox.room("video")
    kept = await _drain(outbox)
    assert [m.data for m in kept if m.kind == "control"] == [f"unit {u}" for u in range(40)]
    assert [m.data[0] for m in kept if m.kind == "audio"] == list(range(40 - LIMITS["audio"], 40))
    assert [m.data[0] for m in kept if m.kind == "video"] == list(range(40 - LIMITS["video"], 40))
    assert outbox.dropped == {"audio": 28, "video": 37}


async def test_bytes_are_bounded_and_pictures_go_before_sound():
    outbox = Outbox(Fence())
    outbox.put(Message("video", bytes(MAX_BYTES // 2)))
    outbox.put(Message("audio", bytes(MAX_BYTES // 3)))
    outbox.put(Message("control", "x" * (MAX_BYTES // 3)))
    assert [m.kind for m in await _drain(outbox)] == ["audio", "control"]


def test_a_reader_that_takes_no_control_messages_is_given_up():
    outbox = Outbox(Fence())
    outbox.put(Message("audio", b"x"))
    for _ in range(LIMITS["control"]):
        outbox.put(Message("control", "x"))
    with pytest.raises(OutboxFull, match="wait for a client that does not read"):
        outbox.put(Message("control", "x"))
    assert outbox.dropped == {"audio": 1}


async def test_what_waits_when_the_user_cuts_is_not_sent():
    fence = Fence()
    outbox = Outbox(fence)
    outbox.put(Message("audio", b"late", epoch=0))
    outbox.put(Message("control", "state"))
    fence.cut(0)
    outbox.put(Message("audio", b"new", epoch=1))
    assert [m.data for m in await _drain(outbox)] == ["state", b"new"]
    assert fence.fenced == 1


async def test_get_waits_for_what_comes():
    outbox = Outbox(Fence())
    waiting = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    outbox.put(Message("control", "a"))
    message = await waiting
    assert message is not None
    assert message.data == "a"


@given(st.lists(st.integers(0, 200_000), max_size=700), st.integers(-5, 800))
@settings(max_examples=30, deadline=None)
def test_the_journal_replays_what_it_has_and_counts_what_is_gone(sizes, seq):
    journal = Journal()
    for number, size in enumerate(sizes, 1):
        journal.add(Message("audio", bytes(size), None, number))
    kept, missed = journal.after(seq)
    numbers = [m.seq for m in kept]
    assert numbers == list(range(len(sizes) - len(numbers) + 1, len(sizes) + 1))
    assert len(numbers) <= REMEMBERED
    assert sum(len(m.data) for m in kept) <= MAX_BYTES
    if 0 <= seq <= len(sizes):
        assert missed + len(numbers) == len(sizes) - seq


# -- level meter ------------------------------------------------------------------------------------------------


def test_a_voice_is_heard_above_the_noise_of_the_room_and_the_room_is_not():
    hearing, rng = Hearing(), np.random.default_rng(0)
    noise = [rng.normal(0, 0.01, 2560).astype(np.float32) for _ in range(80)]
    heard = [hearing.feed(pcm) for pcm in noise]
    assert not any(heard[40:])
    voice = (noise[0] + 0.2 * np.sin(np.arange(2560) / 9)).astype(np.float32)
    assert hearing.feed(voice)
    assert [hearing.feed(noise[i]) or hearing.quiet_units for i in range(3)] == [1, 2, 3]
    assert not Hearing().feed(np.zeros(2560, np.float32))
