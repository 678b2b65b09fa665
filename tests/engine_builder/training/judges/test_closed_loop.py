"""The lockstep loop against the oracle, on a model of a few thousand weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine_builder.config import BackboneConfig
from engine_builder.model import reference
from engine_builder.model.duplex import DuplexModel, init_weights
from engine_builder.presets import preset
from engine_builder.training.judges.closed_loop import ClosedLoop
from engine_builder.training.learn.batches import encode_references
from engine_builder.training.world.conversation import Conversation
from engine_builder.training.world.personas import Persona
from engine_builder.training.world.scenario import Scenario
from engine_builder.training.world.speech.cast import Speaker
from engine_builder.training.world.words import PEOPLE

pytestmark = pytest.mark.unit
UNITS = 6
BIAS = (0.0, -0.3)


def _conversation(seed: int) -> Conversation:
    rng = np.random.default_rng(seed)
    typed = np.zeros((UNITS, 4), dtype=np.int64)
    typed[2, : 1 + seed] = 300 + seed
    return Conversation(
        scenario=Scenario("en", Speaker(0)),
        persona=Persona.of(rng, face=PEOPLE[seed], voice=PEOPLE[seed], units=2),
        first_unit=0,
        prompt=np.array([301 + seed]),
        user_pcm=(0.1 * rng.standard_normal((UNITS, 2560))).astype(np.float32),
        camera=rng.integers(0, 255, (UNITS, 4, 64, 64, 3), dtype=np.uint8),
        typed=typed,
        agent_pcm=np.zeros((UNITS + 1, 2560), dtype=np.float32),
        face=np.zeros((UNITS + 1, 4, 64, 64, 3), dtype=np.uint8),
        state=np.zeros(UNITS, dtype=np.int64),
        word=np.zeros(UNITS, dtype=np.int64),
        heard=np.zeros(UNITS, dtype=np.int64),
        notes=np.full((UNITS, 2), -1, dtype=np.int64),
    )


class _Recorder(ClosedLoop):
    """Keeps the latents that the loop commits."""

    def _render(self, states, words, video, audio):  # type: ignore[no-untyped-def]
        self.committed = (states, words, video, audio)
        return super()._render(states, words, video, audio)


def test_lockstep_sessions_make_what_the_oracle_predicts() -> None:
    small = BackboneConfig(hidden_size=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate_size=96)
    config = preset("tiny")
    config = replace(config, backbone=small, language=replace(config.language, state_bias=BIAS))
    model = DuplexModel(config).eval()
    init_weights(model, 1)
    recent, talks = 3, [_conversation(0), _conversation(1)]
    loop = _Recorder(model, recent, solver_steps=1, seed=3)
    loop.run(talks)
    states, words, video, audio = loop.committed
    pad, language = config.language.pad_id, config.language
    slots = torch.full((2, UNITS, language.slots), pad)
    slots[:, :, 0] = language.first_state_id + states
    for row in range(2):
        for unit in range(UNITS):
            for i, token in enumerate(words[row][unit]):
                slots[row, unit, 1 + i] = token

    def split(z: torch.Tensor) -> torch.Tensor:
        return z.view(2, UNITS, -1, z.shape[-1])

    z_video, z_audio = split(video), split(audio)
    noise = torch.Generator().manual_seed(3)
    probes = [
        (torch.randn(2, *z_video.shape[2:], generator=noise), torch.randn(2, *z_audio.shape[2:], generator=noise))
        for _ in range(UNITS)
    ]
    pcm = torch.from_numpy(np.stack([t.user_pcm.reshape(-1) for t in talks]))
    camera = torch.from_numpy(np.stack([t.camera.reshape(-1, 64, 64, 3) for t in talks]))
    shown = [encode_references(model, talk.persona) for talk in talks]
    with torch.no_grad():
        e_audio, _ = model.audio_encoder(pcm, torch.zeros(2, model.audio_encoder.state_size))
        e_video, _ = model.video_encoder(camera, torch.zeros(2, model.video_encoder.state_size))
        expected = reference.forward(
            model,
            reference.Conversation(
                prompt=torch.from_numpy(np.stack([t.prompt for t in talks])),
                z_video=z_video,
                z_audio=z_audio,
                e_video=split(e_video),
                e_audio=split(e_audio),
                text=torch.from_numpy(np.stack([t.typed for t in talks])),
                slots=slots,
                x_video=torch.stack([v for v, _ in probes], dim=1),
                x_audio=torch.stack([a for _, a in probes], dim=1),
                tau=torch.ones(2, UNITS),
                own_video=torch.stack([video for video, _ in shown]),
                own_audio=torch.stack([audio for _, audio in shown]),
            ),
            lambda _, past, now: now - past < recent,
        )
    torch.testing.assert_close(z_video, expected.clean_video, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(z_audio, expected.clean_audio, atol=1e-4, rtol=1e-3)
    state_ids = torch.tensor(language.state_ids)
    scores = expected.logits[:, :, 0][:, :, state_ids]
    assert torch.equal((scores + torch.tensor(BIAS)).argmax(dim=2), states)
