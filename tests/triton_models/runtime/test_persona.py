"""A persona: its references become the agent's own past as in the oracle, and bad ones are refused at the border."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_streaming_parity import TOLERANCE, Duo, Script, conversation, differences

from engine_builder.checkpoint import load_checkpoint
from engine_builder.config import ModelConfig
from engine_builder.manifest import Manifest
from engine_builder.model import reference
from triton_models.runtime.duplex.options import OptionLimits, SessionOptions
from triton_models.runtime.duplex.persona import largest
from triton_models.runtime.kv import retention
from triton_models.runtime.messages import MAX_PERSONA_UNITS, OpenJob, SessionError
from triton_models.service.local import LocalRuntime, UserUnit

UNITS = 12
POLICY = {"window": {"sink": 1, "recent": 3}}


def picture(config: ModelConfig, seed: int = 0) -> np.ndarray:
    shape = (config.video.height, config.video.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def voice(config: ModelConfig, units: int, seed: int = 0) -> np.ndarray:
    shape = (units, config.audio.unit_samples)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


@pytest.fixture
def duo(mini_engines: Path) -> Iterator[Duo]:
    made = Duo(mini_engines)
    yield made
    made.close()


@pytest.mark.engine
@pytest.mark.parametrize(("shows", "speaks"), [(True, 3), (False, 2), (True, 0)])
def test_references_are_the_agents_past_as_the_oracle_has_it(
    duo: Duo, mini_checkpoint: Path, shows: bool, speaks: int
) -> None:
    model, config = load_checkpoint(mini_checkpoint), duo.config
    scripts = tuple(
        Script(
            name, prompt, seed, 2, {0: "hello"},
            picture(config, seed) if shows else None, voice(config, speaks, seed) if speaks else None,
        )
        for name, prompt, seed in (("ann", "you are welcome " * 3, 11), ("bob", "red", 12))
    )  # fmt: skip
    logs = list(duo.run(scripts, POLICY, UNITS).values())
    origins = [log.thought.origin for log in logs if log.thought is not None]
    assert origins == [len(log.prompt) + max(1, speaks) * config.latent_tokens for log in logs]

    def own(script: Script) -> tuple[torch.Tensor, torch.Tensor]:
        units = max(1, speaks)
        z_video = torch.zeros(units, config.video.tokens, config.video.latent_dim)
        z_audio = torch.zeros(units, config.audio.tokens, config.audio.latent_dim)
        if script.picture is not None:
            frames = torch.from_numpy(script.picture).expand(1, 4 * units, *script.picture.shape)
            z_video = model.video_codec.encode(frames, None)[0].view_as(z_video)
        if script.voice is not None:
            z_audio = model.audio_codec.encode(torch.from_numpy(script.voice).view(1, -1), None)[0].view_as(z_audio)
        return z_video, z_audio

    kept = retention.parse(POLICY)
    with torch.no_grad():
        video, audio = (torch.stack(part) for part in zip(*map(own, scripts), strict=True))
        whole = replace(conversation(config, logs), own_video=video, own_audio=audio)
        alike, blind, other = (
            differences(config, logs, reference.forward(model, given, kept.visible))  # type: ignore[arg-type]
            for given in (whole, replace(whole, own_video=None), replace(whole, own_video=video.flip(1) + 0.5))
        )
    assert max(alike.values()) < TOLERANCE, alike
    for wrong in (blind, other):
        assert min(wrong["logits"], wrong["velocity_video"]) > 10 * TOLERANCE, wrong


@pytest.mark.engine
def test_a_stage_refuses_what_it_cannot_encode(duo: Duo) -> None:
    face, sound = picture(duo.config), voice(duo.config, 2)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"picture": face[:-1]}, "persona.frames: expected uint8"),
        ({"voice": sound[:, :-1]}, "persona.pcm: expected 2560 float32 samples"),
        ({"voice": sound * np.nan}, "persona.pcm: expected finite samples"),
        ({"voice": np.zeros((MAX_PERSONA_UNITS + 1, 2560), np.float32)}, "persona.voice: expected 1 to 13 units"),
    ]
    for given, message in refused:
        with pytest.raises(SessionError, match=f"INVALID_ARGUMENT: {message}"):
            duo.thinker.open(OpenJob("ann", 1, **given))
        assert duo.thinker.open_sessions == 0


# -- options -----------------------------------------------------------------------------------------------------
MODEL = ModelConfig()
LIMITS = OptionLimits(model=MODEL, encodes=True)
FACE = base64.b64encode(picture(MODEL).tobytes()).decode()


def pcm16(samples: int) -> str:
    return base64.b64encode(bytes(2 * samples)).decode()


@pytest.mark.unit
def test_references_come_as_base64() -> None:
    wave = np.arange(-4000, 1000, dtype="<i2")  # two units, but for 120 samples
    given = {"prompt": "red", "picture": FACE, "voice": base64.b64encode(wave.tobytes()).decode()}
    options = SessionOptions.parse(json.dumps({"persona": given, "seed": 3}), LIMITS)
    persona = options.persona
    assert (options.prompt, options.seed, persona.units) == ("red", 3, 2)
    assert persona.picture is not None
    assert persona.voice is not None
    np.testing.assert_array_equal(persona.picture, picture(MODEL))
    np.testing.assert_allclose(persona.voice.reshape(-1)[:5000], wave / 32768)
    assert not persona.voice.reshape(-1)[5000:].any()
    alone = SessionOptions.parse(json.dumps({"persona": {"prompt": "red"}}), OptionLimits())
    assert (alone.prompt, alone.persona.units) == ("red", 0)
    largest_one = {"persona": {"picture": FACE, "voice": pcm16(13 * 2560)}, "prompt": ""}
    del largest_one["prompt"]
    assert SessionOptions.parse(json.dumps(largest_one), LIMITS).persona.units == 13
    assert len(FACE) + len(pcm16(13 * 2560)) <= largest(MODEL)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"options\.persona: expected an object of prompt, picture, voice, got '\[\]'"),
        ({"face": FACE}, r"options\.persona: expected an object"),
        ({"prompt": 5}, r"options\.prompt: expected a string, got 5"),
        ({"picture": 5}, r"options\.persona\.picture: expected base64, got '5'"),
        ({"picture": "x" * 5}, r"options\.persona\.picture: expected base64"),
        ({"picture": FACE[:-8]}, r"options\.persona\.picture: expected 12288 bytes, RGB \[64, 64, 3\], got 12282"),
        ({"voice": pcm16(2559)}, r"options\.persona\.voice: expected 2560 to 33280 samples of PCM16 at 16000 Hz"),
        ({"voice": pcm16(33281)}, r"options\.persona\.voice: expected 2560 to 33280 samples"),
        ({"voice": "é"}, r"options\.persona\.voice: expected base64"),
    ],
)
def test_bad_references_are_refused(given: Any, message: str) -> None:
    with pytest.raises(SessionError, match="INVALID_ARGUMENT: " + message):
        SessionOptions.parse(json.dumps({"persona": given}), LIMITS)


@pytest.mark.unit
def test_a_prompt_is_given_once_and_references_need_engines_that_encode() -> None:
    with pytest.raises(SessionError, match=r"options\.prompt: expected it in the persona or beside it, not twice"):
        SessionOptions.parse('{"prompt": "red", "persona": {}}', LIMITS)
    with pytest.raises(SessionError, match=r"options\.persona: expected a prompt alone, for these engines cannot"):
        SessionOptions.parse(json.dumps({"persona": {"picture": FACE}}), OptionLimits(model=MODEL))


# -- a whole server ------------------------------------------------------------------------------------------------
def users(config: ModelConfig) -> list[UserUnit]:
    rng = np.random.default_rng(3)
    frames = (4, config.video.height, config.video.width, 3)
    return [
        UserUnit(rng.normal(0, 0.1, 2560).astype(np.float32), rng.integers(0, 256, frames, dtype=np.uint8))
        for _ in range(3)
    ]


@pytest.mark.engine
def test_engines_of_before_serve_as_they_did_and_take_no_references(mini_engines: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(mini_engines, old)
    manifest = Manifest.load(old)
    (old / manifest.engines["encode"].file).unlink()
    engines = {step: entry for step, entry in manifest.engines.items() if step != "encode"}
    state = {step: size for step, size in manifest.state.items() if step != "encode"}
    assert state.keys() < manifest.state.keys()
    replace(manifest, engines=engines, state=state).save(old)
    Manifest.load(old).verify(old)
    assert Manifest.load(old).state_bytes == manifest.state_bytes
    said = []
    for directory in (mini_engines, old):
        with LocalRuntime.load(directory, pages=100, page_tokens=8) as runtime:
            face = base64.b64encode(picture(runtime.config).tobytes()).decode()
            said.append(runtime.converse(users(runtime.config), prompt="red"))
            persona = {"prompt": "red", "picture": face}
            if directory == old:
                with pytest.raises(SessionError, match=r"INVALID_ARGUMENT: options\.persona: expected a prompt alone"):
                    runtime.converse(users(runtime.config), persona=persona)
            else:
                said.append(runtime.converse(users(runtime.config), persona=persona))
            assert runtime.stats()["thinker.pages.used"] == 0
    new, seen, before = said
    for one, two, three in zip(new, before, seen, strict=True):
        np.testing.assert_array_equal(one.pcm, two.pcm)
        assert not np.array_equal(one.z_video, three.z_video)
