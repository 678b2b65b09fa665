"""The thinker: perceives user units and thinks context blocks into committed K/V.

Two batched calls carry one unit of a session, in this order; the unit clock of the session enforces it:

    perceive(k)   encoder state, e_k                                              needs think(k-1)
    think(k)      evict, block pass, slot passes, K/V of unit k committed         needs perceive(k), and brings z_{k-1}

A row that fails never touches its neighbours: its result is a SessionError and nothing that is not finite is committed.
Refused input (INVALID_ARGUMENT) leaves the session as it was; a failure after its history was touched ends the session,
which then answers every job with that error until it is closed. One thread calls a Thinker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from msgspec import structs

from .. import validate
from ..engines.codec_step import CodecStep
from ..engines.engine import EngineSet, call_failed
from ..engines.tokenizer import TextTokenizer
from ..kv.pages import BlockManager
from ..kv.pool import Pool
from ..messages import CloseJob, OpenJob, PerceiveJob, PerformJob, SessionError, ThinkJob, ThinkResult
from ..metrics import Metrics
from .passes import ThinkPass, ThinkRow
from .references import References
from .sessions import ThinkerSession, ThinkerSessions

# Prompt tokens of one think call: about the cost of a few blocks, so an opening delays nobody long. The longer the
# history, the more a token costs: over 5,000 tokens 16 of them take as long as 64 over 1,500 (tiny, CPU).
PROMPT_CHUNK = 64

Item = TypeVar("Item")


def prompt_chunk(start: int) -> int:
    """How many prompt tokens the call takes that begins at `start`: a function of the place alone, so that a session
    replays bit for bit."""
    return PROMPT_CHUNK if start < 1024 else PROMPT_CHUNK // 2 if start < 2048 else PROMPT_CHUNK // 4


class Thinker:
    """Sessions of one thinker over one pool; `blocks` is the only allocator of its pages."""

    def __init__(
        self,
        engines: EngineSet,
        pool: Pool,
        blocks: BlockManager,
        tokenizer: TextTokenizer,
        max_sessions: int = 1024,
        hand_over: Callable[[PerformJob], None] | None = None,
        seal: Callable[[ThinkResult], bytes] | None = None,
    ) -> None:
        """hand_over: takes a thought unit to the performer of this stage; None: results say where its history is
        seal: of such a result, for the performer of another stage
        """
        self.config = engines.config
        self.metrics = Metrics()
        self._engines = engines
        self._pool = pool
        self._blocks = blocks
        self._tokenizer = tokenizer
        self._hand_over, self._seal = hand_over, seal
        self._pass = ThinkPass(engines, pool)
        self._encoder = CodecStep(engines, "perceive", ("e_audio", "e_video", "state_out"), self.metrics, max_sessions)
        self._references = References(engines, self.metrics)
        self._sessions = ThinkerSessions(engines, pool, blocks, tokenizer, self._encoder.states, max_sessions)

    # -- opening and closing -----------------------------------------------------------------------------------
    def open(self, job: OpenJob) -> None:
        """Opens a session and prefills its persona. Raises SessionError."""
        for _ in self.open_stepwise(job):
            pass

    def open_stepwise(self, job: OpenJob) -> Iterator[None]:
        """`open`, but yields before each chunk of prompt and references, so that other sessions are served in between.

        Raises SessionError: ALREADY_EXISTS, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, INTERNAL, or ABORTED if the session
        was closed meanwhile. After an error, or when the iterator is dropped, the session holds nothing.
        """
        session = self._sessions.new(job, self._references.units(job))
        self.metrics.count("opened")
        try:
            for prefill in self._prefills(session, job):
                yield
                if self._sessions.get(session.id) is not session:
                    raise SessionError("ABORTED", f"session {session.id!r} was closed while it was opening")
                begin, done = time.perf_counter(), session.prefilled
                crashed = self._guarded("prompt", prefill)
                if crashed:
                    raise crashed
                self._timed("prompt", begin, session.prefilled - done)
            session.ready = True
        finally:
            if not session.ready:
                self._drop(session)

    def _prefills(self, session: ThinkerSession, job: OpenJob) -> Iterator[Callable[[], None]]:
        """What an opening does, call by call: the prompt in chunks, then the agent's own past, a unit at a time."""
        while (left := len(session.prompt) - session.prefilled) > 0:
            yield partial(self._pass.prefill, session, min(prompt_chunk(session.prefilled), left))
        latents = self._references.latents(job, session.persona_units)
        for _ in range(session.persona_units):
            yield lambda: self._pass.prefill_own(session, *next(latents))

    def close(self, job: CloseJob) -> None:
        """Frees and scrubs the pages of a session; an unknown session or an older epoch is no error."""
        session = self._sessions.get(job.session)
        if session is not None and job.epoch >= session.epoch:
            self._drop(session)

    @property
    def open_sessions(self) -> int:
        return len(self._sessions)

    @property
    def max_batch(self) -> int:
        """Rows that one engine call takes; longer lists of jobs are cut."""
        return self._engines.max_batch

    def is_open(self, session: str) -> bool:
        """True from `open` to `close`, whatever the epoch."""
        return self._sessions.get(session) is not None

    def stats(self) -> dict[str, float]:
        """Sessions and pages now; counters and timings so far."""
        pages = {"pages.free": self._blocks.free, "pages.used": self._blocks.used, "pages.total": self._blocks.total}
        return {"sessions": len(self._sessions), **pages, **self.metrics.snapshot()}

    def check_integrity(self) -> None:
        """RuntimeError if a page is lost, has two owners, or an owner that is no session."""
        self._sessions.check_integrity()

    def _drop(self, session: ThinkerSession) -> None:
        if self._sessions.drop(session):
            self.metrics.count("closed")

    # -- perceive ----------------------------------------------------------------------------------------------
    def perceive(self, jobs: Sequence[PerceiveJob]) -> list[float | SessionError]:
        """Encodes user units; the result of each is its milliseconds. At most one job of a session in a call."""
        results: dict[int, float | SessionError] = {}
        rows: list[tuple[int, ThinkerSession, PerceiveJob]] = []
        for i, job, session in self._sessions.admitted(jobs, results):
            try:
                session.check_perceive(job.unit)
                validate.pcm(job.pcm, self.config)
                validate.frames(job.frames, self.config)
            except ValueError as error:
                results[i] = SessionError("INVALID_ARGUMENT", str(error))
                continue
            rows.append((i, session, job))
        inputs = [{"pcm": job.pcm, "frames": job.frames} for _, _, job in rows]
        states = [session.encoder_state for _, session, _ in rows]
        outcomes = self._encoder.run(inputs, states, [(job.unit, job.session) for _, _, job in rows])
        for (i, session, job), outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, SessionError):
                results[i] = self._fail(session, outcome)
                continue
            out, session.encoder_state, ms = outcome
            session.e_audio, session.e_video = out["e_audio"], out["e_video"]
            session.perceived, session.perceive_ms = job.unit, ms
            results[i] = ms
        return [results[i] for i in range(len(jobs))]

    # -- think -------------------------------------------------------------------------------------------------
    def think(self, jobs: Sequence[ThinkJob]) -> list[ThinkResult | SessionError]:
        """Block pass and slots of one unit each; perceives first where a job brings its `perceive` along.

        At most one job of a session in a call.
        """
        results: dict[int, ThinkResult | SessionError] = {}
        along = [(i, job.perceive) for i, job in enumerate(jobs) if job.perceive is not None]
        for (i, _), outcome in zip(along, self.perceive([job for _, job in along]), strict=True):
            if isinstance(outcome, SessionError):
                results[i] = outcome
        rows: list[tuple[int, ThinkJob, ThinkRow]] = []
        for i, job, session in self._sessions.admitted(jobs, results):
            try:
                rows.append((i, job, self._begin(session, job)))
            except ValueError as error:
                results[i] = SessionError("INVALID_ARGUMENT", str(error))
        for batch in self._batches(rows):
            begin, engine_begin = time.perf_counter(), self._pass.engine_ms
            thinking = [row for _, _, row in batch]
            crashed = self._guarded("think", lambda thinking=thinking: self._pass.think(thinking))
            self._timed("think", begin, len(batch))
            ms = self._pass.engine_ms - engine_begin
            for i, job, row in batch:
                error = crashed or row.error
                results[i] = self._fail(row.session, error) if error else self._thought(job, row, ms)
        return [results[i] for i in range(len(jobs))]

    def _begin(self, session: ThinkerSession, job: ThinkJob) -> ThinkRow:
        """Checks the job, queues its text and evicts: after this the history has moved to `job.unit`."""
        session.check_think(job.unit)
        if job.unit > 0:
            v, a = self.config.video, self.config.audio
            if job.z_video is None or job.z_audio is None:
                raise ValueError(f"z: think {job.unit} expected the latents of unit {job.unit - 1}, got none")
            z_video = validate.latents("z_video", job.z_video, v.tokens, v.latent_dim)
            z_audio = validate.latents("z_audio", job.z_audio, a.tokens, a.latent_dim)
        else:
            z_video, z_audio = session.z_video, session.z_audio  # zeros, or a persona's picture
        if job.interrupt:
            session.typed.clear()
        if job.text:
            session.queue_text(self._tokenizer.encode(validate.text(job.text)))
        session.z_video, session.z_audio = z_video, z_audio
        evicted = session.table.evict(job.unit)
        self._pool.scrub(evicted)
        self.metrics.count("pages.evicted", len(evicted))
        return ThinkRow(session, job.unit, session.take_text(self.config.language.text_tokens))

    def _thought(self, job: ThinkJob, row: ThinkRow, ms: float) -> ThinkResult:
        session, history = row.session, row.session.table.view()
        session.thought = row.unit
        name, seed, origin = session.id, session.seed, session.origin
        if self._hand_over is not None:  # before anything else: the performer waits for it
            self._hand_over(PerformJob(name, job.epoch, row.unit, seed, job.steps, job.deadline_ns, origin, history))
        thought = ThinkResult(
            session=name,
            epoch=job.epoch,
            unit=row.unit,
            state=self.config.language.state_name(row.slots[0]),
            text=session.text_stream.feed(row.slots[1:]),
            heard=self._tokenizer.heard(row.slots[1:]),
            history=None if self._hand_over is not None else history,
            origin=origin,
            seed=seed,
            slots=tuple(row.slots),
            ms={"perceive": session.perceive_ms, "think": ms},
        )
        return thought if self._seal is None else structs.replace(thought, seal=self._seal(thought))

    # -- inside ------------------------------------------------------------------------------------------------
    def _batches(self, rows: list[Item]) -> Iterator[list[Item]]:
        for start in range(0, len(rows), self._engines.max_batch):
            yield rows[start : start + self._engines.max_batch]

    def _guarded(self, step: str, call: Callable[[], None]) -> SessionError | None:
        """Runs an engine call; a failure of the engine itself is logged and becomes the error of all its rows."""
        try:
            call()
        except SessionError as error:
            return error
        except Exception as error:
            return call_failed(step, error, self.metrics)
        return None

    def _fail(self, session: ThinkerSession, error: SessionError) -> SessionError:
        """Ends a session whose unit could not be completed; it keeps its pages until it is closed."""
        session.failure = error
        self.metrics.count("failed")
        return error

    def _timed(self, step: str, begin: float, rows: int) -> None:
        self.metrics.time(step, (time.perf_counter() - begin) * 1000.0, rows)
