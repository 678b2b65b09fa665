"""People's recordings, warped words, and the agent's own voice in the microphone."""

from __future__ import annotations

import shutil
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_builder.training.world.echo import Echo
from engine_builder.training.world.speech import timbres, warps
from engine_builder.training.world.speech.agent_voice import UNIT
from engine_builder.training.world.speech.cast import NOBODY, Cast, Speaker
from engine_builder.training.world.speech.crowd import RecordingsMissing, crowd, held_out
from engine_builder.training.world.speech.people import CROWD, People
from engine_builder.training.world.speech.voices import (
    SAMPLE_RATE,
    Pcm,
    VoiceBank,
    other_voices,
    render,
    resample,
    user_voices,
)
from engine_builder.training.world.words import DIGITS

pytestmark = pytest.mark.unit


def tone(frequency: float, seconds: float, rate: int = SAMPLE_RATE) -> Pcm:
    return (0.5 * np.sin(2 * np.pi * frequency / rate * np.arange(int(seconds * rate)))).astype(np.float32)


def peak(pcm: Pcm) -> float:
    """The loudest frequency in Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(pcm, 1 << 16))) * SAMPLE_RATE / (1 << 16))


def centre(pcm: Pcm) -> float:
    """Centroid of the power spectrum in Hz."""
    power = np.abs(np.fft.rfft(pcm)) ** 2
    return float((power * np.fft.rfftfreq(pcm.size, 1 / SAMPLE_RATE)).sum() / power.sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people who say every digit twice, as tones."""
    root = tmp_path_factory.mktemp("speech")
    (root / "recordings").mkdir()
    for who, base in (("ada", 300), ("bob", 900)):
        for digit in range(10):
            for take in range(2):
                pcm = np.concatenate([np.zeros(800), tone(base + 40 * digit, 0.3 + 0.05 * take, 8000), np.zeros(800)])
                write(root / "recordings" / f"{digit}_{who}_{take}.wav", pcm, 8000)
    return root


