"""The packed training pass against the oracle."""

from __future__ import annotations

import pytest
import torch

from engine_builder.model import reference
from engine_builder.model.duplex import DuplexModel, init_weights
from engine_builder.presets import preset
from engine_builder.training.learn import packed_pass
from engine_builder.training.learn.packed_pass import PackedPass, PackedUnits

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("gap", "shown"), [(0, 0), (2, 0), (0, 2)])
def test_packed_pass_equals_the_oracle(gap: int, shown: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a gap: the oracle has units in it that nobody sees. shown: units of references, of three places for them."""
    monkeypatch.setattr(packed_pass, "weight_of_old", lambda units: torch.zeros(len(units.cut)))
    config = preset("tiny")
    model = DuplexModel(config).eval()
    init_weights(model, 3)
    g = torch.Generator().manual_seed(4)
    batch, units, recent, cut, pad = 2, 5, 3 if gap == 0 else 5, 2, config.language.pad_id
    v, a, d = config.video, config.audio, config.backbone.hidden_size

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    z_video, z_audio = (
        normal(batch, units + 1, v.tokens, v.latent_dim),
        normal(batch, units + 1, a.tokens, a.latent_dim),
    )
    own_video, own_audio = normal(batch, 3, v.tokens, v.latent_dim), normal(batch, 3, a.tokens, a.latent_dim)
    z_video[:, 0], z_audio[:, 0] = own_video[:, shown - 1] if shown else 0, 0
    text = torch.tensor([[pad, 300, pad, pad, 301], [pad, pad, pad, 302, pad]])
    word = torch.tensor([[310, pad, 311, pad, pad], [pad, pad, 312, 313, pad]])
    answer = torch.tensor([[pad, pad, 314, pad, pad], [pad, pad, pad, 315, pad]])
    slots = torch.stack((torch.full_like(word, 4), word, answer), dim=2)
    e_video, e_audio = normal(batch, units, v.perceive_tokens, d), normal(batch, units, a.perceive_tokens, d)
    packed = PackedUnits(
        prompt=torch.tensor([[320, pad, pad], [321, 322, pad]]),
        own_video=own_video,
        own_audio=own_audio,
        own_units=torch.full((batch,), shown),
        first_unit=torch.zeros(batch, dtype=torch.int64),
        z_video=z_video,
        z_audio=z_audio,
        text=text,
        slots=slots,
        x_video=normal(batch, units, v.tokens, v.latent_dim),
        x_audio=normal(batch, units, a.tokens, a.latent_dim),
        tau=torch.rand(batch, units, generator=g) * 0.9 + 0.1,
        reach=torch.full((batch,), recent),
        cut=torch.full((batch,), cut),
        gap=torch.full((batch,), gap),
    )
    full_text = torch.full((batch, units, config.language.text_tokens), pad)
    full_text[:, :, 0] = text
    full_slots = torch.full((batch, units, config.language.slots), pad)
    full_slots[:, :, :3] = slots

    def apart(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x[:, :cut], x[:, :1].repeat_interleave(gap, dim=1), x[:, cut:]), dim=1)

    # The context of the unit after the gap shows latents of the last unit in it.
    kept_video, kept_audio = apart(z_video[:, 1:]), apart(z_audio[:, 1:])
    kept_video[:, cut + gap - 1], kept_audio[:, cut + gap - 1] = z_video[:, cut], z_audio[:, cut]
    conversation = reference.Conversation(
        prompt=packed.prompt,
        z_video=kept_video,
        z_audio=kept_audio,
        e_video=apart(e_video),
        e_audio=apart(e_audio),
        text=apart(full_text),
        slots=apart(full_slots),
        x_video=apart(packed.x_video),
        x_audio=apart(packed.x_audio),
        tau=apart(packed.tau),
        own_video=packed.own_video[:, :shown],
        own_audio=packed.own_audio[:, :shown],
    )
    real = [k for k in range(units + gap) if not cut <= k < cut + gap]

    def sees(_: str, past: int, now: int) -> bool:
        return past == now or (past in real and (gap > 0 or now - past < recent))

    with torch.no_grad():
        expected = reference.forward(model, conversation, sees)
        logits, clean_video, clean_audio = PackedPass(model)(packed, e_video, e_audio)
    spoken = torch.cat((torch.ones(batch, units, 2, dtype=torch.bool), slots[:, :, 1:] != pad), dim=2)
    torch.testing.assert_close(logits[spoken], expected.logits[:, real, :4][spoken], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(clean_video, expected.clean_video[:, real], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(clean_audio, expected.clean_audio[:, real], atol=2e-4, rtol=1e-4)
