"""The oracle's mask: who sees whom, checked on random inputs through the whole network."""

from dataclasses import replace

import pytest
import torch

from engine_builder.checkpoint import random_model
from engine_builder.model.duplex import velocity
from engine_builder.model.reference import Conversation, forward, keep_all
from engine_builder.presets import preset

pytestmark = pytest.mark.unit

UNITS = 5


@pytest.fixture(scope="module")
def model():
    model = random_model(preset("tiny"), seed=0)
    with torch.no_grad():  # random tables, so that tau really modulates
        model.modulation.tables.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    return model


def conversation(batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    c = preset("tiny")

    def normal(*shape):
        return torch.randn(batch, UNITS, *shape, generator=g)

    text = torch.zeros(batch, UNITS, c.language.text_tokens, dtype=torch.int64)
    text[0, 1, :2] = torch.tensor([50, 60])
    slots = torch.zeros(batch, UNITS, c.language.slots, dtype=torch.int64)
    slots[:, :, 0] = 3
    slots[-1, 2, :3] = torch.tensor([4, 70, 71])
    prompt = torch.tensor([[10, 11, 12], [10, 11, 0]])[:batch]
    return Conversation(
        prompt=prompt,
        z_video=normal(4, c.video.latent_dim),
        z_audio=normal(2, c.audio.latent_dim),
        e_video=normal(1, 256),
        e_audio=normal(2, 256),
        text=text,
        slots=slots,
        x_video=normal(4, c.video.latent_dim),
        x_audio=normal(2, c.audio.latent_dim),
        tau=torch.rand(batch, UNITS, generator=g) * 0.9 + 0.1,
    )


def changed_units(before, after):
    return {
        name: [k for k in range(UNITS) if not torch.equal(getattr(before, name)[:, k], getattr(after, name)[:, k])]
        for name in ("logits", "velocity_video", "velocity_audio")
    }


@pytest.mark.parametrize("field", ["e_audio", "e_video", "text", "z_video", "z_audio"])
def test_nothing_sees_a_later_unit(model, field):
    base = conversation()
    value = getattr(base, field).clone()
    value[:, 2] = value[:, 2] + 1
    with torch.no_grad():
        changed = changed_units(forward(model, base), forward(model, replace(base, **{field: value})))
    # The committed latents of unit 2 are first seen by block 3; everything else by block 2 itself.
    first = 3 if field.startswith("z_") else 2
    assert changed == {key: list(range(first, UNITS)) for key in ("logits", "velocity_video", "velocity_audio")}


def test_noisy_tokens_are_seen_only_by_their_own_unit(model):
    base = conversation()
    noisy = base.x_audio.clone()
    noisy[:, 2] += 1
    with torch.no_grad():
        changed = changed_units(forward(model, base), forward(model, replace(base, x_audio=noisy)))
    assert changed == {"logits": [], "velocity_video": [2], "velocity_audio": [2]}


def test_slots_are_token_causal_and_seen_by_the_performer(model):
    base = conversation()
    slots = base.slots.clone()
    slots[-1, 2, 1] = 99
    with torch.no_grad():
        before, after = forward(model, base), forward(model, replace(base, slots=slots))
    same = [torch.equal(before.logits[-1, 2, i], after.logits[-1, 2, i]) for i in range(4)]
    assert same == [True, True, False, False]  # query, s0 | s1, s2
    assert changed_units(before, after)["velocity_audio"] == [2, 3, 4]


def test_padding_changes_nothing(model):
    base = conversation()
    alone = replace(base, **{name: value[1:] for name, value in base.__dict__.items() if value is not None})
    alone = replace(alone, prompt=base.prompt[1:, :2])  # the second row without its padding
    with torch.no_grad():
        both, one = forward(model, base), forward(model, alone)
    torch.testing.assert_close(both.velocity_audio[1:], one.velocity_audio, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.logits[1:, :, 0], one.logits[:, :, 0], atol=1e-4, rtol=1e-4)


def test_retention_decides_what_is_remembered(model):
    base = conversation()
    e_audio = base.e_audio.clone()
    e_audio[:, 0] += 1

    def visible(kind, token_unit, current_unit):
        return token_unit > current_unit - 2  # the unit before, and itself

    with torch.no_grad():
        # One layer away: K/V of unit 1 was made while unit 0 was visible, so change only what unit 0 shows directly.
        full = changed_units(forward(model, base, keep_all), forward(model, replace(base, e_audio=e_audio), keep_all))
        assert full["logits"] == [0, 1, 2, 3, 4]
        windowed, whole = forward(model, base, visible), forward(model, base, keep_all)
    assert torch.equal(windowed.logits[:, :2], whole.logits[:, :2])
    assert not torch.allclose(windowed.logits[:, 3], whole.logits[:, 3], atol=1e-5)


def test_an_euler_step_to_zero_lands_on_the_estimate():
    noisy, clean, tau = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.tensor([1.0, 0.5, 0.1])
    v = velocity(noisy, clean, tau)
    torch.testing.assert_close(noisy - tau.view(-1, 1, 1) * v, clean, atol=1e-6, rtol=1e-6)
