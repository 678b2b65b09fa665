"""Masks of the ears: holes where they may be, in as many examples as said, nothing else touched."""

import torch

from engine_builder.model.perception import AudioEncoder
from engine_builder.presets import preset
from engine_builder.training.learn.masks import listen, masked


def test_a_mask_is_one_band_and_one_moment():
    bands = torch.rand(400, 40, 48, generator=torch.Generator().manual_seed(1))
    out = masked(bands, torch.Generator().manual_seed(2))
    changed = out != bands
    bands_hit, frames_hit = changed.float().mean(2) > 0.85, changed.float().mean(1) > 0.85
    assert bands_hit.sum(1).max() <= 8
    assert frames_hit.sum(1).max() <= 6
    assert 0.5 < bands_hit.any(1).float().mean() < 0.7
    assert 0.4 < frames_hit.any(1).float().mean() < 0.6
    assert (~changed.flatten(1).any(1)).float().mean() > 0.1


def test_what_is_heard_through_no_hole_is_what_the_encoder_hears(monkeypatch):
    encoder = AudioEncoder(preset("tiny").audio, 32)
    pcm = torch.randn(2, 3 * encoder.config.unit_samples, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr("engine_builder.training.learn.masks.masked", lambda bands, generator: bands)
    whole, _ = encoder(pcm, torch.zeros(2, encoder.state_size))
    assert torch.equal(listen(encoder, pcm, torch.Generator()), whole)
