"""One trace a unit, from socket to socket, as OTLP/JSON: a file that the OpenTelemetry collector reads (otlpjsonfile).

    unit [ open | encode | think | exchange | solve | decode ]      one span each; gaps are waits for the unit before

Hops of the thinker/performer loop are timed where the loop sees them, so a span holds the BLS call; `engine_ms` is what
the other process says it spent computing. What one call does in sequence is told apart by those times: an encode that
went along with its think call stands at the call's beginning, `decode` at the end of the performer's, `solve` before
it, and `exchange`, the way of the KV slice to the solver's first step, is what comes first.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..messages import OpenJob, PerceiveJob, PerformJob, PerformResult, ThinkJob, ThinkResult

MAX_BYTES = 2**28  # of one file: about 17 hours of one session
MAX_WAITING = 1024  # units that wait to be written; more are lost, for no unit waits for a disk
SERVER, INTERNAL = 2, 1  # span kinds of OTLP

_log = logging.getLogger(__name__)


@dataclass
class Span:
    """Times are time.monotonic_ns()."""

    name: str
    begin_ns: int
    end_ns: int
    attributes: dict[str, Any] = field(default_factory=dict)


class Tracer:
    """Appends one line a unit to `path`, in a thread of its own. What a session left unfinished is nowhere kept."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        self._left = max_bytes - self._file.tell()
        self._epoch_ns = time.time_ns() - time.monotonic_ns()  # one offset for all: spans of a unit stay in order
        self._units: queue.Queue[tuple[Span, list[Span]] | None] = queue.Queue(MAX_WAITING)
        self.lost = 0  # units
        self._thread = threading.Thread(target=self._write, name="traces", daemon=True)
        self._thread.start()

    def answered(
        self, session: str, unit: int, info: Mapping[str, Any], begin_ns: int, end_ns: int, hops: list[Span]
    ) -> None:
        """The unit's response went out at `end_ns`; it had arrived at `begin_ns`. hops: of all its calls."""
        root = Span("unit", begin_ns, end_ns, {"session.id": session, "unit.index": unit})
        root.attributes |= {name: info[name] for name in ("epoch", "steps", "degradation") if name in info}
        try:
            self._units.put_nowait((root, hops))
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Writes what waits and closes the file."""
        with contextlib.suppress(queue.Full):
            self._units.put(None, timeout=1.0 if self._thread.is_alive() else 0)
        self._thread.join(5.0)

    def _write(self) -> None:
        try:
            with self._file:
                while (item := self._units.get()) is not None:
                    line = json.dumps(self._request(*item)) + "\n"
                    self._left -= len(line)
                    if self._left < 0:
                        raise OSError("as large as a trace file may be")
                    self._file.write(line)
                    if self._units.empty():
                        self._file.flush()
        except OSError as error:  # a full disk as well
            _log.warning("%s: %s; no more traces are written", self._file.name, error)

    def _request(self, root: Span, hops: list[Span]) -> dict[str, Any]:
        trace, parent = secrets.token_hex(16), secrets.token_hex(8)
        spans = [self._span(root, trace, parent, SERVER)]
        spans += [
            {**self._span(hop, trace, secrets.token_hex(8), INTERNAL), "parentSpanId": parent}
            for hop in sorted(hops, key=lambda hop: hop.begin_ns)
        ]
        resource = {"attributes": _attributes({"service.name": "wan-streamer-triton"})}
        scope = {"scope": {"name": "duplex"}, "spans": spans}
        return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}

    def _span(self, span: Span, trace: str, identity: str, kind: int) -> dict[str, Any]:
        return {
            "traceId": trace,
            "spanId": identity,
            "name": span.name,
            "kind": kind,
            "startTimeUnixNano": str(self._epoch_ns + span.begin_ns),
            "endTimeUnixNano": str(self._epoch_ns + span.end_ns),
            "attributes": _attributes(span.attributes),
        }


def spans(job: object, result: object, begin: int, end: int) -> list[Span]:
    """What a call of the loop that returned `result` was made of."""
    if isinstance(job, OpenJob):
        return [Span("open", begin, end)]
    if isinstance(job, PerceiveJob) and isinstance(result, float):
        return [Span("encode", begin, end, {"engine_ms": result})]
    if isinstance(job, ThinkJob) and isinstance(result, ThinkResult):
        think = {"engine_ms": result.ms["think"]}
        if job.perceive is None:
            return [Span("think", begin, end, think)]
        parted = min(end, begin + round(result.ms["perceive"] * 1e6))
        encode = {"engine_ms": result.ms["perceive"]}
        return [Span("encode", begin, parted, encode), Span("think", parted, end, think)]
    if isinstance(job, PerformJob) and isinstance(result, PerformResult):
        # Solving began with the hand-over, perhaps just before the call: what is shown begins with the call.
        solved = min(max(begin, result.solved_ns), end)
        parted = max(begin, solved - round(result.ms["perform"] * 1e6))
        begin = max(begin, parted - round(result.ms["queue"] * 1e6))
        exchange, solve = {"queue_ms": result.ms["queue"]}, {"engine_ms": result.ms["perform"], "steps": result.steps}
        decode = {"engine_ms": result.ms.get("render", 0.0)}
        return [
            Span("exchange", begin, parted, exchange),
            Span("solve", parted, solved, solve),
            Span("decode", solved, end, decode),
        ]
    return []


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}
