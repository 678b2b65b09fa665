"""The user of a conversation from files: sound, pictures and text, cut into units."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import grey, tone, write_audio, write_film, write_video
from PIL import Image

from client.media.container import has
from client.media.source import TypedText, read_source
from client.stream.errors import MediaError
from client.stream.units import UnitShape

pytestmark = pytest.mark.unit

SHAPE = UnitShape(samples=2560, height=64, width=64)


def test_sound_and_still_are_cut_into_units(tmp_path):
    sound = tone(16_000, 0.5)
    audio = write_audio(tmp_path / "a.wav", sound, 16_000, "pcm_f32le", "fltp", "mono")
    Image.fromarray(grey(50)).save(tmp_path / "face.jpg")
    source = read_source(
        SHAPE, audio=audio, video=tmp_path / "face.jpg", typed=[TypedText(0.33, "a"), TypedText(0.4, "b")], tail=0.2
    )
    units = list(source.units())
    assert source.count == len(units) == 5  # 0.7 s
    assert [u.index for u in units] == list(range(5))
    assert [u.end for u in units] == [False] * 4 + [True]
    assert [u.text for u in units] == ["", "", "a b", "", ""]
    for unit in units:
        unit.check(SHAPE)
    joined = np.concatenate([u.pcm for u in units])
    np.testing.assert_array_equal(joined[:8_000], sound[0])
    assert not joined[8_000:].any()
    assert source.files == {"audio": "a.wav", "video": "face.jpg"}


def test_a_video_brings_its_own_sound(tmp_path):
    path = tmp_path / "talk.mkv"
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=25)
        video.height, video.width, video.pix_fmt = 64, 64, "yuv420p"
        sound = file.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for _ in range(10):
            file.mux(video.encode(av.VideoFrame.from_ndarray(grey(100, 64, 64), format="rgb24")))
        frame = av.AudioFrame.from_ndarray((tone(16_000, 0.4) * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        file.mux(sound.encode(frame))
        file.mux([*video.encode(None), *sound.encode(None)])
    assert has(path, "audio")
    source = read_source(SHAPE, video=path, tail=0)
    assert source.count == 3
    assert np.abs(source.pcm).max() > 0.4


def test_a_silent_video_sets_the_length_and_text_alone_is_enough(tmp_path):
    path = write_video(tmp_path / "v.mp4", [grey(9, 64, 64)] * 25)
    source = read_source(SHAPE, video=path, tail=0)
    assert source.count == 7
    assert not source.pcm.any()
    source = read_source(SHAPE, typed=[TypedText(0, "hello")], tail=1.6)
    assert source.count == 10
    assert all((u.frames == 128).all() for u in source.units())


def test_seconds_cut_everything_off(tmp_path):
    audio = write_audio(tmp_path / "a.wav", tone(16_000, 3), 16_000, "pcm_f32le", "fltp", "mono")
    assert read_source(SHAPE, audio=audio, seconds=0.8).count == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to say"),
        ({"typed": [TypedText(0, "x")], "tail": -1}, "tail and seconds"),
        ({"typed": [TypedText(0, "x")], "seconds": 0}, "tail and seconds"),
        ({"typed": [TypedText(-1, "x")]}, "expected a time >= 0 s"),
    ],
)
def test_a_user_that_makes_no_sense(arguments, message):
    with pytest.raises(MediaError, match=message):
        read_source(SHAPE, **arguments)


def test_the_demo_user_is_a_voice_and_a_face():
    media = Path(__file__).parents[3] / "client" / "demo_media"
    source = read_source(SHAPE, audio=media / "user_speech.flac", video=media / "user_face.mp4", loop=True)
    assert 100 <= source.count <= 250
    units = list(islice(source.units(), 12))
    assert np.std(units[11].frames) > 20
    assert np.abs(units[11].frames.astype(int) - units[0].frames).max() > 20  # it moves
    assert (media / "SOURCES.md").read_text().count("CC BY 4.0") >= 1


def test_a_cut_film_is_played_as_far_as_it_goes(tmp_path):
    path = write_video(tmp_path / "v.mkv", [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
                                            for i in range(50)])  # fmt: skip
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    source = read_source(SHAPE, video=path, tail=0)
    assert 1.0 < source.count * 0.16 < 2.0
    assert len(list(source.units())) == source.count


def test_an_empty_sound_track_is_no_hindrance(tmp_path):
    film = write_film(tmp_path / "f.mkv", [], [(i / 25, 100) for i in range(20)])
    source = read_source(SHAPE, video=film, tail=0)
    assert source.count == 5
    assert not source.pcm.any()
    assert [note.endswith("silence in its place") for note in source.notes] == [True]
