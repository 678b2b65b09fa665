"""The agent's voice is taken out of the microphone, and nothing else is touched. The oracle is the path itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from duplex_bench import CONFIG, DuplexBench, within

from triton_models.runtime.echo_canceller import BLOCKS, PARTS, EchoCanceller
from triton_models.runtime.messages import Float32

pytestmark = pytest.mark.unit

UNIT = 2560
UNITS = 60


def speech(seed: int, units: int = UNITS) -> Float32:
    """[units, 2560]: coloured noise in syllables, with pauses."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.standard_normal(units * UNIT), np.hanning(12) * np.cos(np.arange(12)), "same")
    loud = np.repeat(rng.random(units * 2) < 0.6, UNIT // 2)
    return (0.1 * noise * loud / noise.std()).astype(np.float32).reshape(units, UNIT)


def path(seed: int) -> Float32:
    """A loudspeaker 120 ms away, at -12 dB, in a room."""
    rng = np.random.default_rng(seed)
    out = np.zeros(4000, dtype=np.float32)
    out[1920:] = 0.02 * rng.standard_normal(2080) * np.exp(-np.arange(2080) / 400)
    out[1920] += 0.25
    return out


def back(played: Float32, impulse: Float32) -> Float32:
    return np.convolve(played.reshape(-1), impulse)[: played.size].astype(np.float32).reshape(played.shape)


def cleaned(canceller: EchoCanceller, microphone: Float32, played: Float32) -> Float32:
    return np.stack([canceller.clean(mic, sent) for mic, sent in zip(microphone, played, strict=True)])


def quieter(before: Float32, after: Float32) -> float:
    """dB."""
    return 10 * float(np.log10((before**2).sum() / (after**2).sum()))


def test_the_echo_goes_and_the_path_is_found() -> None:
    played, impulse = speech(0), path(1)
    echo = back(played, impulse)
    canceller = EchoCanceller(UNIT)
    out = cleaned(canceller, echo, played)
    assert canceller.active
    assert quieter(echo[5:15], out[5:15]) > 6
    assert quieter(echo[30:], out[30:]) > 15
    found = np.fft.irfft(canceller._path, axis=1)[:, : UNIT // BLOCKS].reshape(-1)[: impulse.size]
    assert np.corrcoef(found, impulse)[0, 1] > 0.95


def test_who_speaks_meanwhile_stays_as_they_are() -> None:
    played, user = speech(0), speech(5) * np.repeat(np.arange(UNITS) > 30, UNIT).reshape(UNITS, UNIT)
    echo = back(played, path(1))
    out = cleaned(EchoCanceller(UNIT), (echo + user).astype(np.float32), played)
    assert quieter(user[31:], out[31:] - user[31:]) > 12, "12 dB below the user what was changed"
    assert quieter(echo[31:], out[31:] - user[31:]) > 6


@pytest.mark.parametrize("seed", range(4))
def test_without_an_echo_every_sample_stays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tone = 0.2 * np.sin(np.arange(UNITS * UNIT) * 2 * np.pi * 440 / 16000).reshape(UNITS, UNIT)
    played = speech(seed)
    for user in (speech(9 + seed), rng.uniform(-1, 1, played.shape), np.zeros_like(played), tone):
        user = user.astype(np.float32)
        np.testing.assert_array_equal(cleaned(EchoCanceller(UNIT), user, played), user)


def test_after_silence_nothing_is_computed() -> None:
    canceller = EchoCanceller(UNIT)
    played = speech(0, 2 + PARTS // BLOCKS + 2)
    played[2:] = 0
    cleaned(canceller, back(played, path(1)), played)
    before = canceller._path.copy()
    canceller.clean(speech(3, 1)[0], np.zeros(UNIT, np.float32))
    np.testing.assert_array_equal(canceller._path, before)


def test_a_path_that_moves_is_followed() -> None:
    played = speech(0, 2 * UNITS)
    echo = np.concatenate([back(played, path(1))[:UNITS], back(played, path(2))[UNITS:]])
    out = cleaned(EchoCanceller(UNIT), echo, played)
    assert quieter(echo[-20:], out[-20:]) > 6


@pytest.mark.parametrize("level", [1e-6, 1.0, 40.0])
def test_it_stays_finite_and_in_range(level: float) -> None:
    rng = np.random.default_rng(0)
    played = np.clip(level * rng.standard_normal((UNITS, UNIT)), -1, 1).astype(np.float32)
    microphone = np.clip(level * rng.standard_normal((UNITS, UNIT)) + 0.9 * played, -1, 1).astype(np.float32)
    out = cleaned(EchoCanceller(UNIT), microphone, played)
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= 1.0


@pytest.mark.parametrize(("options", "taken_out"), [("{}", True), ('{"echo_canceller": false}', False)])
def test_a_session_hears_its_user_only(make: Callable[..., DuplexBench], options: str, taken_out: bool) -> None:
    bench = make()
    assert CONFIG.audio.unit_samples == UNIT
    sound = speech(0)
    bench.models.sound = sound
    sent = []
    for unit in range(UNITS):
        pcm = 0.25 * sound[unit - 1] if unit else np.zeros_like(sound[0])
        sent.append(pcm)
        reply = bench.unit(7, unit, options=options if unit == 0 else "", pcm=pcm)
        within(reply.spoke)
        bench.settled()
    heard = np.stack([job.perceive.pcm for job in bench.models.jobs("think")])
    if taken_out:
        assert quieter(np.stack(sent)[30:], heard[30:]) > 10
        assert reply.said[0].info["echo"] == "cancelled"
    else:
        np.testing.assert_array_equal(heard, np.stack(sent))
