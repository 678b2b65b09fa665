"""What the thinker holds of each conversation: its unit clock, who may work, the one way its pages go back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from engine_builder.config import ModelConfig

from ..engines.engine import EngineSet
from ..engines.states import States
from ..engines.tokenizer import TextStream, TextTokenizer
from ..kv import retention
from ..kv.pages import BlockManager, PageTable, TooManyPages
from ..kv.pool import Pool
from ..messages import MAX_QUEUED_TEXT, Float32, OpenJob, PerceiveJob, SessionError, ThinkJob

Job = TypeVar("Job", PerceiveJob, ThinkJob)
Result = TypeVar("Result")


@dataclass(eq=False)
class ThinkerSession:
    """Pages, codec states and the last latents of one session. The counters name the unit each stage finished last.

    `failure` is set once the history was touched and the unit could not be completed: such a session only closes.
    """

    id: str
    epoch: int
    seed: int
    prompt: list[int]
    table: PageTable
    text_stream: TextStream
    encoder_state: Any  # of `CodecStep.states`
    z_video: Float32  # z of the unit before `thought`, [n_v, c_v]
    z_audio: Float32  # [n_a, c_a]
    e_video: Float32  # e of unit `perceived`, [n_ev, d]
    e_audio: Float32  # [n_ea, d]
    typed: deque[int] = field(default_factory=deque)  # at most MAX_QUEUED_TEXT
    persona_units: int = 0  # of the agent's past, which the references give
    prefilled: int = 0  # tokens of prompt and persona that are in the history
    ready: bool = False  # all of them are
    perceived: int = -1
    thought: int = -1
    perceive_ms: float = 0.0
    failure: SessionError | None = None

    @classmethod
    def new(
        cls,
        config: ModelConfig,
        encoder_state: Any,
        *,
        id: str,
        epoch: int,
        seed: int,
        prompt: list[int],
        table: PageTable,
        text_stream: TextStream,
    ) -> ThinkerSession:
        """A session before its first unit: z_{-1} is zeros (DESIGN 3), its codec begins with `encoder_state`."""

        def zeros(*shape: int) -> Float32:
            return np.zeros(shape, dtype=np.float32)

        v, a, d = config.video, config.audio, config.backbone.hidden_size
        return cls(
            id=id,
            epoch=epoch,
            seed=seed,
            prompt=prompt,
            table=table,
            text_stream=text_stream,
            encoder_state=encoder_state,
            z_video=zeros(v.tokens, v.latent_dim),
            z_audio=zeros(a.tokens, a.latent_dim),
            e_video=zeros(v.perceive_tokens, d),
            e_audio=zeros(a.perceive_tokens, d),
        )

    @property
    def origin(self) -> int:
        """RoPE position at which unit 0 begins: the number of tokens of prompt and persona."""
        return len(self.prompt) + self.persona_units * (len(self.z_video) + len(self.z_audio))

    def check_perceive(self, unit: int) -> None:
        """ValueError unless `unit` is the one to perceive: e has one place, so think(unit - 1) comes first."""
        _expect("perceive", unit, self.perceived + 1)
        _expect_stage("perceive", unit, "think", self.thought, unit - 1)

    def check_think(self, unit: int) -> None:
        """ValueError unless e of `unit` is here."""
        _expect("think", unit, self.thought + 1)
        _expect_stage("think", unit, "perceive", self.perceived, unit)

    def queue_text(self, ids: list[int]) -> None:
        """Appends typed text; ValueError if more would wait than MAX_QUEUED_TEXT tokens."""
        room = MAX_QUEUED_TEXT - len(self.typed)
        if len(ids) > room:
            raise ValueError(f"text: expected at most {room} more tokens ({len(self.typed)} wait), got {len(ids)}")
        self.typed.extend(ids)

    def take_text(self, count: int) -> list[int]:
        """Up to `count` typed tokens for the unit at hand; the rest waits for later units."""
        return [self.typed.popleft() for _ in range(min(count, len(self.typed)))]


class ThinkerSessions:
    """Sessions by id. `drop` is the only way out: the pages of a session are scrubbed before anybody can own them."""

    def __init__(
        self,
        engines: EngineSet,
        pool: Pool,
        blocks: BlockManager,
        tokenizer: TextTokenizer,
        states: States,
        max_sessions: int,
    ) -> None:
        """states: those of the encoders"""
        self._config, self._states = engines.config, states
        self._pool = pool
        self._blocks = blocks
        self._tokenizer = tokenizer
        self._max_sessions, self._max_pages = max_sessions, engines.max_pages
        self._sessions: dict[str, ThinkerSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session: str) -> ThinkerSession | None:
        return self._sessions.get(session)

    def new(self, job: OpenJob, persona_units: int = 0) -> ThinkerSession:
        """A session that is not ready yet. Raises SessionError ALREADY_EXISTS, RESOURCE_EXHAUSTED, INVALID_ARGUMENT."""
        if job.session in self._sessions:
            raise SessionError("ALREADY_EXISTS", f"session {job.session!r} is open; end it before starting it again")
        if len(self._sessions) >= self._max_sessions:
            raise SessionError("RESOURCE_EXHAUSTED", f"sessions: all {self._max_sessions} of this thinker are open")
        try:
            policy = retention.parse(job.retention)
        except ValueError as error:
            raise SessionError("INVALID_ARGUMENT", str(error)) from None
        prompt = self._tokenizer.encode(job.prompt)
        tokens = len(prompt) + persona_units * self._config.latent_tokens
        need = retention.pages_needed(policy, self._config, tokens, self._blocks.page_tokens, None)
        if self._max_pages is not None and need is not None and need > self._max_pages:
            raise TooManyPages(job.session, need, self._max_pages)
        table = PageTable(self._blocks, job.session, policy, self._max_pages)
        session = ThinkerSession.new(
            self._config,
            self._states.open(),
            id=job.session,
            epoch=job.epoch,
            seed=job.seed,
            prompt=prompt,
            table=table,
            text_stream=self._tokenizer.stream(),
        )
        session.persona_units = persona_units
        self._sessions[session.id] = session
        return session

    def drop(self, session: ThinkerSession) -> bool:
        """Frees and scrubs what a session holds; False if it was dropped before."""
        if self._sessions.get(session.id) is not session:
            return False
        del self._sessions[session.id]
        self._states.close(session.encoder_state)
        self._pool.scrub(session.table.close())
        return True

    def admitted(
        self, jobs: Sequence[Job], results: dict[int, Result | SessionError]
    ) -> Iterator[tuple[int, Job, ThinkerSession]]:
        """The jobs whose session can take them, with their index; the others get their error in `results`."""
        seen: set[str] = set()
        for i, job in enumerate(jobs):
            if i in results:
                continue
            session = self._sessions.get(job.session)
            if session is None or not session.ready:
                results[i] = SessionError("NOT_FOUND", f"session {job.session!r} is not open in this thinker")
            elif job.epoch < session.epoch:
                results[i] = SessionError(
                    "ABORTED", f"session {job.session!r}: epoch {job.epoch} is over, it was opened at {session.epoch}"
                )
            elif job.session in seen:
                results[i] = SessionError("INVALID_ARGUMENT", f"session {job.session!r}: two jobs in one batch")
            elif session.failure is not None:
                results[i] = session.failure
            else:
                seen.add(job.session)
                yield i, job, session

    def check_integrity(self) -> None:
        """RuntimeError if a page is lost, has two owners, or an owner that is no session."""
        self._blocks.check_integrity()
        held = sum(session.table.pages for session in self._sessions.values())
        if held != self._blocks.used:
            raise RuntimeError(f"pages: sessions hold {held}, the block manager says {self._blocks.used}")


def _expect(stage: str, unit: int, expected: int) -> None:
    if unit != expected:
        raise ValueError(f"unit: expected {expected}, the next one to {stage}, got {unit}")


def _expect_stage(stage: str, unit: int, before: str, done: int, needed: int) -> None:
    if done < needed:
        raise ValueError(f"unit: {stage} {unit} expected {before} {needed} before it, got {before} up to {done}")
