"""Files that people really have, generated here with PyAV, through the media reader."""

from __future__ import annotations

import struct
import wave
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from client.media.container import has
from client.media.hdr import toned
from client.media.pictures import VideoFile
from client.media.sound import read_audio
from client.media.source import TypedText, read_source
from client.stream.errors import MediaError
from client.stream.units import UnitShape

pytestmark = pytest.mark.unit

SHAPE = UnitShape(samples=2560, height=64, width=64)
HERTZ = 440.0


def tone(rate: int, seconds: float, channels: int = 1, amplitude: float = 0.5) -> np.ndarray:
    """float32 [channels, n]"""
    wave = amplitude * np.sin(2 * np.pi * HERTZ * np.arange(round(rate * seconds)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def write_audio(path: Path, pcm: np.ndarray, rate: int, codec: str, fmt: str, layout: str) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm), format=fmt, layout=layout)
        frame.sample_rate = rate
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return path


def write_video(
    path: Path,
    pictures: list[np.ndarray],
    fps: Fraction | int = 25,
    codec: str = "mpeg4",
    times: list[Fraction] | None = None,
) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"qscale": "2", "flags": "+qscale"} if codec == "mpeg4" else {}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[index] * 1000), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def grey(level: int, height: int = 96, width: int = 128) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def levels(pictures) -> list[int]:
    return [int(np.median(p)) for p in pictures]


# -- sound ---------------------------------------------------------------------------------------------------------
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
        (lambda p: _text(p), "not a media file"),
        (lambda p: _text(p, b""), "not a media file"),
        (lambda p: _empty_wav(p), "the audio stream is empty"),
        (lambda p: write_video(p / "v.mp4", [grey(9)] * 3), "expected an audio stream, found video"),
    ],
)
def test_unusable_sound_is_named(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(MediaError, match=message) as caught:
        read_audio(path, 16_000)
    assert str(path) in str(caught.value)


def _text(folder: Path, data: bytes = b"this is not a sound\n" * 50) -> Path:
    path = folder / "a.wav"
    path.write_bytes(data)
    return path


def _empty_wav(folder: Path) -> Path:
    path = folder / "e.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
    return path


# -- pictures ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fps", [Fraction(10), Fraction(25, 2), Fraction(25), Fraction(30000, 1001), Fraction(60)])
def test_any_frame_rate_becomes_25_fps_and_shows_the_newest_frame(tmp_path, fps):
    count = int(2 * fps)
    path = write_video(tmp_path / "v.mp4", [grey(i * 2 % 250, 64, 64) for i in range(count)], fps)
    video = VideoFile(path, 64, 64)
    assert video.seconds == pytest.approx(count / fps, abs=0.05)
    got = levels(islice(video.frames(), 40))
    due = [min(int(Fraction(i, 25) * fps), count - 1) for i in range(40)]
    np.testing.assert_allclose(got, [i * 2 % 250 for i in due], atol=4)


def test_variable_frame_rate_follows_the_time_stamps(tmp_path):
    times = [Fraction(0), Fraction(1, 10), Fraction(1, 2), Fraction(11, 20)]
    path = write_video(tmp_path / "v.mkv", [grey(n, 64, 64) for n in (10, 80, 150, 220)], 25, times=times)
    got = levels(islice(VideoFile(path, 64, 64).frames(), 18))
    np.testing.assert_allclose(got, [10] * 3 + [80] * 10 + [150] + [220] * 4, atol=5)


def test_a_wide_picture_is_cropped_around_its_centre_and_not_squeezed(tmp_path):
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = (200, 100, 50)  # the centre square
    Image.fromarray(picture).save(tmp_path / "a.png")
    video = VideoFile(tmp_path / "a.png", 64, 64)
    assert video.still
    shown = next(video.frames())
    assert shown.shape == (64, 64, 3)
    np.testing.assert_allclose(shown[4:-4, 4:-4].reshape(-1, 3), np.tile([200, 100, 50], (56 * 56, 1)), atol=6)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (192, 336), (368, 640), (64, 32)])
def test_every_size_is_filled(tmp_path, height, width):
    Image.fromarray(grey(77, 41, 59)).save(tmp_path / "a.png")
    shown = next(VideoFile(tmp_path / "a.png", height, width).frames())
    assert shown.shape == (height, width, 3)
    assert abs(int(shown.min()) - 77) <= 2
    assert abs(int(shown.max()) - 77) <= 2


