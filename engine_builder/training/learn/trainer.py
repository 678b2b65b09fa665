"""The training run: resumable, seeded, one log line a step in CSV."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine_builder.checkpoint import save_checkpoint
from engine_builder.config import ModelConfig
from engine_builder.model.duplex import DuplexModel, init_weights
from engine_builder.tokenizer import write_tiny_tokenizer

from ..tutor import DEFAULTS
from ..world.conversation import Studio
from . import packed_pass
from .batches import Batch, batches
from .codec_fit import fit_codecs, latent_spread
from .ears import open_ears
from .eyes import open_eyes
from .losses import Spread, draw_units, joint_loss, perceive, roll_out
from .muon import Optimiser
from .packed_pass import PackedPass

_WARMUP = 40
LOG_FIELDS = ("step", "seconds", "rate", "total", "state", "text", "heard", "notes", "audio", "video")


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the result of a run, apart from the model's sizes."""

    steps: int = 3200
    batch: int = 12
    units: int = 24
    decay_from: float = 0.1  # share of the run after which the learning rates fall linearly to zero
    rollout_from: float = 0.4  # share of the run after which the model also sees its own latents as context
    rollout_share: float = 0.4  # of the stretches of a batch, then
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    pace: float = 1.0  # factor on both
    eye_steps: int = 1500
    ear_steps: int = 1500
    codec_conversations: int = 60
    seed: int = 5

    def rate(self, step: int) -> float:
        """Learning rate factor at `step`: a short warm-up, flat, then linear to zero."""
        fall = (self.steps - step) / (self.steps * (1 - self.decay_from))
        return self.pace * max(0.0, min(1.0, (step + 1) / _WARMUP, fall))