def write(path: Path, pcm: NDArray[np.floating], rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.round(pcm * 32767).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve strangers who say one digit each, in a noisy second, in both layouts; and what is to be left out."""
    root = tmp_path_factory.mktemp("crowd")
    rng = np.random.default_rng(0)
    (root / "_unknown_").mkdir()
    for digit, word in enumerate(DIGITS["en"]):
        (root / word).mkdir()
        for who in range(12):
            pcm = (0.01 * rng.standard_normal(SAMPLE_RATE)).astype(np.float32)
            pcm[4000:9000] += 0.8 * tone(300 + 40 * digit, 5000 / SAMPLE_RATE)
            place = (
                root / word / f"{who:08x}_nohash_0.wav"
                if who % 2
                else root / "_unknown_" / f"{word}_{who:08x}_nohash_0.wav"
            )
            write(place, pcm, SAMPLE_RATE)
        write(root / word / "0000aaaa_nohash_1.wav", tone(300, 1.0), SAMPLE_RATE)  # no beginning, no end
    write(root / "_unknown_" / "tree_00000001_nohash_0.wav", tone(300, 0.5), SAMPLE_RATE)
    return root


def test_a_crowd_is_split_by_speaker_and_trimmed_in_noise(many: Path) -> None:
    judges = sum(held_out(f"{who:08x}") for who in range(12))
    assert 0 < judges < 12
    for side, speakers in ((True, judges), (False, 12 - judges)):
        clips = crowd(many, judges=side)
        assert [len(said) for said in clips] == [speakers] * 10
        for digit, said in enumerate(clips):
            assert all(clip.size == pytest.approx(5000, abs=900) for clip in said)
            assert peak(said[0]) == pytest.approx(300 + 40 * digit, abs=5)


def test_most_people_of_training_are_strangers(folder: Path, many: Path, tmp_path: Path) -> None:
    people = People.load(folder).and_crowd(many)
    assert people.speakers == ("ada", "bob", CROWD)
    cast = Cast(
        VoiceBank(user_voices("train", 4), [], np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int16)), people, True
    )
    rng = np.random.default_rng(1)
    drawn = [cast.speaker(rng).person for _ in range(2000)]
    assert drawn.count(2) / 2000 == pytest.approx(0.39, abs=0.04)
    assert drawn.count(0) / 2000 == pytest.approx(0.105, abs=0.04)
    clip = cast.word(rng, Speaker(0, 2), "en", "three")
    assert np.isfinite(clip).all()
    nobody_else = People({}).and_crowd(many)  # `--speech none --crowd DIR`
    drawn = [Cast(cast.bank, nobody_else, True).speaker(rng).person for _ in range(200)]
    assert {*drawn} == {NOBODY, 0}
    alone = Cast(cast.bank, People.strangers(many))
    assert alone.speaker(rng).person == 0
    with pytest.raises(RecordingsMissing, match="CROWD=DIR"):
        People.strangers(tmp_path)


def test_people_are_read_resampled_and_trimmed(folder: Path) -> None:
    people = People.load(folder)
    assert people.speakers == ("ada", "bob")
    assert people.takes(1, 9) == 2
    clip = people.clip(0, 7, 1)
    assert clip.size == pytest.approx(0.35 * SAMPLE_RATE, rel=0.05)
    assert peak(clip) == pytest.approx(580, abs=5)
    assert People.load(folder, without=("ada",)).speakers == People.load(folder, only=("bob",)).speakers == ("bob",)


def test_missing_people_and_odd_names_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordingsMissing, match="SPEECH=DIR"):
        People.load(tmp_path)
    with pytest.raises(RecordingsMissing):
        People.load(folder, only=("eve",))
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "seven.wav").touch()
    with pytest.raises(ValueError, match="DIGIT_SPEAKER_INDEX"):
        People.load(tmp_path)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_every_rate_becomes_16_khz(rate: int) -> None:
    out = resample(tone(440, 0.5, rate), rate)
    assert out.size == pytest.approx(8000, abs=50)
    assert peak(out) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(("rate", "tempo"), [(1.2, 1.0), (1.0, 1.25)])
def test_warps_change_what_they_say(rate: float, tempo: float) -> None:
    """The ends of the ranges: pitch moves with the rate alone, length with the tempo alone."""
    clip = tone(400, 0.5)
    rng = np.random.default_rng(0)
    sizes, pitches = [], []
    for _ in range(24):
        out = warps.warp(clip, rng, warps.Spread(rate=rate, tract=1.0, tempo=tempo, channel=False))
        sizes.append(out.size / clip.size)
        pitches.append(peak(out) / 400)
    low, high = 1 / rate - 0.02, rate + 0.02
    assert low <= min(pitches) <= max(pitches) <= high
    assert 1 / tempo - 0.1 <= min(sizes)
    assert max(sizes) <= tempo + 0.1
    assert (max(pitches) > 1.1) == (rate > 1)
    assert (max(sizes) > 1.12) == (tempo > 1)


def test_formants_move_and_pitch_stays() -> None:
    """A pulse train through one resonance: the resonance moves, the harmonics stay where they were."""
    train = np.zeros(8000, dtype=np.float32)
    train[::100] = 1.0  # 160 Hz
    ring = np.exp(-np.arange(200) / 40) * np.sin(2 * np.pi * 1200 / SAMPLE_RATE * np.arange(200))
    voice = np.convolve(train, ring)[:8000].astype(np.float32)
    moved = warps._formants(voice, 1.2)
    assert 1.08 < centre(moved) / centre(voice) < 1.3
    for pcm in (voice, moved):
        assert abs(peak(pcm) / 160 - round(peak(pcm) / 160)) < 0.05


def test_warped_words_are_finite_and_differ() -> None:
    clip = tone(300, 0.4)
    out = [warps.warp(clip, np.random.default_rng(seed), warps.OF_PEOPLE) for seed in range(40)]
    assert all(np.isfinite(pcm).all() and 0.49 < np.abs(pcm).max() < 0.51 for pcm in out)
    assert len({pcm.size for pcm in out}) > 20
    again = warps.warp(clip, np.random.default_rng(3), warps.OF_PEOPLE)
    np.testing.assert_array_equal(again, out[3])


def test_an_echo_comes_late_and_quiet() -> None:
    agent = np.zeros((12, UNIT), dtype=np.float32)
    agent[2] = tone(500, 0.16)
    echo = Echo(1.0, level=(-12.0, -12.0), delay=(0.1, 0.1), residue=0.0)
    heard = echo.of(agent, np.random.default_rng(0))
    begin = 3 * UNIT + 1600
    assert np.abs(heard[:begin]).max() < 1e-6, "unit 2 is heard from unit 3 on, and 100 ms later by the microphone"
    loud = float(np.sqrt((heard[begin : begin + UNIT] ** 2).mean()))
    assert 20 * np.log10(loud / float(np.sqrt((agent[2] ** 2).mean()))) == pytest.approx(-12, abs=3)
    assert not Echo(0.0).of(agent, np.random.default_rng(0)).any()


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_a_person_says_english_digits_and_a_voice_the_rest(folder: Path, tmp_path: Path) -> None:
    bank = VoiceBank.load(user_voices("held_out", 2), tmp_path)
    cast = Cast(bank, People.load(folder))
    rng = np.random.default_rng(1)
    speaker = cast.speaker(rng)
    assert speaker.person != NOBODY
    bob = Speaker(0, 1)
    assert peak(cast.word(rng, bob, "en", "three")) == pytest.approx(1020, abs=5)
    np.testing.assert_array_equal(cast.word(rng, bob, "de", "drei"), bank.word(0, "de", "drei"))
    assert Cast(bank).speaker(np.random.default_rng(1)).person == NOBODY


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_drawn_timbres_are_voices_of_their_own() -> None:
    drawn = [voice for voice in other_voices() if voice.synth == "drawn"]
    assert {accent for voice in drawn for _, accent in voice.accents} >= {"en-us+made0", "de+made35"}
    ada, bob = (replace(voice, pitch=50, speed=170, accents=(("en", f"en+{voice.accents[0][1].split('+')[1]}"),))
                for voice in drawn[:2])  # fmt: skip
    first, again, other = (render("six", voice, "en") for voice in (ada, ada, bob))
    np.testing.assert_array_equal(first, again)
    assert first.size != other.size or np.abs(first - other).max() > 0.05
    assert timbres.variant(1) == timbres.variant(1) != timbres.variant(2)
    assert set((Path(timbres.home().name) / "espeak-ng-data/voices/!v").iterdir()) == {
        Path(timbres.home().name) / f"espeak-ng-data/voices/!v/made{number}" for number in range(timbres.COUNT)
    }
