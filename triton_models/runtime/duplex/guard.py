"""The guard: the one place where somebody else may look at what the agent says before it leaves.

A guard sees text and state of every unit, in the order of each session, and lets it pass, mutes it, or ends the
session. It works while the unit is being solved, in a thread of its own, so that it costs the unit no time unless it is
late; then the file of the guard says what happens. It never touches model state: what was muted is history all the
same. `WordList` is the example; another one is a class of the operator's own, named as `package.module:Class`.
"""

from __future__ import annotations

import importlib
import logging
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec

from ..metrics import Metrics

Kind = Literal["pass", "mute", "end"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """mute: this unit and those up to `units` in all go out silent, with the last picture and no text, for sound comes
    after its text. end: the session ends with ABORTED; its client is told the reason."""

    kind: Kind
    reason: str = ""
    units: int = 1


PASS = Verdict("pass")


class Guard(Protocol):
    """Called from one thread. What `look` raises counts as being late."""

    def look(self, session: str, unit: int, state: str, text: str) -> Verdict: ...

    def forget(self, session: str) -> None:
        """The session has ended."""
        ...


class GuardSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The guard's file, JSON. budget_ms: after its text was known, a unit waits so long for the verdict."""

    guard: str = f"{__name__}:WordList"
    options: dict[str, Any] = {}
    budget_ms: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 50.0
    late: Kind = "mute"


class WordList:
    """Looks for whole words and phrases, whatever their case, also where one is cut between two units."""

    def __init__(self, words: list[str], verdict: Literal["mute", "end"] = "mute", units: int = 12) -> None:
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"words: expected words or phrases, got {words!r:.200}")
        if verdict not in ("mute", "end") or units < 1:
            raise ValueError(f'verdict, units: expected "mute" or "end" and at least 1, got {verdict!r}, {units!r}')
        self._verdict: Kind = verdict
        self._units = units
        choice = "|".join(re.escape(word.strip()) for word in sorted(words, key=len, reverse=True))
        self._words = re.compile(rf"(?<!\w)(?:{choice})(?!\w)", re.IGNORECASE)
        self._keep = max(map(len, words)) + 1
        self._said: dict[str, str] = {}  # the end of what each session has said

    def look(self, session: str, unit: int, state: str, text: str) -> Verdict:
        if not text:
            return PASS
        said = self._said.get(session, "") + text
        found = self._words.search(said)
        self._said[session] = "" if found else said[-self._keep :]
        return Verdict(self._verdict, f"words: {found[0]!r}", self._units) if found else PASS

    def forget(self, session: str) -> None:
        self._said.pop(session, None)


class GuardPost:
    """Runs a guard beside the units. From any thread."""

    def __init__(self, guard: Guard, settings: GuardSettings, metrics: Metrics) -> None:
        self._guard, self._late, self._metrics = guard, Verdict(settings.late, "the guard was late"), metrics
        self._budget = settings.budget_ms / 1000
        self._thread = ThreadPoolExecutor(1, "guard")  # one: it hears a session's units in their order

    def begin(self, session: str, unit: int, state: str, text: str) -> tuple[Future[Verdict], float]:
        """A unit whose text is known. Give what it returns to `verdict` before the unit leaves."""
        return self._thread.submit(self._guard.look, session, unit, state, text), time.monotonic() + self._budget

    def verdict(self, begun: tuple[Future[Verdict], float]) -> Verdict:
        """What is to become of the unit; waits until its time budget is over."""
        looking, end = begun
        try:
            found = looking.result(max(0.0, end - time.monotonic()))
            kind = found.kind
        except Exception as error:
            looking.cancel()
            if not isinstance(error, TimeoutError):
                _log.error("the guard failed", exc_info=error)
            found, kind = self._late, "late"
        self._metrics.count(f"guard.{kind}")
        return found

    def forget(self, session: str) -> None:
        with suppress(RuntimeError):  # it was shut down
            self._thread.submit(self._guard.forget, session)

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def load_guard(file: Path) -> tuple[Guard, GuardSettings]:
    """The guard of a file. ValueError says what was expected; a class that cannot be found counts as such."""
    try:
        settings = msgspec.json.decode(file.read_bytes(), type=GuardSettings)
        module, _, name = settings.guard.partition(":")
        return getattr(importlib.import_module(module), name)(**settings.options), settings
    except (OSError, ValueError, TypeError, ImportError, AttributeError, msgspec.MsgspecError) as error:
        raise ValueError(f"--guard {file}: {error}") from None
