"""`codec-check` on real files: delays are found, random weights are called so, and what came out can be looked at."""

import json
import wave
from dataclasses import replace

import av
import numpy as np
import pytest
from families import audio_config, video_config

from engine_builder.__main__ import main
from engine_builder.checkpoint import random_model, save_checkpoint
from engine_builder.config import BackboneConfig
from engine_builder.importers.codec_check import best_psnr, best_si_sdr, read_pictures, read_sound
from engine_builder.presets import preset

pytestmark = pytest.mark.unit
BACKBONE = BackboneConfig(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate_size=64)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A second of two tones at 48 kHz, and a film of 30 pictures a second in which a bar moves."""
    folder = tmp_path_factory.mktemp("media")
    t = np.arange(48_000) / 48_000
    with wave.open(str(folder / "in.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        tones = 0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * 330 * t)
        file.writeframes((tones * 32767).astype("<i2").tobytes())
    with av.open(str(folder / "in.mp4"), "w") as film:
        stream = film.add_stream("libx264", rate=30, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for i in range(30):
            picture = np.full((96, 96, 3), 60, np.uint8)
            picture[:, 2 * i : 2 * i + 30] = (200, 120, 40)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode(None))
    return folder


def test_a_delay_is_found_and_costs_nothing():
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(4000).astype(np.float32)
    late = np.concatenate((np.zeros(37, np.float32), 0.5 * sound[:-37]))
    score, delay = best_si_sdr(sound, late + 0.005 * rng.standard_normal(4000).astype(np.float32), 100)
    assert delay == 37
    assert score == pytest.approx(40, abs=1)
    pictures = rng.integers(0, 250, (9, 8, 8, 3)).astype(np.uint8)
    score, delay = best_psnr(pictures, np.roll(pictures, 2, axis=0) + np.uint8(1))
    assert (round(score, 1), delay) == (48.1, 2)


def test_files_are_read_at_the_rate_of_units(media):
    sound = read_sound(media / "in.wav", 24_000, 10)
    assert sound.size == pytest.approx(24_000, abs=100)
    assert sound.std() == pytest.approx(np.sqrt(0.045 + 0.02), rel=0.02)
    assert read_sound(media / "in.wav", 24_000, 0.5).size == 12_000
    pictures = read_pictures(media / "in.mp4", 32, 64, 10)
    assert pictures.shape == (25, 32, 64, 3)
    edges = [int(np.argmax(picture[16, :, 0] > 130)) for picture in pictures]
    assert edges == sorted(edges)
    assert edges[-1] - edges[0] == pytest.approx(29 * 2 * 64 / 96, abs=3)


def test_the_tutors_codecs_are_heard_and_seen(media, tmp_path, capsys):
    """Untrained they keep low frequencies, with which these media are made; sound comes 20 ms later."""
    save_checkpoint(random_model(preset("tiny"), 0), tmp_path / "c", note="random (seed 0)")
    arguments = ["--audio", str(media / "in.wav"), "--video", str(media / "in.mp4")]
    assert main(["codec-check", str(tmp_path / "c"), str(tmp_path / "out"), *arguments]) == 0
    said = capsys.readouterr().out
    assert "audio: mdct, weights random (seed 0); 6 units, SI-SDR" in said
    sound, pictures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sound["delay_ms"] == 20
    assert sound["score"] > 20
    assert pictures["score"] > 15
    assert all(each[name] > 0 for each in (sound, pictures) for name in ("encode_ms", "decode_ms", "decode_gflop"))
    assert read_pictures(tmp_path / "out" / "pictures.mp4", 64, 128, 10).shape[0] == 24
    assert read_sound(tmp_path / "out" / "sound_decoded.wav", 16_000, 10).size == 6 * 2560


def test_random_weights_are_called_random(media, tmp_path, capsys):
    config = replace(preset("tiny"), audio=audio_config(), video=video_config("taehv"), backbone=BACKBONE)
    model = random_model(config, 0)
    save_checkpoint(model, tmp_path / "c", note="random (seed 0); video codec from taew2_1.safetensors")
    arguments = ["--audio", str(media / "in.wav"), "--video", str(media / "in.mp4"), "--seconds", "0.5"]
    assert main(["codec-check", str(tmp_path / "c"), str(tmp_path / "out"), *arguments]) == 0
    sound, pictures = capsys.readouterr().out.splitlines()[:2]
    assert "mimi-vae, RANDOM weights" in sound
    assert "taehv, weights random (seed 0); video codec from taew2_1" in pictures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --audio, --video or both"),
        (["--audio", "nowhere.wav"], "nowhere.wav: no such file"),
        (["--video", "in.wav"], "expected a file with video in it"),
        (["--audio", "in.wav", "--seconds", "0.1"], "expected at least one unit of 160 ms"),
    ],
)
def test_what_cannot_be_checked_is_named(media, tmp_path, capsys, arguments, message, monkeypatch):
    save_checkpoint(random_model(replace(preset("tiny"), backbone=BACKBONE), 0), tmp_path / "c")
    monkeypatch.chdir(media)
    assert main(["codec-check", str(tmp_path / "c"), str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
