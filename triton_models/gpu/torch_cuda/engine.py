"""Loads the engines of the `torch-cuda` target: weights onto the device, each step on the lane of its thread."""

from __future__ import annotations

from pathlib import Path

import torch

from engine_builder.config import FRAMES_PER_UNIT, ModelConfig
from engine_builder.manifest import Manifest
from triton_models.runtime.engines.engine import PERFORMER_STEPS, Engine, EngineError, EngineSet

from ..cuda.buckets import Limits
from . import codecs
from .backbone import Backbone, Exchange
from .captured import Lane
from .steps import PerformEngine, StatefulStep, ThinkEngine
from .weights import BackboneWeights

TARGET = "torch-cuda"


def load_engines(
    engine_dir: Path,
    steps: tuple[str, ...],
    device: str | None = None,
    lane: Lane | None = None,
    performer_lane: Lane | None = None,
    trusted_key: Path | None = None,
    exchange: Exchange | None = None,
) -> EngineSet:
    """The `torch-cuda` engines of a role. `device`: "cuda:0" if there is one, otherwise the interpreter on the CPU.

    `performer_lane`: of the performer's steps, where another thread calls them than the thinker's; None: the same lane.
    `trusted_key`: see `Manifest.verify`. `exchange`: of a performer that is one rank of several.
    Raises `ManifestError` or `EngineError` with the reason.
    """
    manifest = Manifest.load(engine_dir)
    manifest.verify(engine_dir, steps=steps, target=TARGET, trusted_key=trusted_key)
    where = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    if (
        manifest.precision == "fp8"
        and where.type == "cuda"
        and (found := torch.cuda.get_device_capability(where)) < (8, 9)
    ):
        raise EngineError(f"precision fp8: expected compute capability 8.9 or later, got {found[0]}.{found[1]}")
    lane = lane or Lane.on(where)
    limits = Limits(int(manifest.limits["max_batch"]), int(manifest.limits["max_pages"]))
    files = {step: engine_dir / manifest.engines[step].file for step in steps}
    backbone = None
    for step in ("think", "perform"):
        if step in files and backbone is None:
            backbone = Backbone(BackboneWeights.load(files[step], manifest.model, where), exchange)
    lanes: dict[str, Lane] = dict.fromkeys(PERFORMER_STEPS, performer_lane or lane)
    engines = {
        step: _engine(step, files[step], manifest.model, backbone, limits, lanes.get(step, lane)) for step in steps
    }
    if where.type == "cuda":
        torch.cuda.synchronize(where)  # weights were copied on another stream than the lane's
    return EngineSet.of(manifest, engine_dir, engines, limits.max_pages)


def _engine(
    step: str, path: Path, config: ModelConfig, backbone: Backbone | None, limits: Limits, lane: Lane
) -> Engine:
    if step == "perceive":
        perceive = codecs.perceive_module(config, lane.device)
        codecs.load_module(perceive, path)
        return perceive_engine(config, perceive, limits, lane)
    if step == "render":
        render = codecs.render_module(config, lane.device)
        codecs.load_module(render, path)
        return render_engine(config, render, limits, lane)
    if step == "encode":
        encode = codecs.encode_module(config, lane.device)
        codecs.load_module(encode, path)
        return media_engine(config, encode, ("z_video", "z_audio", "state_out"), limits, lane)
    if backbone is None:
        raise EngineError(f"step {step}: expected perceive, think, perform, render or encode")
    return ThinkEngine(backbone, limits, lane) if step == "think" else PerformEngine(backbone, limits, lane)


def perceive_engine(config: ModelConfig, module: codecs.PerceiveStep, limits: Limits, lane: Lane) -> StatefulStep:
    """The engine of a perceive step that lies on the lane's device."""
    return media_engine(config, module, ("e_audio", "e_video", "state_out"), limits, lane)


def media_engine(
    config: ModelConfig,
    module: codecs.PerceiveStep | codecs.EncodeStep,
    outputs: tuple[str, ...],
    limits: Limits,
    lane: Lane,
) -> StatefulStep:
    """The engine of a step that takes a unit of sound and pictures."""
    v = config.video
    shapes = {
        "pcm": ((config.audio.unit_samples,), "float32"),
        "frames": ((FRAMES_PER_UNIT, v.height, v.width, 3), "uint8"),
        "state": ((module.state_size,), "float32"),
    }
    return StatefulStep(module, shapes, outputs, limits, lane)


def render_engine(config: ModelConfig, module: codecs.RenderStep, limits: Limits, lane: Lane) -> StatefulStep:
    """The engine of a render step that lies on the lane's device."""
    v, a = config.video, config.audio
    shapes = {
        "z_video": ((v.tokens, v.latent_dim), "float32"),
        "z_audio": ((a.tokens, a.latent_dim), "float32"),
        "state": ((module.state_size,), "float32"),
    }
    return StatefulStep(module, shapes, ("pcm", "frames", "state_out"), limits, lane)
