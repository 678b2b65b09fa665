"""The one-pass model beside the engines: does streaming through pages decide as one masked pass over everything does?

The oracle gets what the engines were given and what they made of it, and says for every token that they chose which
one it would have chosen, and for every unit which latents.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine_builder.model import reference
from engine_builder.model.duplex import DuplexModel
from engine_builder.training.judges.figures import Tally
from engine_builder.training.world.conversation import Conversation
from triton_models.runtime.performer import noise
from triton_models.service.local import AgentUnit

from .stage import FIRST_NOISE


@torch.no_grad()
def compare(
    model: DuplexModel, talks: list[Conversation], played: list[list[AgentUnit]], recent: int, tally: Tally
) -> None:
    """Counts `oracle_agrees` (one trial a decision) and samples `oracle_latent_difference` (largest of a unit).

    played: by engines with `window(0, recent)` and ONE solver step, whose latents are the network's own estimate.
    """
    language = model.config.language
    size, units = len(talks), len(played[0])

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([np.stack([getattr(u, name) for u in row]) for row in played]))

    slots = torch.full((size, units, language.slots), language.pad_id)
    for row, answers in enumerate(played):
        for unit, answer in enumerate(answers):
            slots[row, unit, : len(answer.slots)] = torch.tensor(answer.slots)
    starts = [[noise.latents(model.config, FIRST_NOISE + row, k) for k in range(units)] for row in range(size)]
    pcm = torch.from_numpy(np.stack([t.user_pcm.reshape(-1) for t in talks]))
    camera = torch.from_numpy(np.stack([t.camera.reshape(-1, *t.camera.shape[2:]) for t in talks]))
    heard, _ = model.audio_encoder(pcm, torch.zeros(size, model.audio_encoder.state_size))
    seen, _ = model.video_encoder(camera, torch.zeros(size, model.video_encoder.state_size))
    z_video, z_audio = stacked("z_video"), stacked("z_audio")
    conversation = reference.Conversation(
        prompt=torch.from_numpy(np.stack([t.prompt for t in talks])),
        z_video=z_video,
        z_audio=z_audio,
        e_video=seen.view(size, units, -1, seen.shape[-1]),
        e_audio=heard.view(size, units, -1, heard.shape[-1]),
        text=torch.from_numpy(np.stack([t.typed for t in talks])),
        slots=slots,
        x_video=torch.from_numpy(np.stack([np.stack([v for v, _ in row]) for row in starts])),
        x_audio=torch.from_numpy(np.stack([np.stack([a for _, a in row]) for row in starts])),
        tau=torch.ones(size, units),
    )
    expected = reference.forward(model, conversation, lambda _, past, now: now - past < recent)
    for row, answers in enumerate(played):
        for unit, answer in enumerate(answers):
            _decisions(model, expected.logits[row, unit], answer.slots, tally)
            worst = max(
                float((expected.clean_video[row, unit] - z_video[row, unit]).abs().max()),
                float((expected.clean_audio[row, unit] - z_audio[row, unit]).abs().max()),
            )
            tally.sample("oracle_latent_difference", worst)


def _decisions(model: DuplexModel, logits: Tensor, chosen: tuple[int, ...], tally: Tally) -> None:
    """logits [1 + S, V] of the query and the slots of a unit; `chosen` without the end of the unit."""
    language = model.config.language
    states = torch.tensor(language.state_ids)
    state = states[(logits[0, states] + torch.tensor(language.biases)).argmax()]
    tally.count("oracle_agrees", int(state) == chosen[0])
    banned = [i for i in language.special_ids if i != language.eou_id]
    told = (*chosen[1:], language.eou_id)[: language.slots - 1]
    for place, token in enumerate(told, start=1):
        scores = logits[place].clone()
        scores[banned] = -torch.inf
        tally.count("oracle_agrees", int(scores.argmax()) == token)
