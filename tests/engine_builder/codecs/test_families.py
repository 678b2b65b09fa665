"""Every published family: streaming equals offline, nothing looks ahead, states have the size that is stated."""

import pytest
import torch
from families import FAMILIES, codec, latents, media

pytestmark = pytest.mark.unit

UNITS = 24


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


def directions(family):
    made = codec(family)
    encoder, decoder = made.start()
    return {
        "encode": (made.encode, media(family, UNITS, 2), encoder.expand(2, -1)),
        "decode": (made.decode, latents(family, UNITS, 2), decoder.expand(2, -1)),
    }


@pytest.mark.parametrize("direction", ["encode", "decode"])
@torch.no_grad()
def test_streaming_equals_offline(family, direction):
    run, whole, state = directions(family)[direction]
    expected, last = run(whole, state)
    got = []
    for part in whole.chunk(UNITS, dim=1):
        out, state = run(part, state)
        got.append(out)
    scale = 255.0 if expected.dim() == 5 else 1.0  # pixels
    torch.testing.assert_close(torch.cat(got, dim=1) / scale, expected / scale, atol=1e-4, rtol=0)
    torch.testing.assert_close(state, last, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01 * scale  # something came out


@pytest.mark.parametrize("direction", ["encode", "decode"])
@torch.no_grad()
def test_outputs_do_not_depend_on_later_units(family, direction):
    run, whole, state = directions(family)[direction]
    whole, changed = whole[:, : whole.shape[1] // 4], 3
    cut = whole.shape[1] * changed // 6
    other = torch.cat((whole[:, :cut], whole[:, cut:].flip(1)), dim=1)
    before, after = run(whole, state)[0], run(other, state)[0]
    stop = before.shape[1] * changed // 6
    torch.testing.assert_close(before[:, :stop], after[:, :stop], atol=1e-5, rtol=0)
    assert not torch.equal(before[:, stop:], after[:, stop:])


@torch.no_grad()
def test_rows_of_a_batch_do_not_mix(family):
    for run, whole, state in directions(family).values():
        part = whole[:, : whole.shape[1] // UNITS]
        both, states = run(part, state)
        alone, own = run(part[1:], state[1:])
        torch.testing.assert_close(both[1:], alone, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(states[1:], own, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_state_sizes(family):
    made = codec(family)
    sizes = made.encoder_size, made.decoder_size
    assert tuple(state.numel() for state in made.start()) == sizes
    assert made.encode(media(family, 1, 3), made.start()[0].expand(3, -1))[1].shape == (3, sizes[0])
    assert made.decode(latents(family, 1, 3), made.start()[1].expand(3, -1))[1].shape == (3, sizes[1])
    out, _ = made.decode(latents(family, 1), made.start()[1][None])
    assert out.shape == media(family, 1).shape  # a whole unit from the first on


@torch.no_grad()
def test_a_session_starts_as_after_stillness(family):
    """The start is the state of a published stream that has run through `rest`, so later units are that stream's."""
    made = codec(family)
    rest, later = made.rest(), media(family, 3)
    encoder, decoder = made.start()
    z, _ = made.encode(torch.cat((rest, later), dim=1), None)
    streamed, _ = made.encode(later, encoder[None])
    torch.testing.assert_close(z[:, -streamed.shape[1] :], streamed, atol=1e-4, rtol=0)
    shown, _ = made.decode(z, None)
    expected, _ = made.decode(z[:, -streamed.shape[1] :], decoder[None])
    torch.testing.assert_close(shown[:, -expected.shape[1] :], expected, atol=1e-2, rtol=1e-4)
