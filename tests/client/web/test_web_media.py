"""Sound and pictures from outside: formats, and images that are bombs."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps

from client.stream.units import UnitShape
from client.web import media
from client.web.media import Format

pytestmark = pytest.mark.unit
SHAPE = UnitShape(samples=2560, height=64, width=64)


def _png(width: int, height: int) -> bytes:
    """Zeros, which are small on the wire, whatever the size."""
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


def _jpeg(width: int, height: int, colour: tuple[int, int, int] = (250, 10, 10)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize(("width", "height"), [(250_000, 1), (8192, 8192), (1, 8193), (4096, 4096)])
def test_a_bomb_is_refused_by_its_head(width, height):
    data = _png(width, height)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"video: expected at most .* pixels"):
            media.fit_image(media.open_image(data), SHAPE)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("width", "height"), [(320, 200), (200, 320), (64, 64), (3, 2), (8000, 1), (4000, 3000)])
def test_a_picture_covers_the_frame_around_its_centre(width, height):
    fitted = media.fit_image(media.open_image(_jpeg(width, height)), SHAPE)
    assert fitted.shape == (1, 64, 64, 3)
    assert np.abs(fitted.astype(int) - (250, 10, 10)).max() < 12


def test_what_is_left_and_right_of_the_frame_is_cut_off():
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = 200
    out = io.BytesIO()
    Image.fromarray(wide).save(out, "PNG")
    assert media.fit_image(media.open_image(out.getvalue()), SHAPE).min() > 150


def test_grey_of_16_bits_is_grey():
    out = io.BytesIO()
    Image.fromarray(np.full((64, 64), 100 << 8, np.uint16)).save(out, "PNG")
    assert np.all(media.fit_image(media.open_image(out.getvalue()), SHAPE) == 100)


@pytest.mark.parametrize("orientation", range(9))
def test_a_photo_is_shown_as_a_viewer_shows_it(orientation):
    photo = np.zeros((200, 320, 3), np.uint8)
    photo[:100, 60:160], photo[100:, 60:160] = 255, 128  # in the middle, which is all that is seen
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(out, "PNG", exif=exif)
    shape = UnitShape(samples=2560, height=64, width=32)
    turned = ImageOps.exif_transpose(Image.open(out))
    fitted, plain = io.BytesIO(), media.fit_image(media.open_image(out.getvalue()), shape)
    turned.save(fitted, "PNG", exif=Image.Exif())
    assert np.abs(plain.astype(int) - media.fit_image(media.open_image(fitted.getvalue()), shape)).mean() < 3


@pytest.mark.parametrize("data", [b"", b"GIF89a", _png(64, 64)[:45], _jpeg(64, 64)[:300]])
def test_what_is_no_whole_image_is_a_value_error(data):
    with pytest.raises(ValueError, match="video: "):
        media.fit_image(media.open_image(data), SHAPE)


@pytest.mark.parametrize(("kind", "known"), [("pcmu", {0xFF: 0.0, 0x00: -32124, 0x80: 32124}), ("pcma", {0xD5: 8})])
def test_g711(kind, known):
    form = Format(kind, 8000)
    every = form.decode(bytes(range(256)))
    for code, value in known.items():
        assert every[code] * 32768 == value
    np.testing.assert_array_equal(form.decode(form.encode(every)), every)
    wave = (0.5 * np.sin(np.arange(800) / 7)).astype(np.float32)
    assert np.abs(form.decode(form.encode(wave)) - wave).max() < 0.02
    assert form.width == 1


@pytest.mark.parametrize("source", [8_000, 24_000, 48_000])
@pytest.mark.parametrize("target", [16_000, 24_000])
def test_another_rate_holds_nothing_back(source, target):
    """A unit in whole packets is whole with its last one, and a tone stays one."""
    resampler, n = media.Resampler(source, target), source // 100
    tone = np.sin(np.arange(16 * n) * 2 * np.pi * 300 / source).astype(np.float32)
    parts = [resampler.feed(packet) for packet in tone.reshape(16, n)]
    assert [part.size for part in parts] == [target // 100] * 16
    sound = np.concatenate(parts)[target // 50 :]
    assert np.abs(sound).max() == pytest.approx(1, abs=0.05)
    assert np.sqrt((sound**2).mean()) == pytest.approx(0.5**0.5, abs=0.02)
