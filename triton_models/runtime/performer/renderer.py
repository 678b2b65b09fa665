"""The renderer: clean latents become sound and pictures, in the process that solved them.

It stands behind the solver and not in the thinker, because a call between processes costs more than it saves: the
performer's answer brings pcm and frames along, and z goes back to the thinker with the next unit, which needs it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from ..engines.codec_step import CodecStep
from ..engines.engine import EngineSet
from ..messages import PerformResult, SessionError
from ..metrics import Metrics


@dataclass(eq=False)
class _Voice:
    """Decoder state of one session. After a failure its sound has a hole that later units would carry on."""

    epoch: int
    state: Any  # of `CodecStep.states`
    rendered: int = -1
    failure: SessionError | None = None


class Renderer:
    """Decoder states of all sessions, from their unit 0 to `close`. One thread calls a Renderer."""

    def __init__(self, engines: EngineSet, metrics: Metrics | None = None, max_sessions: int = 1024) -> None:
        self.config = engines.config
        self.metrics = metrics or Metrics()
        self._step = CodecStep(engines, "render", ("pcm", "state_out"), self.metrics, max_sessions)
        v, a = self.config.video, self.config.audio
        self._shapes = (v.tokens, v.latent_dim), (a.tokens, a.latent_dim)
        self._max_sessions = max_sessions
        self._voices: dict[str, _Voice] = {}

    def __len__(self) -> int:
        return len(self._voices)

    def render(self, solved: Sequence[PerformResult]) -> list[PerformResult | SessionError]:
        """Decodes clean latents: results of the solver with pcm and frames. At most one of a session in a call."""
        results: list[PerformResult | SessionError] = list(solved)
        rows: list[tuple[int, _Voice, PerformResult]] = []
        for i, u in enumerate(solved):
            try:
                rows.append((i, self._voice(u), u))
            except SessionError as error:
                results[i] = error
        inputs = [{"z_video": u.z_video, "z_audio": u.z_audio} for _, _, u in rows]
        states = [voice.state for _, voice, _ in rows]
        outcomes = self._step.run(inputs, states, [(u.unit, u.session) for _, _, u in rows])
        for (i, voice, u), outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, SessionError):
                results[i] = voice.failure = outcome
                continue
            out, voice.state, ms = outcome
            voice.rendered = u.unit
            results[i] = structs.replace(u, pcm=out["pcm"], frames=out["frames"], ms={**u.ms, "render": ms})
        return results

    def close(self, session: str, epoch: int) -> None:
        """Forgets a session; an unknown one or an older epoch is no error."""
        voice = self._voices.get(session)
        if voice is not None and epoch >= voice.epoch:
            del self._voices[session]
            self._step.states.close(voice.state)

    def _voice(self, solved: PerformResult) -> _Voice:
        """The session of a unit; unit 0 makes it. Raises SessionError."""
        # Shapes alone: that the numbers are finite, the solver has seen, and z comes from nowhere else.
        shapes = solved.z_video.shape, solved.z_audio.shape
        if shapes != self._shapes:
            (video, audio), (got_video, got_audio) = self._shapes, shapes
            what = f"z_video, z_audio: expected {video} and {audio}, got {got_video} and {got_audio}"
            raise SessionError("INVALID_ARGUMENT", what)
        voice = self._voices.get(solved.session)
        if voice is None:
            voice = self._open(solved)
        if voice.failure is not None:
            raise voice.failure
        if solved.unit != voice.rendered + 1:
            what = f"unit: expected {voice.rendered + 1}, the next one to render, got {solved.unit}"
            raise SessionError("INVALID_ARGUMENT", what)
        return voice

    def _open(self, solved: PerformResult) -> _Voice:
        if solved.unit != 0:
            raise SessionError("NOT_FOUND", f"session {solved.session!r} has rendered nothing yet, got {solved.unit}")
        if len(self._voices) >= self._max_sessions:
            raise SessionError("RESOURCE_EXHAUSTED", f"sessions: all {self._max_sessions} of this renderer are open")
        voice = self._voices[solved.session] = _Voice(solved.epoch, self._step.states.open())
        return voice
