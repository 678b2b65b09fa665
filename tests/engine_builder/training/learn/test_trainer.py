"""A run that is interrupted ends with the weights and the log of one that is not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine_builder.checkpoint import load_checkpoint, read_defaults
from engine_builder.config import BackboneConfig, ModelConfig
from engine_builder.model.duplex import DuplexModel, init_weights
from engine_builder.presets import preset
from engine_builder.training.judges.run_report import read_log, write_report
from engine_builder.training.learn import eyes, losses
from engine_builder.training.learn.batches import Batch, Memory, collate, encode_targets
from engine_builder.training.learn.codec_fit import fit_codecs, latent_spread, with_finer_codecs
from engine_builder.training.learn.ears import windows
from engine_builder.training.learn.eyes import rooms
from engine_builder.training.learn.losses import (
    NOTE_WEIGHT,
    Spread,
    draw_units,
    joint_loss,
    perceive,
    roll_out,
    word_weights,
)
from engine_builder.training.learn.masks import listen
from engine_builder.training.learn.packed_pass import PackedPass
from engine_builder.training.learn.trainer import Trainer, TrainingPlan
from engine_builder.training.tutor import DEFAULTS
from engine_builder.training.world.camera import sensor_noise_bank
from engine_builder.training.world.conversation import Studio
from engine_builder.training.world.personas import Persona
from engine_builder.training.world.words import PEOPLE

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"),
]
PLAN = TrainingPlan(steps=4, batch=2, units=6, rollout_from=0.5, eye_steps=1, ear_steps=1, codec_conversations=6)


def _config() -> ModelConfig:
    small = BackboneConfig(hidden_size=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate_size=96)
    return replace(preset("tiny"), backbone=small)


class _Stop(Exception):
    pass


def _stop_after_three(row: dict[str, float]) -> None:
    if row["step"] == 3:
        raise _Stop


def test_resuming_repeats_nothing_and_forgets_nothing(tmp_path: Path) -> None:
    studio = Studio(tmp_path / "voices", "held_out", voices=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Trainer(_config(), PLAN, studio, whole, compile_layers=False).train()
    interrupted = Trainer(_config(), PLAN, studio, broken, compile_layers=False)
    with pytest.raises(_Stop):
        interrupted.train(save_every=2, progress=_stop_after_three)
    again = Trainer(_config(), PLAN, studio, broken, compile_layers=False)
    assert again.step_number == 2
    again.train(stop=lambda: again.step_number == 3)
    last = Trainer(_config(), PLAN, studio, broken, compile_layers=False)
    assert last.step_number == 3
    last.train()
    assert read_log(broken)["step"].tolist() == [1, 2, 3, 4]
    first, second = load_checkpoint(whole / "checkpoint"), load_checkpoint(broken / "checkpoint")
    assert read_defaults(broken / "checkpoint") == DEFAULTS
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    text = write_report(broken, {"answer_accuracy_text": 0.5}).read_text()
    assert "| answer_accuracy_text | 0.5 |" in text
    assert (broken / "losses.png").exists()


def test_going_on_from_trained_weights_keeps_the_codecs(tmp_path: Path) -> None:
    studio = Studio(tmp_path / "voices", "held_out", voices=2)
    start = DuplexModel(_config())
    init_weights(start, 9)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    plan = replace(PLAN, steps=1, pace=0.5)
    trainer = Trainer(_config(), plan, studio, tmp_path / "run", compile_layers=False, start=start)
    trainer.train()
    assert "cards_seen" not in json.loads((tmp_path / "run" / "warm_up.json").read_text())
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "codec" in name)
    assert any(not torch.equal(before[name], after[name]) for name in before if "layers" in name)
    assert plan.rate(0) == 0.5 * PLAN.rate(0)


def test_finer_codecs_know_the_other_person_and_the_model_is_as_it_was(tmp_path: Path) -> None:
    """A model that knows one person: the latents of old stay, new ones say nothing and are not listened to; the head's
    hidden layer adds nothing yet, and can learn to."""
    studio = Studio(tmp_path / "voices", "held_out", voices=2)  # whose agent is always the first person
    config, first, second = _config(), *PEOPLE
    heard = replace(config.audio, latent_dim=320, head_channels=0)
    few = replace(config, audio=heard, video=replace(config.video, latent_dim=48))
    coarse = DuplexModel(few)
    init_weights(coarse, 9)
    fit_codecs(coarse, studio, 4)
    mixed = Studio(tmp_path / "voices", "train", cast=studio.cast)  # whose agent is anybody
    fine = with_finer_codecs(coarse, mixed, 8)
    assert (fine.config.audio, fine.config.video) == (config.audio, config.video)
    assert with_finer_codecs(fine, mixed, 8) is fine

    def lost(model: DuplexModel, person: str) -> list[float]:
        talk = studio.conversation(3, 30, persona=Persona(person, person))
        film, pcm = torch.from_numpy(talk.face).flatten(0, 1)[None], torch.from_numpy(talk.agent_pcm).view(1, -1)
        seen, _ = model.video_codec.decode(model.video_codec.encode(film, None)[0], None)
        heard, _ = model.audio_codec.decode(model.audio_codec.encode(pcm, None)[0], None)
        sound = (heard[:, 320:] - pcm[:, :-320]).square().sum() / pcm.square().sum()
        return [float((seen - film).square().mean()), float(sound)]

    with torch.no_grad():
        for person, audio_loss in ((first, 0.01), (second, 0.02)):
            (video_before, audio_before), (video, audio) = lost(coarse, person), lost(fine, person)
            assert audio < min(audio_loss, audio_before + 1e-6)
            assert video < video_before
        talk = studio.conversation(4, 6)
        old, new = encode_targets(coarse, talk), encode_targets(fine, talk)
        torch.testing.assert_close(new[0][..., :48], old[0])
        torch.testing.assert_close(new[1][..., :320], old[1])
        torch.testing.assert_close(fine.embed_latents(*new), coarse.embed_latents(*old))
        hidden = torch.randn(2, config.latent_tokens, 64)
        for said, expected in zip(fine.clean_estimate(hidden), coarse.clean_estimate(hidden), strict=True):
            torch.testing.assert_close(said[..., : expected.shape[-1]], expected)
            assert not said[..., expected.shape[-1] :].any()
    fine.clean_estimate(hidden)[1].sum().backward()
    learns = fine.audio_hidden.down_proj.weight.grad
    assert learns is not None
    assert learns.any()


def test_the_network_is_where_its_weights_are_and_all_else_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, which refuses a tensor from elsewhere and computes nothing: what a GPU would be given."""
    studio, model = Studio(tmp_path / "voices", "train", voices=2), DuplexModel(_config())
    talks = [studio.conversation(seed, 6) for seed in range(2)]
    batch = collate(model, talks, [Memory(6), Memory(6)], own_units=2)
    spread, drawn = Spread(*latent_spread(model, studio, 2)), windows(studio, np.random.default_rng(1), 4)
    frames, _ = rooms(np.random.default_rng(1), 2, sensor_noise_bank(1))
    generator, packed = torch.Generator().manual_seed(3), PackedPass(model.to("meta"))
    returned: list[torch.device] = []

    def home(tensor: torch.Tensor) -> torch.Tensor:
        returned.append(tensor.device)
        return torch.zeros(tensor.shape)

    for module in (losses, eyes):
        monkeypatch.setattr(module, "home", home)
    percepts = perceive(packed, batch, generator)
    units = draw_units(batch, spread, generator)
    units = roll_out(packed, batch, units, *percepts, torch.bfloat16, torch.tensor([True, False]), generator)
    joint_loss(packed, batch, units, *percepts, torch.bfloat16)
    eyes.classify(model, nn.Linear(64, 7, device="meta"), frames)
    assert listen(model.audio_encoder, drawn.pcm, generator).is_meta
    assert len(returned) == 9
    assert {device.type for device in returned} == {"meta"}


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    plan = TrainingPlan(steps=1000, decay_from=0.55)
    rates = [plan.rate(step) for step in range(1001)]
    assert rates[0] < 0.05
    assert rates[100] == rates[500] == 1.0
    assert rates[1000] == 0.0
    assert sorted(rates[560:], reverse=True) == rates[560:]


