"""What is heard besides speech."""

import numpy as np
import pytest

from engine_builder.training.world.room import Room

_SECOND = 16_000


def _stretches(room: Room, count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.stack([room.music(rng, _SECOND) for _ in range(count)])


def test_sounds_are_as_loud_as_they_say() -> None:
    room, rng = Room(5), np.random.default_rng(4)
    for sound in (room.noise(rng, 20 * _SECOND), room.music(rng, 20 * _SECOND)):
        assert sound.dtype == np.float32
        assert sound.shape == (20 * _SECOND,)
        assert np.sqrt((sound**2).mean()) == pytest.approx(1.0, abs=0.3)
    assert 0.5 < abs(room.knock(rng)).max() < 5


def test_the_same_seed_is_the_same_room_and_another_shares_nothing_with_it() -> None:
    here, again, elsewhere = (_stretches(Room(seed), 8) for seed in (1, 1, 2))
    assert np.array_equal(here, again)
    assert not (here[:, None] == elsewhere).all(axis=-1).any()


def _tunes(room: Room, draws: int = 60) -> int:
    """How many tunes a room plays: a whole one has the same spectrum wherever it begins."""
    rng = np.random.default_rng(6)
    spectra = (np.abs(np.fft.rfft(room.music(rng, 24 * _SECOND)))[3000:9000:40] for _ in range(draws))
    return len({np.round(spectrum).tobytes() for spectrum in spectra})


def test_a_room_plays_as_many_tunes_as_it_is_asked_for_and_hums_the_same() -> None:
    few, many = Room(1, 2), Room(1, 9)
    assert (_tunes(few), _tunes(many)) == (2, 9)
    assert np.array_equal(*(room.noise(np.random.default_rng(6), _SECOND) for room in (few, many)))
