"""Keeps one server running: starts it, watches it, restarts it when a part of it dies, and ends it in good order.

start --> ready --(fault)--> streams are told --> server is killed --> [backoff] --> start ...
             +--(SIGTERM)--> drain: no new sessions, the open ones may go on --> server is stopped --> exit 0
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..service.status import Notice, prepare, write_notice
from .awake import KeepAwake
from .connections import Connections
from .health import DRAINING, Health, Readiness
from .server_process import ServerError, ServerPlan, ServerProcess, clean_shared_memory, hide_shared_memory, reached
from .web import HealthServer

TICK_SECONDS = 0.2
TOLD_SECONDS = 0.8  # after a fault: time for `duplex` to send every open stream its error
RESTART_WINDOW = 120.0  # seconds in which restarts are counted
BACKOFF_SECONDS = (0.0, 1.0, 2.0, 4.0, 8.0)
STEADY_SECONDS = 10.0  # who served for so long is no crash loop, and is started anew at once
STARVED = "is not healthy"  # a stub that Triton found without life for a second: a busy machine, and no bad engines
ANSWER_SECONDS = 10.0  # to answer what is under way once sessions are ended
DRAINED_SECONDS = 0.5  # once no session is left: whoever sends on hears that the server goes


@dataclass(frozen=True)
class SupervisorOptions:
    start_seconds: float = 300.0
    drain_seconds: float = 0.0  # for which open sessions may go on
    max_restarts: int = 5


class Supervisor:
    """Runs until `stop` is called (from a signal handler) or the server cannot be kept up."""

    def __init__(
        self,
        plan: ServerPlan,
        status: Path,
        state: Path,
        facts: dict[str, Any],
        listener: socket.socket,
        options: SupervisorOptions,
        say: Callable[[str], None],
        awake: KeepAwake | None = None,
        agent: socket.socket | None = None,
        connections: Connections | None = None,
    ) -> None:
        """status: directory that the models' records get.  state: server.json.  facts: what it says beside pids.
        listener: where /ready is answered.  agent: where a balancer hears of room.
        awake: held while a session is open; None lets cores sleep as they like.
        connections: the watch over those of gRPC; None: nobody is cut off."""
        self._plan, self._status, self._state, self._facts = plan, status, state, facts
        self._options, self._say, self._awake = options, say, awake
        self._connections = connections
        self._readiness = Readiness(connections.ended if connections is not None else {})
        self._web = HealthServer(self._readiness, listener, agent)
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._faults: deque[float] = deque(maxlen=options.max_restarts + 1)
        self._hasty = 0  # faults in a row, of servers that served less than STEADY_SECONDS
        self._since = 0.0  # when this server was ready
        self._server = ServerProcess(plan)
        self._health = Health(self._server, status)

    @property
    def health_port(self) -> int:
        return self._web.port

    def stop(self) -> None:
        """Asks for an orderly end; asked again, the end comes without draining."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def run(self) -> int:
        """Exit code: 0 after `stop`, 1 if the server could not be started or died too often."""
        try:
            while not self._stop.is_set():
                fault = self._start() or self._watch()
                if fault is None:
                    break
                if not self._recover(fault):
                    return 1
            self._end()
            return 0
        finally:
            self._readiness.set(False, "stopped")
            if self._awake is not None:
                self._awake.release()
            self._server.kill()
            clean_shared_memory(self._plan.prefix)
            self._write("stopped")
            self._web.stop()

    # -- the states --------------------------------------------------------------------------------------------
    def _start(self) -> str | None:
        """Starts a server and waits until it serves; returns what went wrong."""
        clean_shared_memory(self._plan.prefix)
        self._server = ServerProcess(self._plan)
        self._health = Health(self._server, self._status)
        self._readiness.set(False, "starting")
        try:
            prepare(self._status)
            self._server.start()
        except (ServerError, OSError) as error:
            if self._readiness.restarts == 0:
                raise
            return f"tritonserver cannot be started: {error}"
        self._write("starting")
        begin = shown = time.monotonic()
        while not self._stop.is_set():
            hide_shared_memory(self._plan.prefix)  # before anybody can open a session
            fault = self._health.check()
            now = time.monotonic()
            if fault is None and self._server.answers():
                self._readiness.show(self._health.models)
                self._readiness.set(True, "ready")
                self._write("ready")
                self._since = now
                self._say(f"ready after {now - begin:.1f} s")
                return None
            if not self._server.alive():
                return "tritonserver ended while it was starting"
            if now - begin > self._options.start_seconds:
                return f"tritonserver was not ready within {self._options.start_seconds:g} s ({fault})"
            if now - shown > 2.0:
                shown = now
                self._say(f"starting, {now - begin:.0f} s: {fault}")
            time.sleep(TICK_SECONDS / 2)
        return None

    def _watch(self) -> str | None:
        """Returns the fault when there is one, None when an end is asked for."""
        pause = TICK_SECONDS
        while not self._stop.wait(pause):
            fault = self._health.check()
            self._readiness.show(self._health.models)
            if fault is not None:
                return fault
            self._server.trim_log()
            if self._connections is not None:
                for cut in self._connections.look(self._server.pid):
                    self._say(cut)
                pause = self._connections.pause
            if self._awake is not None:
                self._awake.follow(self._health.models["duplex"]["sessions"])
        return None

    def _recover(self, fault: str) -> bool:
        """After a fault: tells the streams, removes the server, waits. False if this happened too often."""
        started = self._readiness.ready
        self._readiness.set(False, fault)
        self._readiness.blame(self._health.part)
        self._write("fault")
        self._say(f"fault: {fault}")
        if started and self._server.alive() and self._health.part != "duplex":  # which would tell them
            self._tell(Notice("abandon", f"{fault}; the server is being restarted"))
            time.sleep(TOLD_SECONDS)
        self._server.kill()
        self._faults.append(time.monotonic())
        recent = [at for at in self._faults if time.monotonic() - at < RESTART_WINDOW]
        broken = not (started or self._since) and (self._readiness.restarts or STARVED not in self._server.errors())
        if len(recent) > self._options.max_restarts or broken:
            where = f" in {self._plan.log}" if self._plan.log else ""
            self._say(f"giving up after {self._readiness.restarts} restarts; errors{where}:")
            self._say(self._server.errors())
            return False
        if started and time.monotonic() - self._since >= STEADY_SECONDS:
            self._hasty = 0
        self._stop.wait(BACKOFF_SECONDS[min(self._hasty, len(BACKOFF_SECONDS) - 1)])
        self._hasty += 1
        self._readiness.restarts += 1
        return True

    def _end(self) -> None:
        """Drains, then stops the server."""
        self._readiness.set(False, DRAINING)
        self._write(DRAINING)
        if self._server.alive() and self._health.check() is None:
            self._drain()
        clean = self._server.stop()
        self._say("stopped" if clean else "stopped; the server had to be killed")

    def _drain(self) -> None:
        seconds = self._options.drain_seconds
        self._say(
            f"draining: no new sessions, open ones may go on for {seconds:g} s"
            if seconds
            else "draining: open units are answered, no new ones are taken"
        )
        self._tell(Notice("drain", "the server is shutting down", seconds))
        end = time.monotonic() + seconds + ANSWER_SECONDS
        while time.monotonic() < end and not self._hurry.is_set():
            if self._health.check() is not None:
                return
            self._readiness.show(self._health.models)
            duplex = self._health.models["duplex"]
            if duplex["room"]["draining"] and duplex["sessions"] == 0 and duplex["freeing"] == 0:
                self._hurry.wait(DRAINED_SECONDS)
                return
            time.sleep(TICK_SECONDS / 2)

    def _tell(self, notice: Notice) -> None:
        with contextlib.suppress(OSError):  # the directory was removed: they hear it from their streams
            write_notice(self._status, notice)

    def _write(self, state: str) -> None:
        """server.json: what scripts and tests want to know. A full disk or a removed folder does not end the server."""
        alive = self._server.alive()
        said = {
            **self._facts,
            "state": state,
            "reason": self._readiness.reason,
            "restarts": self._readiness.restarts,
            "health": f"{reached(self._plan.metrics_address)}:{self._web.port}",
            "launcher_pid": os.getpid(),
            "server_pid": self._server.pid if alive else None,
            "model_pids": self._health.pids() if alive else {},
        }
        temporary = self._state.with_name(f".{self._state.name}")
        try:
            temporary.write_text(json.dumps(said))
            temporary.replace(self._state)
        except OSError as error:
            self._say(f"{self._state} could not be written: {error}")


__all__ = ["ServerError", "Supervisor", "SupervisorOptions"]