def test_non_square_pixels_are_stretched_before_the_crop(tmp_path):
    path = tmp_path / "v.mkv"
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[24:72] = 200  # at a pixel aspect of 2:1 the shown picture is 192 x 96, its centre 96 x 96
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    shown = next(VideoFile(path, 64, 64).frames())
    bright = (shown[:, 32, 0] > 100).sum()
    assert abs(int(bright) - 32) <= 2


def test_after_its_end_a_video_holds_or_starts_again(tmp_path):
    path = write_video(tmp_path / "v.mp4", [grey(n, 64, 64) for n in (20, 90, 160, 230)])
    np.testing.assert_allclose(
        levels(islice(VideoFile(path, 64, 64).frames(), 7)), [20, 90, 160, 230, 230, 230, 230], atol=4
    )
    np.testing.assert_allclose(
        levels(islice(VideoFile(path, 64, 64, loop=True).frames(), 7)), [20, 90, 160, 230, 20, 90, 160], atol=4
    )


def test_animated_gif_and_transparent_png(tmp_path):
    frames = [Image.fromarray(grey(n, 64, 64)) for n in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=80, loop=0)
    assert levels(islice(VideoFile(tmp_path / "a.gif", 64, 64).frames(), 4)) == [0, 0, 255, 255]
    Image.fromarray(np.full((20, 20, 4), 255, np.uint8)).save(tmp_path / "b.png")
    assert next(VideoFile(tmp_path / "b.png", 64, 64).frames()).min() > 250


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nothing.mp4", "no such file"),
        (lambda p: _text(p), "not a media file"),
        (
            lambda p: write_audio(p / "a.wav", tone(8000, 0.1), 8000, "pcm_s16le", "fltp", "mono"),
            "expected a video or an image, found audio",
        ),
    ],
)
def test_unusable_pictures_are_named(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(MediaError, match=message) as caught:
        VideoFile(path, 64, 64)
    assert str(path) in str(caught.value)


# -- the whole user ------------------------------------------------------------------------------------------------
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


# -- files as people have them -------------------------------------------------------------------------------------
def write_film(path: Path, sound: list[tuple[float, np.ndarray]], pictures: list[tuple[float, int]]) -> Path:
    """sound: (second, float32 [n] at 16 kHz), pieces with the time stamps they get.  pictures: (second, grey level)."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=25)
        video.height, video.width, video.pix_fmt = 64, 64, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio = file.add_stream("pcm_s16le", rate=16_000, layout="mono")
        packets = []
        for at, level in pictures:
            frame = av.VideoFrame.from_ndarray(grey(level, 64, 64), format="rgb24")
            frame.pts, frame.time_base = round(at * 1000), Fraction(1, 1000)
            packets += [(at, packet) for packet in video.encode(frame)]
        for at, pcm in sound:
            frame = av.AudioFrame.from_ndarray((pcm[None] * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, round(at * 16_000), Fraction(1, 16_000)
            packets += [(at, packet) for packet in audio.encode(frame)]
        for _, packet in sorted(packets, key=lambda pair: pair[0]):
            file.mux(packet)
        file.mux([*video.encode(None), *audio.encode(None)])
    return path


LOUD = np.full(1600, 0.5, np.float32)  # 0.1 s


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


def test_a_picture_that_starts_later_than_the_sound_is_held_from_the_start_and_moves_in_time(tmp_path):
    film = write_film(tmp_path / "f.mkv", [(0.0, np.tile(LOUD, 10))], [(0.4, 50), (0.6, 200)])
    np.testing.assert_allclose(levels(islice(VideoFile(film, 64, 64).frames(), 17)), [50] * 15 + [200] * 2, atol=4)


def test_pictures_go_on_where_two_recordings_were_joined(tmp_path):
    times = [Fraction(i, 25) for i in range(5)] + [30 + Fraction(i, 25) for i in range(5)]
    path = write_video(tmp_path / "v.mkv", [grey(20 * i, 64, 64) for i in range(10)], times=times)
    video = VideoFile(path, 64, 64)
    assert video.seconds == pytest.approx(0.4, abs=0.05)
    np.testing.assert_allclose(levels(islice(video.frames(), 10)), [20 * i for i in range(10)], atol=5)
    two = tmp_path / "two.ts"  # time starts again
    one = write_video(tmp_path / "one.ts", [grey(20 * i, 64, 64) for i in range(25)], codec="mpeg2video")
    two.write_bytes(one.read_bytes() * 2)
    assert VideoFile(two, 64, 64).seconds == pytest.approx(2.0, abs=0.2)


def test_the_length_is_what_is_there_and_not_what_the_header_says(tmp_path):
    path = write_video(tmp_path / "v.mkv", [grey(9, 64, 64)] * 50)
    data = bytearray(path.read_bytes())
    at = data.find(b"\x44\x89\x88")  # Duration, a float of eight bytes
    assert at > 0
    data[at + 3 : at + 11] = np.array([160.0], ">f8").tobytes()
    path.write_bytes(data)
    assert VideoFile(path, 64, 64).seconds == pytest.approx(2.0, abs=0.05)


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


def test_a_cut_film_is_played_as_far_as_it_goes(tmp_path):
    path = write_video(tmp_path / "v.mkv", [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
                                            for i in range(50)])  # fmt: skip
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    source = read_source(SHAPE, video=path, tail=0)
    assert 1.0 < source.count * 0.16 < 2.0
    assert len(list(source.units())) == source.count


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_shown_as_a_viewer_shows_it(tmp_path, orientation):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :32] = 255  # upper left ..
    picture[32:, :32] = 128  # .. lower left
    image, exif = Image.fromarray(picture), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    shown = next(VideoFile(tmp_path / "a.png", 64, 64).frames())
    assert int(np.abs(shown[4:-4, 4:-4].astype(int) - expected[4:-4, 4:-4]).max(axis=2).mean()) < 12


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), lambda p: p),
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),  # a front camera
        ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
        ((0, -1, 1, 0), np.rot90),
        ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    ],
)
def test_a_film_is_turned_and_mirrored_as_its_camera_was_held(tmp_path, matrix, turn):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :32], picture[32:, :32] = 255, 128
    path = write_video(tmp_path / "v.mp4", [picture] * 3)
    data = path.read_bytes()
    plain = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    at = data.rfind(plain)  # that of the track; the first is the film's
    a, b, c, d = (65536 * n for n in matrix)
    path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    shown = next(VideoFile(path, 64, 64).frames())
    assert np.abs(shown.astype(int) - turn(picture)).mean() < 12


def test_moving_webp_moves_and_a_strip_takes_no_gigabytes(tmp_path):
    frames = [Image.fromarray(grey(n, 64, 64)) for n in (0, 255)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=80, lossless=True)
    video = VideoFile(tmp_path / "a.webp", 64, 64)
    assert (video.seconds, levels(islice(video.frames(), 4))) == (0.16, [0, 0, 255, 255])
    Image.new("RGB", (65_000, 1), (9, 9, 9)).save(tmp_path / "strip.png")
    assert next(VideoFile(tmp_path / "strip.png", 368, 640).frames()).shape == (368, 640, 3)


def test_a_cover_is_no_film_and_an_empty_sound_track_no_hindrance(tmp_path):
    film = write_film(tmp_path / "f.mkv", [], [(i / 25, 100) for i in range(20)])
    source = read_source(SHAPE, video=film, tail=0)
    assert source.count == 5
    assert not source.pcm.any()
    assert [note.endswith("silence in its place") for note in source.notes] == [True]


def test_names_with_a_colon_are_files(tmp_path):
    path = write_audio(tmp_path / "12:30.wav", tone(16_000, 0.1), 16_000, "pcm_f32le", "fltp", "mono")
    assert read_audio(path, 16_000).size == 1600


@pytest.mark.parametrize(
    ("transfer", "code", "expected"),
    [
        # white paper, and a red and a blue card in its light: BT.2020 codes, and what an ordinary screen shows
        (16, (38055, 38055, 38055), (244, 244, 244)),
        (16, (33000, 21400, 11000), (223, 38, 0)),
        (16, (16700, 11700, 36000), (0, 0, 233)),
        (18, (49152, 49152, 49152), (244, 244, 244)),
    ],
)
def test_hdr_films_have_the_colours_of_the_things_in_them(tmp_path, transfer, code, expected):
    shown = toned(np.full((2, 2, 3), code, np.uint16), transfer)
    np.testing.assert_allclose(shown[0, 0], expected, atol=2)
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx265", rate=25, options={"x265-params": "log-level=none"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.colorspace = transfer, 9
        stream.codec_context.color_primaries = 9
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), code, np.uint16), format="rgb48le")
        frame = frame.reformat(format="yuv420p10le", dst_colorspace=9)
        frame.color_trc, frame.color_primaries, frame.colorspace = transfer, 9, 9
        for _ in range(3):
            frame.pts = None
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    np.testing.assert_allclose(next(VideoFile(path, 64, 64).frames())[32, 32], expected, atol=20)
