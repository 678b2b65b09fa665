"""Every published family: streaming equals offline, nothing looks ahead, states have the size that is stated.

At a small width every day, at the published one in `slow`.
"""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, SMALL, codec, latents, media
from streams import DIRECTIONS, stream

pytestmark = pytest.mark.unit

UNITS = 24
WIDTHS = [(family, SMALL) for family in FAMILIES]
WIDTHS += [pytest.param((family, 0), marks=pytest.mark.slow) for family in FAMILIES]


@pytest.fixture(scope="module", params=WIDTHS, ids=str)
def made(request):
    family, channels = request.param
    return family, codec(family, channels)


@pytest.mark.parametrize("direction", DIRECTIONS)
@torch.no_grad()
def test_streaming_equals_offline(made, direction):
    family, codec = made
    given = stream(codec, family, direction, UNITS, batch=2)
    expected, last = given.offline()
    got, state = given.by_units(UNITS)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(state, last, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01  # something came out


@pytest.mark.parametrize("direction", DIRECTIONS)
@torch.no_grad()
def test_outputs_do_not_depend_on_later_units(made, direction):
    family, codec = made
    given = stream(codec, family, direction, 6, batch=2)
    other = stream(codec, family, direction, 6, batch=2, seed=1)
    cut = given.whole.shape[1] // 2
    changed = replace(given, whole=torch.cat((given.whole[:, :cut], other.whole[:, cut:]), dim=1))
    before, after = given.offline()[0], changed.offline()[0]
    stop = before.shape[1] // 2
    torch.testing.assert_close(before[:, :stop], after[:, :stop], atol=1e-5, rtol=0)
    assert not torch.allclose(before[:, stop:], after[:, stop:], atol=1e-3)


@torch.no_grad()
def test_rows_of_a_batch_do_not_mix(made):
    family, codec = made
    for direction in DIRECTIONS:
        given = stream(codec, family, direction, 1, batch=2)
        both, states = given.offline()
        alone, own = replace(given, whole=given.whole[1:], start=given.start[1:]).offline()
        torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(states[1:], own, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_state_sizes(made):
    family, codec = made
    sizes = codec.encoder_size, codec.decoder_size
    assert tuple(state.numel() for state in codec.start()) == sizes
    assert codec.encode(media(family, 1, 3), codec.start()[0].expand(3, -1))[1].shape == (3, sizes[0])
    assert codec.decode(latents(family, 1, 3), codec.start()[1].expand(3, -1))[1].shape == (3, sizes[1])
    out, _ = codec.decode(latents(family, 1), codec.start()[1][None])
    assert out.shape == media(family, 1).shape  # a whole unit from the first on


@torch.no_grad()
def test_a_session_starts_as_after_stillness(made):
    """The start is the state of a published stream that has run through `rest`, so later units are that stream's."""
    family, codec = made
    rest, later = codec.rest(), media(family, 3)
    encoder, decoder = codec.start()
    z, _ = codec.encode(torch.cat((rest, later), dim=1), None)
    streamed, _ = codec.encode(later, encoder[None])
    torch.testing.assert_close(z[:, -streamed.shape[1] :], streamed, atol=1e-4, rtol=0)
    shown, _ = codec.decode(z, None)
    expected, _ = codec.decode(z[:, -streamed.shape[1] :], decoder[None])
    torch.testing.assert_close(shown[:, -expected.shape[1] :], expected, atol=1e-2, rtol=1e-4)
