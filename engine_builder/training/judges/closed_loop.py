"""The model in conversation with itself as its own history: many sessions in lockstep, PyTorch, no engines.

Follows the unit protocol of the runtime (DESIGN 3) with `window(0, recent)` retention: what training sees between two
checkpoints. The figures that are published come from the served engines instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_builder.config import ModelConfig
from engine_builder.layout import UnitLayout, rope_tables
from engine_builder.model.backbone import KV
from engine_builder.model.duplex import DuplexModel

from ..learn.batches import encode_references
from ..world.conversation import Conversation
from ..world.speech.voices import Pcm


@dataclass(frozen=True)
class Performance:
    """What an agent did in K units: state [K] (0 listen, 1 speak), words (token ids of each unit), pcm [K, 2560],
    frames uint8 [K, 4, 64, 64, 3]."""

    state: NDArray[np.int64]
    words: list[list[int]]
    pcm: Pcm
    frames: NDArray[np.uint8]


@dataclass
class _Unit:
    """Committed K/V of one unit: per layer [B, T, G, D], and which tokens exist, bool [B, T]."""

    layers: list[KV]
    valid: Tensor


class ClosedLoop:
    """Runs B sessions at once from their first unit."""

    def __init__(self, model: DuplexModel, recent: int = 16, solver_steps: int | None = None, seed: int = 0) -> None:
        self.model, self.recent = model.eval(), recent
        self.config: ModelConfig = model.config
        self.layout = UnitLayout.of(model.config)
        self.taus = model.config.solver.taus(solver_steps)
        self.noise = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def run(self, conversations: list[Conversation]) -> list[Performance]:
        """Conversations of one length, whose prompts and references are of one length as well, each from unit 0 of a
        session."""
        c, m = self.config, self.model
        size, units = len(conversations), len(conversations[0].state)
        pcm = torch.from_numpy(np.stack([t.user_pcm for t in conversations]))
        camera = torch.from_numpy(np.stack([t.camera for t in conversations]))
        typed = torch.from_numpy(np.stack([t.typed for t in conversations]))
        prompt = torch.from_numpy(np.stack([t.prompt for t in conversations]))
        hearing = torch.zeros(size, m.audio_encoder.state_size)
        seeing = torch.zeros(size, m.video_encoder.state_size)
        z_video = torch.zeros(size, c.video.tokens, c.video.latent_dim)
        z_audio = torch.zeros(size, c.audio.tokens, c.audio.latent_dim)

        shown = [encode_references(m, t.persona) for t in conversations]
        own = [m.embed_latents(video, audio).flatten(0, 1) for video, audio in shown]
        prefix = torch.cat((m.model.embed_tokens(prompt), torch.stack(own)), dim=1)
        if shown[0][0].shape[0]:
            z_video = torch.stack([video[-1] for video, _ in shown])  # unit 0 goes on from that picture
        origin, words = prefix.shape[1], prompt.shape[1]
        step = torch.arange(origin)
        step[words:] = words + (step[words:] - words) // c.latent_tokens  # each unit sees itself whole
        causal = (step[None, :] <= step[:, None]).expand(size, -1, -1)
        _, pinned = self._pass(prefix, np.arange(origin), causal, [])
        first = _Unit(pinned, torch.ones(size, origin, dtype=torch.bool))
        past: list[_Unit] = []
        states, words, videos, audios = [], [[[] for _ in range(units)] for _ in range(size)], [], []
        for k in range(units):
            e_audio, hearing = m.audio_encoder(pcm[:, k], hearing)
            e_video, seeing = m.video_encoder(camera[:, k], seeing)
            query = torch.full((size, 1), c.language.query_id)
            ids = torch.cat((typed[:, k], query), dim=1)
            x = torch.cat((m.embed_latents(z_video, z_audio), e_video, e_audio, m.model.embed_tokens(ids)), dim=1)
            valid = torch.ones(size, x.shape[1], dtype=torch.bool)
            valid[:, self.layout.text_offset : self.layout.query_offset] = typed[:, k] != c.language.pad_id
            own = valid[:, None, :] | torch.eye(x.shape[1], dtype=torch.bool)
            history = [first, *past[max(0, len(past) - self.recent + 1) :]]
            logits, layers = self._pass(x, self.layout.block_positions(origin, k), own, history)
            block = [_Unit(layers, valid)]
            state = self._slots(logits, origin, k, history, block, words)
            states.append(state)
            unit = _join(block)
            past = [*past[max(0, len(past) - self.recent + 1) :], unit]
            z_video, z_audio = self._solve(origin, k, [*history, unit])
            videos.append(z_video)
            audios.append(z_audio)
        return self._render(torch.stack(states, dim=1), words, torch.cat(videos, dim=1), torch.cat(audios, dim=1))

    def _pass(
        self, x: Tensor, positions: NDArray[np.int64], own: Tensor, history: list[_Unit], tau: Tensor | None = None
    ) -> tuple[Tensor, list[KV]]:
        """Hidden states of `x` [B, T, d] at `positions` [T] over `history`, and its K/V per layer."""
        size, tokens = x.shape[:2]
        cos, sin = (torch.from_numpy(t).expand(size, -1, -1) for t in rope_tables(self.config.backbone, positions))
        mask = torch.cat([u.valid[:, None, :].expand(-1, tokens, -1) for u in history] + [own], dim=2)
        joined = _join(history).layers if history else None
        modulations = None if tau is None else [t.unsqueeze(1) for t in self.model.modulation(tau)]
        hidden, k, v = self.model.model(x, cos, sin, mask, joined, modulations)
        return hidden, list(zip(k.unbind(0), v.unbind(0), strict=True))

    def _slots(
        self,
        hidden: Tensor,
        origin: int,
        k: int,
        history: list[_Unit],
        block: list[_Unit],
        words: list[list[list[int]]],
    ) -> Tensor:
        """Greedy slots of unit k; appends their K/V to `block` and the words to `words`. Returns states [B]."""
        language = self.config.language
        states = torch.tensor(language.state_ids)
        logits = self.model.logits(hidden[:, -1])
        token = states[(logits[:, states] + torch.tensor(language.biases)).argmax(dim=1)]
        chosen = token - language.first_state_id
        speaking = torch.ones(len(token), dtype=torch.bool)
        hidden_ids = [i for i in language.special_ids if i != language.eou_id]
        for slot in range(language.slots):
            x = self.model.model.embed_tokens(token).unsqueeze(1)
            position = np.array([self.layout.slot_position(origin, k, slot)])
            own = torch.ones(len(token), 1, 1, dtype=torch.bool)
            hidden, layers = self._pass(x, position, own, [*history, *block])
            block.append(_Unit(layers, speaking.unsqueeze(1)))
            logits = self.model.logits(hidden[:, -1])
            logits[:, hidden_ids] = -torch.inf
            token = logits.argmax(dim=1)
            speaking = speaking & (token != language.eou_id)
            if slot + 1 == language.slots or not speaking.any():
                break
            for row in torch.nonzero(speaking).flatten().tolist():
                words[row][k].append(int(token[row]))
        return chosen

    def _solve(self, origin: int, k: int, history: list[_Unit]) -> tuple[Tensor, Tensor]:
        c = self.config
        size = len(history[0].valid)
        video = torch.randn(size, c.video.tokens, c.video.latent_dim, generator=self.noise)
        audio = torch.randn(size, c.audio.tokens, c.audio.latent_dim, generator=self.noise)
        own = torch.ones(size, c.latent_tokens, c.latent_tokens, dtype=torch.bool)
        positions = self.layout.noisy_positions(origin, k)
        for now, then in zip(self.taus[:-1], self.taus[1:], strict=True):
            x = self.model.embed_latents(video, audio)
            hidden, _ = self._pass(x, positions, own, history, torch.full((size,), now))
            clean_video, clean_audio = self.model.clean_estimate(hidden)
            video = clean_video + (video - clean_video) * (then / now)
            audio = clean_audio + (audio - clean_audio) * (then / now)
        return video, audio

    def _render(self, states: Tensor, words: list[list[list[int]]], video: Tensor, audio: Tensor) -> list[Performance]:
        m = self.model
        out = []
        for row in range(len(states)):
            pcm, _ = m.audio_codec.decode(audio[row : row + 1], None)
            film, _ = m.video_codec.decode(video[row : row + 1], None)
            frames = torch.floor(film[0] + 0.5).to(torch.uint8).unflatten(0, (-1, 4))
            pcm = pcm[0].view(states.shape[1], -1)
            out.append(Performance(states[row].numpy(), words[row], pcm.numpy(), frames.numpy()))
        return out


def _join(units: list[_Unit]) -> _Unit:
    count = len(units[0].layers)
    layers = [
        (torch.cat([u.layers[i][0] for u in units], dim=1), torch.cat([u.layers[i][1] for u in units], dim=1))
        for i in range(count)
    ]
    return _Unit(layers, torch.cat([u.valid for u in units], dim=1))