class Trainer:
    """Owns the model, the optimiser and the run directory: `state.safetensors`, `state.json`, `log.csv`."""

    def __init__(
        self,
        config: ModelConfig,
        plan: TrainingPlan,
        studio: Studio,
        run: Path,
        compile_layers: bool,
        start: DuplexModel | None = None,
        device: str = "cpu",
    ) -> None:
        """`start`: a trained model to go on from; it keeps its codecs and eyes. device: of PyTorch, for the network."""
        self.plan, self.run, self.studio = plan, run, studio
        self.device = torch.device(device)
        self.step_number = 0
        self.seconds = 0.0
        run.mkdir(parents=True, exist_ok=True)
        self.model = start or DuplexModel(config)
        if start is None:
            init_weights(self.model, plan.seed)
        path = run / "state.safetensors"
        kept = load_file(path) if path.exists() else {}
        if kept:
            self.model.load_state_dict(_part(kept, "model/"))
            progress = json.loads((run / "state.json").read_text())
            self.step_number, self.seconds = progress["step"], progress["seconds"]
        else:
            (run / "warm_up.json").write_text(json.dumps(self._warm_up(start is None)) + "\n")
        self.model.to(self.device)
        # Batches are made at home, with codecs that no step changes.
        self._home = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        for codec in (self.model.audio_codec, self.model.video_codec):
            codec.requires_grad_(False)
        self.spread = Spread(*latent_spread(self._home, studio, plan.codec_conversations))
        self.optimiser = Optimiser(self.model, plan.muon_lr, plan.adam_lr)
        if kept:
            state = _part(kept, "optimiser/")
            self.optimiser.load_state_dict({name: t.to(self.device) for name, t in state.items()})
        else:
            self.save()  # the warm-ups took a quarter of an hour
        self.packed = PackedPass(self.model)
        # bfloat16 with AMX or AVX-512 is twice as fast as float32; elsewhere it is emulated.
        fast = self.device.type == "cuda" or _fast_bfloat16()
        self.dtype = torch.bfloat16 if fast else torch.float32
        if compile_layers and (self.device.type == "cuda" or shutil.which("g++")):
            packed_pass.compile_layers()

    def _warm_up(self, from_chance: bool) -> dict[str, object]:
        """Codecs, eyes and ears; what they reached."""
        plan, cast = self.plan, self.studio.cast
        found: dict[str, object] = {"people": list(cast.people.speakers) if cast.people else []}
        found["synthesisers"] = sorted({voice.synth for voice in cast.bank.voices})
        if from_chance:
            found |= fit_codecs(self.model, self.studio, plan.codec_conversations)
        self.model.to(self.device)
        if from_chance:
            found["cards_seen"] = round(open_eyes(self.model, plan.seed, plan.eye_steps), 4)
        if plan.ear_steps:
            words, onsets = open_ears(self.model, self.studio, plan.seed, plan.ear_steps, anchored=not from_chance)
            found |= {"words_heard": round(words, 4), "onsets_heard": round(onsets, 4)}
        return found

    def save(self) -> None:
        """Writes the state to resume from and the checkpoint as it stands, each file atomically."""
        tensors = {f"model/{n}": t.detach().contiguous() for n, t in self.model.state_dict().items()}
        tensors |= {f"optimiser/{n}": t.contiguous() for n, t in self.optimiser.state_dict().items()}
        part = self.run / "state.part"
        save_file(tensors, part)
        os.replace(part, self.run / "state.safetensors")
        progress = {"step": self.step_number, "seconds": round(self.seconds, 1), "plan": asdict(self.plan)}
        (self.run / "state.json").write_text(json.dumps(progress, indent=1) + "\n")
        tokenizer = write_tiny_tokenizer(self.run / "checkpoint" / "tokenizer.json", self.model.config.language)
        note = f"trained on a simulated world, {self.step_number} of {self.plan.steps} steps"
        save_checkpoint(self.model, self.run / "checkpoint", tokenizer, torch.float16, note=note, defaults=DEFAULTS)

    def train(
        self,
        save_every: int = 200,
        progress: Callable[[dict[str, float]], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs to `plan.steps`, or to the end of the step in which `stop` has come to be true, and saves; `progress`
        gets every log row."""
        log = self.run / "log.csv"
        # What an interrupted run logged after its last save is computed, and logged, again.
        rows = log.read_text().splitlines()[1:] if log.exists() else []
        kept = [row for row in rows if int(row.split(",", 1)[0]) <= self.step_number]
        log.write_text("\n".join([",".join(LOG_FIELDS), *kept]) + "\n")
        plan = self.plan
        source = batches(self._home, self.studio, plan.batch, plan.units, plan.seed, self.step_number)
        with closing(source), log.open("a", buffering=1) as stream:
            while self.step_number < self.plan.steps and not stop():
                batch = next(source)
                begin = time.perf_counter()
                values = self._step(batch)
                self.seconds += time.perf_counter() - begin
                row = {"step": self.step_number, "seconds": round(self.seconds, 1), **values}
                stream.write(",".join(f"{row[name]:.5g}" for name in LOG_FIELDS) + "\n")
                if progress is not None:
                    progress(row)
                if self.step_number % save_every == 0:
                    self.save()
        self.save()

    def _step(self, batch: Batch) -> dict[str, float]:
        plan = self.plan
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + self.step_number)
        units = draw_units(batch, self.spread, generator)
        e_video, e_audio = perceive(self.packed, batch, generator)
        if self.step_number >= plan.rollout_from * plan.steps:
            chosen = torch.rand(len(batch.text), generator=generator) < plan.rollout_share
            percepts = e_video.detach(), e_audio.detach()
            units = roll_out(self.packed, batch, units, *percepts, self.dtype, chosen, generator)
        losses = joint_loss(self.packed, batch, units, e_video, e_audio, self.dtype)
        losses.total.backward()
        rate = plan.rate(self.step_number)
        self.optimiser.step(rate)
        self.step_number += 1
        return {"rate": rate, **{name: float(value.detach()) for name, value in vars(losses).items()}}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _fast_bfloat16() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "avx512_bf16" in cpu.read_text()
