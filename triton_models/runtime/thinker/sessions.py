"""The open sessions of a thinker: the one place where their pages are given back, and the check of who may work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from ..engines.engine import EngineSet
from ..engines.tokenizer import TextTokenizer
from ..kv import retention
from ..kv.pages import BlockManager, PageTable, TooManyPages
from ..kv.pool import Pool
from ..messages import OpenJob, PerceiveJob, SessionError, ThinkJob
from .session import ThinkerSession

Job = TypeVar("Job", PerceiveJob, ThinkJob)
Result = TypeVar("Result")


class ThinkerSessions:
    """Sessions by id. `drop` is the only way out: the pages of a session are scrubbed before anybody can own them."""

    def __init__(
        self,
        engines: EngineSet,
        pool: Pool,
        blocks: BlockManager,
        tokenizer: TextTokenizer,
        max_sessions: int,
    ) -> None:
        self._config, self._state_sizes = engines.config, dict(engines.state_sizes)
        self._pool = pool
        self._blocks = blocks
        self._tokenizer = tokenizer
        self._max_sessions, self._max_pages = max_sessions, engines.max_pages
        self._sessions: dict[str, ThinkerSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[ThinkerSession]:
        return iter(list(self._sessions.values()))

    def get(self, session: str) -> ThinkerSession | None:
        return self._sessions.get(session)

    def new(self, job: OpenJob) -> ThinkerSession:
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
        need = retention.pages_needed(policy, self._config, len(prompt), self._blocks.page_tokens, None)
        if self._max_pages is not None and need is not None and need > self._max_pages:
            raise TooManyPages(job.session, need, self._max_pages)
        session = ThinkerSession.new(
            self._config,
            self._state_sizes,
            id=job.session,
            epoch=job.epoch,
            seed=job.seed,
            prompt=prompt,
            table=PageTable(self._blocks, job.session, policy, self._max_pages),
            text_stream=self._tokenizer.stream(),
        )
        self._sessions[session.id] = session
        return session

    def drop(self, session: ThinkerSession) -> bool:
        """Frees and scrubs what a session holds; False if it was dropped before."""
        if self._sessions.get(session.id) is not session:
            return False
        self._pool.scrub(session.table.close())
        del self._sessions[session.id]
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
        held = sum(session.table.pages for session in self)
        if held != self._blocks.used:
            raise RuntimeError(f"pages: sessions hold {held}, the block manager says {self._blocks.used}")
