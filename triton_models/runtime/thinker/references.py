"""The references of a persona, picture and voice, as latents of the agent's own past."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from engine_builder.config import FRAMES_PER_UNIT
from engine_builder.manifest import ENCODE

from .. import validate
from ..engines.engine import EngineSet, Tensors, call_failed
from ..messages import MAX_PERSONA_UNITS, Float32, OpenJob, SessionError
from ..metrics import Metrics


class References:
    """Encodes with the step `encode`, which engines of before do not have."""

    def __init__(self, engines: EngineSet, metrics: Metrics) -> None:
        self._config, self._metrics = engines.config, metrics
        self._engine = engines.engines.get(ENCODE)
        self._start = engines.start_state(ENCODE) if self._engine is not None else np.zeros(0, np.float32)

    def units(self, job: OpenJob) -> int:
        """How many there are. Raises SessionError INVALID_ARGUMENT for what cannot be encoded."""
        if job.picture is None and job.voice is None:
            return 0
        if self._engine is None:
            raise SessionError("INVALID_ARGUMENT", "persona: expected no references, these engines cannot encode them")
        units = 1 if job.voice is None else len(job.voice)
        try:
            if not 1 <= units <= MAX_PERSONA_UNITS:
                raise ValueError(f"voice: expected 1 to {MAX_PERSONA_UNITS} units, got {units}")
            for pcm in () if job.voice is None else job.voice:
                validate.pcm(pcm, self._config)
            if job.picture is not None:
                validate.frames(np.repeat(job.picture[None], FRAMES_PER_UNIT, axis=0), self._config)
        except ValueError as error:
            raise SessionError("INVALID_ARGUMENT", f"persona.{error}") from None
        return units

    def latents(self, job: OpenJob, units: int) -> Iterator[tuple[Float32, Float32]]:
        """z_video [n_v, c_v] and z_audio [n_a, c_a] of each of so many `units`, zeros for what was not given.

        Each is encoded when it is asked for. Raises SessionError.
        """
        video, state = self._config.video, self._start
        still = np.zeros((video.height, video.width, 3), np.uint8) if job.picture is None else job.picture
        frames = np.repeat(still[None], FRAMES_PER_UNIT, axis=0)
        for unit in range(units):
            pcm = np.zeros(self._config.audio.unit_samples, np.float32) if job.voice is None else job.voice[unit]
            out = self._encode({"pcm": pcm[None], "frames": frames[None], "state": state[None]})
            if not all(validate.finite(array) for array in out.values()):
                raise SessionError("INTERNAL", f"persona of session {job.session!r}: unit {unit} has NaN or Inf")
            state = out["state_out"][0]
            z_video, z_audio = out["z_video"][0], out["z_audio"][0]
            yield (
                np.zeros_like(z_video) if job.picture is None else z_video,
                np.zeros_like(z_audio) if job.voice is None else z_audio,
            )

    def _encode(self, inputs: Tensors) -> Tensors:
        assert self._engine is not None
        begin = time.perf_counter()
        try:
            out = self._engine.run(inputs)
        except Exception as error:
            raise call_failed(ENCODE, error, self._metrics) from error
        self._metrics.time(ENCODE, (time.perf_counter() - begin) * 1e3, 1)
        return out
