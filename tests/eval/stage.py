"""Conversations through the real engines and the serving runtime, many sessions in lockstep and in this process.

Thinker, performer, workers, page tables, retention, batching, scheduler and noise are those that Triton runs. Only the
wire and the clock are left out, so that minutes of conversation take seconds; `served` puts those back.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from client.media.sound import to_pcm16
from engine_builder.training.judges.closed_loop import Performance
from engine_builder.training.world.conversation import Conversation
from engine_builder.training.world.echo import EchoPath
from triton_models.runtime.engines.engine import PERFORMER_STEPS, THINKER_STEPS
from triton_models.runtime.kv import retention
from triton_models.runtime.messages import MAX_PERSONA_UNITS
from triton_models.service.load import load_engines
from triton_models.service.local import AgentUnit, LocalRuntime, LocalSession

from .parts import TRAINED_RETENTION

PAGE_TOKENS = 16
_PROMPT = 48  # tokens of the longest prompt
FIRST_NOISE = 1000  # session i of a stage has seed FIRST_NOISE + i


@dataclass(frozen=True)
class Lateness:
    """A machine that is late in `share` of the units, as the degradation ladder would answer it: one solver step; in
    half of them the last picture again; in a quarter of them silence."""

    share: float = 1 / 3
    seed: int = 0

    def draw(self, talk: int, units: int) -> np.ndarray:
        """int [units]: 0 in time, 1 one solver step, 2 also the last picture, 3 also silence."""
        rng = np.random.default_rng([self.seed, talk])
        late = rng.random(units) < self.share
        return late * rng.choice([1, 2, 3], p=[0.5, 0.25, 0.25], size=units)


class Stage:
    """A runtime for `sessions` conversations of up to `units` units."""

    def __init__(
        self,
        engine_dir: Path,
        sessions: int,
        units: int,
        keep: object = None,
        steps: int | None = None,
        lateness: Lateness | None = None,
    ) -> None:
        engines = load_engines(engine_dir, (*THINKER_STEPS, *PERFORMER_STEPS), 1)
        self.config = engines.config
        self.keep = TRAINED_RETENTION if keep is None else keep
        self.steps, self.lateness = steps or self.config.solver.steps, lateness
        policy = retention.parse(self.keep)
        prompt = _PROMPT + MAX_PERSONA_UNITS * self.config.latent_tokens
        pages = retention.pages_needed(policy, self.config, prompt, page_tokens=PAGE_TOKENS, units=units)
        if pages is None:
            raise ValueError(f"retention: {self.keep!r} has no bound for {units} units")
        self._runtime = LocalRuntime(engines, pages=1 + sessions * pages, page_tokens=PAGE_TOKENS)

    def __enter__(self) -> Stage:
        self._runtime.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runtime.close()

    def run(
        self,
        conversations: list[Conversation],
        on_unit: Callable[[int], None] | None = None,
        echoes: Sequence[EchoPath] = (),
    ) -> list[Performance]:
        """Plays conversations of one length side by side; raises SessionError if the runtime refuses a unit.

        on_unit: called with every unit that is done; what it raises ends the play.
        echoes: for each conversation, how what the model says comes back into its microphone; none if empty.
        """
        return [performance(self.config.language.states, units) for units in self.play(conversations, on_unit, echoes)]

    def play(
        self,
        conversations: list[Conversation],
        on_unit: Callable[[int], None] | None = None,
        echoes: Sequence[EchoPath] = (),
    ) -> list[list[AgentUnit]]:
        """Like `run`, with all that the runtime answers."""
        return asyncio.run(self._play(conversations, on_unit, echoes))

    async def _play(
        self, talks: list[Conversation], on_unit: Callable[[int], None] | None, echoes: Sequence[EchoPath]
    ) -> list[list[AgentUnit]]:
        sessions: list[LocalSession] = []
        done: list[list[AgentUnit]] = [[] for _ in talks]
        count = len(talks[0].state)
        late = [self.lateness.draw(i, count) if self.lateness else np.zeros(count, int) for i in range(len(talks))]
        try:
            for i, talk in enumerate(talks):
                sessions.append(
                    await self._runtime.open(
                        persona=asked(talk), seed=FIRST_NOISE + i, retention=self.keep, steps=self.steps
                    )
                )
            for unit in range(count):
                for session, measures in zip(sessions, late, strict=True):
                    session.steps = 1 if measures[unit] else self.steps
                microphones = [talk.user_pcm[unit] for talk in talks]
                if echoes and unit:
                    # What was answered to the unit before is played while this one is recorded.
                    back = [path.heard(units[-1].pcm) for path, units in zip(echoes, done, strict=True)]
                    microphones = [np.clip(pcm + echo, -1, 1) for pcm, echo in zip(microphones, back, strict=True)]
                answers = await asyncio.gather(
                    *(
                        session.step(pcm, talk.camera[unit], talk.scenario.typed.get(unit, ""))
                        for session, pcm, talk in zip(sessions, microphones, talks, strict=True)
                    )
                )
                for units, answer, measures in zip(done, answers, late, strict=True):
                    units.append(_degraded(answer, int(measures[unit]), units[-1] if units else None))
                if on_unit is not None:
                    on_unit(unit)
        finally:
            for session in sessions:
                await session.close()
        return done


def asked(talk: Conversation) -> dict[str, str]:
    """The session option `persona`."""
    said = {"prompt": talk.persona.prompt(talk.scenario.language)}
    if talk.persona.picture is not None:
        said["picture"] = base64.b64encode(talk.persona.picture.tobytes()).decode()
    if talk.persona.sound is not None:
        said["voice"] = base64.b64encode(to_pcm16(talk.persona.sound.reshape(-1))).decode()
    return said


def performance(states: tuple[str, ...], units: list[AgentUnit]) -> Performance:
    """What the judges take."""
    return Performance(
        np.array([states.index(unit.state) for unit in units], dtype=np.int64),
        [list(unit.slots[1:]) for unit in units],
        np.stack([unit.pcm for unit in units]),
        np.stack([unit.frames for unit in units]),
    )


def _degraded(answer: AgentUnit, measure: int, before: AgentUnit | None) -> AgentUnit:
    """The unit as a listener meets it after measures 2 and 3; the model's own history keeps the real one."""
    if measure < 2:
        return answer
    frames = answer.frames if before is None else np.repeat(before.frames[-1:], len(answer.frames), axis=0)
    pcm = np.zeros_like(answer.pcm) if measure == 3 else answer.pcm
    return replace(answer, frames=frames, pcm=pcm)
