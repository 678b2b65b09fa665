"""Any picture or film becomes the model's: rates, sizes, orientation, colours, damage."""

from __future__ import annotations

import struct
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
from av.stream import Disposition
from media_files import LOUD, grey, levels, tone, write_audio, write_film, write_text, write_video
from PIL import Image, ImageOps

from client.media.hdr import toned
from client.media.pictures import VideoFile
from client.stream.errors import MediaError
from client.stream.units import UnitShape

pytestmark = pytest.mark.unit

SHAPE = UnitShape(samples=2560, height=64, width=64)


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
        (lambda p: write_text(p), "not a media file"),
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


@pytest.mark.parametrize("name", ["scan.png", "scan.tif"])
def test_grey_of_16_bits_is_grey(tmp_path, name):
    Image.fromarray(np.full((64, 64), 100 << 8, np.uint16)).save(tmp_path / name)
    assert levels([next(VideoFile(tmp_path / name, 64, 64).frames())]) == [100]


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


def test_a_cover_is_shown_only_where_nothing_moves(tmp_path):
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as file:
        cover = file.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", Disposition.attached_pic
        film = file.add_stream("mpeg4", rate=25)
        film.height, film.width, film.pix_fmt = 32, 32, "yuv420p"
        for stream, shades, kind in ((cover, [250], "yuvj420p"), (film, [100] * 10, "yuv420p")):
            for level in shades:
                frame = av.VideoFrame.from_ndarray(grey(level, stream.height, stream.width), format="rgb24")
                file.mux(stream.encode(frame.reformat(format=kind)))
            file.mux(stream.encode(None))
    video = VideoFile(path, 64, 64)
    assert (video.seconds, abs(int(np.median(next(video.frames()))) - 100) < 5) == (0.4, True)
