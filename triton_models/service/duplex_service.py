"""What stands around the `Duplex` of a server: its watch, its heartbeat and the launcher's notices."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from engine_builder.manifest import Manifest

from ..runtime.budget.admission import Admission
from ..runtime.budget.probe import load_costs
from ..runtime.duplex.contract import Call, Reply, UnitRequest
from ..runtime.duplex.duplex import Duplex
from ..runtime.duplex.guard import load_guard
from ..runtime.duplex.options import OptionLimits
from ..runtime.duplex.tracing import Tracer
from ..runtime.engines.tokenizer import TextTokenizer
from ..runtime.metrics import Metrics
from .settings import RunSettings
from .status import Heartbeat, read_notice

NOTICE_SECONDS = 0.1  # how often the watch looks for a notice, and shows that no lock is held for ever

_log = logging.getLogger(__name__)


class DuplexService:
    """Runs a `Duplex` from `start` to `stop`. Call `serve` in the order of arrival."""

    def __init__(self, run: RunSettings, call_thinker: Call, call_performer: Call) -> None:
        """Reads sizes and tokenizer of the engine directory; raises ManifestError or ValueError if they are not it."""
        settings = run.duplex
        directory = Path(settings.engines)
        manifest = Manifest.load(directory)
        manifest.verify(directory, steps=())
        config = manifest.model
        tokenizer = TextTokenizer.load(directory / manifest.tokenizer["file"], config.language)
        limits = OptionLimits.of(manifest)
        books = None
        if not settings.admit_all:
            costs = load_costs(directory, settings.threads, settings.device)
            if costs is None:
                raise ValueError(f"{directory}: expected the step costs that admission is computed from, got none")
            books = Admission.of(
                config,
                costs,
                limits.retention,
                settings.sessions,
                settings.pages,
                settings.page_tokens,
                (manifest.state_bytes, settings.state_memory),
            )
        self._tracer = Tracer(Path(settings.trace)) if settings.trace else None
        self._duplex = Duplex(
            config,
            call_thinker,
            call_performer,
            lambda text: len(tokenizer.encode(text)),
            admission=books,
            degrade=settings.degrade,
            tracer=self._tracer,
            home=_home(settings.home, settings.home_key),
            limits=limits,
            max_sessions=settings.max_sessions,
            max_in_flight=settings.max_in_flight,
            idle_ns=settings.idle_ms * 1_000_000,
            grace_ns=settings.grace_ms * 1_000_000,
            guard=load_guard(Path(settings.guard)) if settings.guard else None,
        )
        self._directory, self._poll_seconds = Path(run.status), settings.poll_ms / 1000
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._heartbeat = Heartbeat(self._directory, {"duplex": self.status})
        self._turned, self._state = time.monotonic(), self._duplex.status()

    @property
    def metrics(self) -> Metrics:
        return self._duplex.meter.metrics

    def start(self) -> None:
        self._thread.start()
        self._heartbeat.start()

    def serve(self, request: UnitRequest, reply: Reply) -> None:
        self._duplex.serve(request, reply)

    def stop(self) -> None:
        """Ends what is still open, tells the clients, and ends the watch."""
        self._heartbeat.stop()
        self._duplex.abandon("the server is shutting down")
        self._stopped.set()
        self._thread.join(2.0)
        time.sleep(NOTICE_SECONDS)  # for the closes to reach the models
        self._duplex.stop()
        if self._tracer:
            self._tracer.close()

    def _watch(self) -> None:
        """Polls the sessions, and follows the launcher's notice, of which there is at most one in a server's life."""
        told, polled = False, time.monotonic()
        while not self._stopped.wait(NOTICE_SECONDS):
            try:
                self._turned, self._state = time.monotonic(), self._duplex.status()
                if self._turned - polled >= self._poll_seconds:
                    polled = self._turned
                    self._duplex.poll()
                notice = None if told else read_notice(self._directory)
                if notice is not None:
                    told = True
                    _log.info("notice of the launcher: %s (%s)", notice.kind, notice.reason)
                    if notice.kind == "drain":
                        self._duplex.drain(notice.seconds)
                    else:
                        self._duplex.abandon(notice.reason)
            except Exception:
                _log.exception("the watch over the sessions failed")

    def status(self) -> dict[str, Any]:
        """Called in the heartbeat's thread: a watch that hangs shows in `loop_s`."""
        return {**self._state, "loop_s": round(time.monotonic() - self._turned, 3)}


def _home(name: str, key: str) -> Any:
    """None where there is one server."""
    if not key:
        return None
    from ..runtime.duplex.home import Home  # what it needs takes a tenth of a start

    return Home(name, key.encode())
