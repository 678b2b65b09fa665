"""Any sound file becomes the model's: rates, channels, holes, damage."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from media_files import HERTZ, LOUD, grey, tone, write_audio, write_film, write_text, write_video

from client.media.sound import read_audio
from client.stream.errors import MediaError
from client.stream.units import UnitShape

pytestmark = pytest.mark.unit

SHAPE = UnitShape(samples=2560, height=64, width=64)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "codec", "fmt", "layout"),
    [
        ("cd.wav", 44_100, 2, "pcm_s16le", "fltp", "stereo"),
        ("phone.wav", 8_000, 1, "pcm_mulaw", "fltp", "mono"),
        ("studio.flac", 96_000, 1, "flac", "fltp", "mono"),
        ("film.mka", 48_000, 6, "pcm_s16le", "fltp", "5.1"),
        ("talk.m4a", 48_000, 2, "aac", "fltp", "stereo"),
        ("same.wav", 16_000, 1, "pcm_f32le", "fltp", "mono"),
    ],
)
def test_any_rate_and_channels_become_mono_at_the_models_rate(tmp_path, name, rate, channels, codec, fmt, layout):
    path = write_audio(tmp_path / name, tone(rate, 1.0, channels), rate, codec, fmt, layout)
    pcm = read_audio(path, 16_000)
    assert pcm.dtype == np.float32
    assert abs(pcm.size - 16_000) < 16_000 * 0.1  # AAC pads
    middle = pcm[4_000:12_000].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(middle.size)))
    assert abs(spectrum.argmax() * 16_000 / middle.size - HERTZ) < 4
    assert np.abs(pcm).max() <= 1.0
    if channels <= 2:
        assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


def test_lossless_at_the_same_rate_is_untouched(tmp_path):
    given = tone(16_000, 0.5)
    path = write_audio(tmp_path / "a.wav", given, 16_000, "pcm_f32le", "fltp", "mono")
    np.testing.assert_array_equal(read_audio(path, 16_000), given[0])
    np.testing.assert_array_equal(read_audio(path, 16_000, seconds=0.25), given[0, :4_000])


def test_samples_that_are_no_numbers_or_too_loud_are_tamed(tmp_path):
    given = np.array([[0.0, np.nan, np.inf, -np.inf, 3.0, -0.5]], np.float32)
    path = write_audio(tmp_path / "a.wav", np.tile(given, (1, 400)), 16_000, "pcm_f32le", "fltp", "mono")
    np.testing.assert_array_equal(read_audio(path, 16_000)[:6], np.float32([0, 0, 1, -1, 1, -0.5]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nothing.wav", "no such file"),
        (lambda p: p, "no such file"),
        (lambda p: write_text(p), "not a media file"),
        (lambda p: write_text(p, b""), "not a media file"),
        (lambda p: _empty_wav(p), "the audio stream is empty"),
        (lambda p: write_video(p / "v.mp4", [grey(9)] * 3), "expected an audio stream, found video"),
    ],
)
def test_unusable_sound_is_named(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(MediaError, match=message) as caught:
        read_audio(path, 16_000)
    assert str(path) in str(caught.value)


def _empty_wav(folder: Path) -> Path:
    path = folder / "e.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
    return path


def loud_tenths(pcm: np.ndarray) -> list[int]:
    """In which tenths of a second something is heard."""
    return [i for i in range(-(-pcm.size // 1600)) if np.abs(pcm[i * 1600 + 400 : (i + 1) * 1600 - 400]).max() > 0.2]


@pytest.mark.parametrize(
    ("sound", "heard"),
    [
        ([(0.0, LOUD), (0.1, LOUD)], [0, 1]),
        ([(0.5, LOUD), (0.6, LOUD)], [5, 6]),  # it starts later than the picture
        ([(0.0, LOUD), (0.4, LOUD)], [0, 4]),  # lost packets, a pause that was not sent
        ([(0.0, LOUD), (40.0, LOUD)], [0, 1]),  # joined from two recordings
    ],
)
def test_sound_is_where_its_time_stamps_say(tmp_path, sound, heard):
    path = write_film(tmp_path / "f.mkv", sound, [(i / 25, 100) for i in range(20)])
    assert loud_tenths(read_audio(path, 16_000)) == heard


@pytest.mark.parametrize("damage", ["hole", "noise", "cut", "padding"])
def test_what_is_damaged_is_left_out_and_told(tmp_path, damage):
    path = write_audio(tmp_path / "a.mp3", tone(16_000, 4.0), 16_000, "libmp3lame", "fltp", "mono")
    data = bytearray(path.read_bytes())
    middle, noise = len(data) // 2, np.random.default_rng(0).bytes(2000)
    if damage == "hole":
        data[middle : middle + 2000] = bytes(2000)
    elif damage == "noise":
        data[middle : middle + 2000] = noise
    elif damage == "cut":
        del data[-300:]
    else:
        data += noise
    path.write_bytes(data)
    notes: list[str] = []
    pcm = read_audio(path, 16_000, notes=notes)
    assert 3.0 < pcm.size / 16_000 < 4.8
    assert all("cannot be decoded" in note for note in notes)


def test_the_rate_may_change_inside_a_file(tmp_path):
    parts = [
        write_audio(tmp_path / f"{rate}.mp3", tone(rate, 1.0, channels), rate, "libmp3lame", "fltp", layout)
        for rate, channels, layout in ((44_100, 2, "stereo"), (22_050, 1, "mono"))
    ]
    (tmp_path / "both.mp3").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert read_audio(tmp_path / "both.mp3", 16_000).size / 16_000 == pytest.approx(2.0, abs=0.25)


def test_channels_that_cancel_each_other_are_heard(tmp_path):
    left = tone(16_000, 0.5)
    path = write_audio(tmp_path / "a.wav", np.concatenate([left, -0.9 * left]), 16_000, "pcm_f32le", "fltp", "stereo")
    np.testing.assert_allclose(read_audio(path, 16_000), left[0], atol=1e-6)


def test_names_with_a_colon_are_files(tmp_path):
    path = write_audio(tmp_path / "12:30.wav", tone(16_000, 0.1), 16_000, "pcm_f32le", "fltp", "mono")
    assert read_audio(path, 16_000).size == 1600
