"""The renderer: clean latents become sound and pictures, in the process that solved them.

It stands behind the solver and not in the thinker, because a call between processes costs more than it saves: the
performer's answer brings pcm and frames along, and z goes back to the thinker with the next unit, which needs it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .codec_step import CodecStep
from .engine import EngineSet
from .messages import Float32, RenderJob, RenderResult, SessionError
from .metrics import Metrics


@dataclass(eq=False)
class _Voice:
    """Decoder state of one session. After a failure its sound has a hole that later units would carry on."""

    epoch: int
    state: Float32  # [Sr]
    rendered: int = -1
    failure: SessionError | None = None


class Renderer:
    """Decoder states of all sessions, from their unit 0 to `close`. One thread calls a Renderer."""

    def __init__(self, engines: EngineSet, metrics: Metrics | None = None, max_sessions: int = 1024) -> None:
        self.config = engines.config
        self.metrics = metrics or Metrics()
        self._step = CodecStep(engines, "render", ("pcm", "state_out"), self.metrics)
        self._zeros = np.zeros(engines.state_sizes["render"], dtype=np.float32)
        v, a = self.config.video, self.config.audio
        self._shapes = (v.tokens, v.latent_dim), (a.tokens, a.latent_dim)
        self._max_sessions = max_sessions
        self._voices: dict[str, _Voice] = {}

    def __len__(self) -> int:
        return len(self._voices)

    def alone(self, session: str) -> bool:
        """Whether no other session is open here."""
        return len(self._voices) == 1 and session in self._voices

    def render(self, jobs: Sequence[RenderJob]) -> list[RenderResult | SessionError]:
        """Decodes clean latents. At most one job of a session in a call."""
        results: list[RenderResult | SessionError | None] = [None] * len(jobs)
        rows: list[tuple[int, _Voice, RenderJob]] = []
        for i, job in enumerate(jobs):
            try:
                rows.append((i, self._voice(job), job))
            except SessionError as error:
                results[i] = error
        inputs = [{"z_video": j.z_video, "z_audio": j.z_audio, "state": voice.state} for _, voice, j in rows]
        outcomes = self._step.run(inputs, [(job.unit, job.session) for _, _, job in rows])
        for (i, voice, job), outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, SessionError):
                results[i] = voice.failure = outcome
                continue
            out, ms = outcome
            voice.state, voice.rendered = out["state_out"], job.unit
            results[i] = RenderResult(job.session, job.epoch, job.unit, out["pcm"], out["frames"], ms={"render": ms})
        return [result for result in results if result is not None]

    def close(self, session: str, epoch: int) -> None:
        """Forgets a session; an unknown one or an older epoch is no error."""
        voice = self._voices.get(session)
        if voice is not None and epoch >= voice.epoch:
            del self._voices[session]

    def _voice(self, job: RenderJob) -> _Voice:
        """The session of a job; unit 0 makes it. Raises SessionError."""
        shapes = (
            job.z_video.shape,
            job.z_audio.shape,
        )  # the solver, whence they come, has seen to it that they are finite
        if shapes != self._shapes:
            what = (
                f"z_video, z_audio: expected {self._shapes[0]} and {self._shapes[1]}, got {shapes[0]} and {shapes[1]}"
            )
            raise SessionError("INVALID_ARGUMENT", what)
        voice = self._voices.get(job.session)
        if voice is None:
            voice = self._open(job)
        if voice.failure is not None:
            raise voice.failure
        if job.unit != voice.rendered + 1:
            what = f"unit: expected {voice.rendered + 1}, the next one to render, got {job.unit}"
            raise SessionError("INVALID_ARGUMENT", what)
        return voice

    def _open(self, job: RenderJob) -> _Voice:
        if job.unit != 0:
            raise SessionError("NOT_FOUND", f"session {job.session!r} has rendered nothing yet, got {job.unit}")
        if len(self._voices) >= self._max_sessions:
            raise SessionError("RESOURCE_EXHAUSTED", f"sessions: all {self._max_sessions} of this renderer are open")
        voice = self._voices[job.session] = _Voice(job.epoch, self._zeros)
        return voice