def test_first_pictures_and_sounds_mostly_begin_as_noise(tmp_path: Path) -> None:
    """Only from noise must the model look at the prompt to know whom to show, and who speaks."""
    model, studio = DuplexModel(_config()), Studio(tmp_path / "voices", "held_out", voices=2)
    talk = studio.conversation(1, 24)
    begins = np.append(True, (talk.state[1:] == 1) & (talk.state[:-1] == 0))
    assert begins.sum() > 1
    batch = collate(model, [talk] * 200, [Memory(16)] * 200)
    units = draw_units(batch, Spread(torch.ones(1), torch.ones(1)), torch.Generator().manual_seed(1))
    pure = (units.tau == 1).float().mean(dim=0).numpy()
    np.testing.assert_allclose(pure, np.where(begins, losses.BEGIN_NOISE, losses.PURE_NOISE), atol=0.15)


def test_a_roll_out_goes_on_from_what_the_model_says(tmp_path: Path) -> None:
    """In the chosen stretch alone, in the context as in the noisy sound."""
    model, studio = DuplexModel(_config()), Studio(tmp_path / "voices", "held_out", voices=2)
    init_weights(model, 9)
    batch = collate(model, [studio.conversation(seed, 6) for seed in (1, 2)], [Memory(6)] * 2)
    generator, packed = torch.Generator().manual_seed(1), PackedPass(model)
    units = draw_units(batch, Spread(torch.ones(1), torch.ones(1)), generator)
    percepts = perceive(packed, batch, generator)
    own = roll_out(packed, batch, units, *percepts, torch.float32, torch.tensor([True, False]), generator)
    for name in ("x_audio", "z_audio", "z_video"):
        assert torch.equal(getattr(own, name)[1], getattr(units, name)[1])
        assert not torch.equal(getattr(own, name)[0], getattr(units, name)[0])
    tau, said = units.tau[0, :, None, None], own.z_audio[0, 1:]
    noise = units.x_audio[0] - (1 - tau) * batch.z_audio[0, 1:]
    torch.testing.assert_close(own.x_audio[0], (1 - tau) * said + noise)


def test_rare_answers_weigh_more() -> None:
    from engine_builder.tokenizer import word_ids

    weights, ids = word_weights(preset("tiny")), word_ids()
    assert weights[ids["yellow"]] > weights[ids["hello"]] >= weights[ids["seven"]] > weights[ids["comes"]]


def test_notes_from_before_a_stretch_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that finds all tokens equally likely: its loss counts what is asked for."""
    monkeypatch.setattr(losses, "BEGIN_WEIGHT", 1.0)
    monkeypatch.setattr(losses, "BEGIN_NOISE", losses.PURE_NOISE)
    studio = Studio(tmp_path / "voices", "held_out", voices=2)
    model = DuplexModel(_config())
    init_weights(model, 9)
    torch.nn.init.zeros_(model.model.norm.weight)
    talk = studio.conversation(1, 8, first_unit=50, quiet=True)
    later = collate(model, [talk], [Memory(8)])
    assert (later.notes[0, :, 0] != -1).nonzero().flatten().tolist() == [0, 6]

    def total(batch: Batch) -> float:
        generator, step = torch.Generator().manual_seed(1), PackedPass(model)
        units = draw_units(batch, Spread(torch.ones(1), torch.ones(1)), generator)
        percepts = perceive(step, batch, generator)
        return float(joint_loss(step, batch, units, *percepts, torch.float32).total.detach())

    own = total(replace(later, first_unit=torch.tensor([0])))
    each = float(torch.tensor(model.config.language.vocab_size).log()) / 8
    assert own - total(later) == pytest.approx((2 * NOTE_WEIGHT + 1) * each, rel=1e-3)
