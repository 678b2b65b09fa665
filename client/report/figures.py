"""report.json: how a conversation went, in numbers."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..stream.units import UNIT_MS, UNIT_SECONDS
from ..talk.conversation import Conversation, UnitRecord
from .captions import dialogue

STAGES = ("queue", "perceive", "think", "perform", "render")
PACKAGES = ("tritonclient", "grpcio", "av", "numpy")
UNSTATED = "not stated by the server"


def percentiles(values: Iterable[float]) -> dict[str, float] | None:
    """p50, p95, p99, mean and max, linearly interpolated, rounded to microseconds; None without values."""
    data = np.fromiter(values, dtype=np.float64)
    if not data.size:
        return None
    p50, p95, p99 = np.percentile(data, (50, 95, 99))
    figures = {"p50": p50, "p95": p95, "p99": p99, "mean": data.mean(), "max": data.max()}
    return {name: round(float(value), 3) for name, value in figures.items()}


def on_time_share(units: list[UnitRecord]) -> float:
    """Share of the units whose response was here before the next unit was complete; no answer is not on time."""
    return sum(unit.on_time for unit in units) / len(units) if units else 0.0


def stage_names(units: list[UnitRecord]) -> list[str]:
    """Stages that the server reported, the known ones first; `total` is left out."""
    seen = {name for unit in units for name in unit.stages if name != "total"}
    return [name for name in STAGES if name in seen] + sorted(seen - set(STAGES))


def build(talk: Conversation, *, weights: str | None = None, media: dict[str, str] | None = None) -> dict[str, Any]:
    """The report as a dictionary. All times are milliseconds.

    `response` is measured at the client, from the end of the user unit to the arrival of its answer; the stages and
    `total` are what the server measured.  weights: what the served weights are, when the caller knows better than
    the server's model configuration says.
    """
    units, answered = talk.units, talk.answered()
    first = next((u.received_ms - u.sent_ms for u in units if u.received_ms is not None), None)
    late = [unit.index for unit in units if not unit.on_time]
    degraded = [{"unit": u.index, "what": u.degradation} for u in answered if u.degradation]
    stages = {name: percentiles(u.stages[name] for u in answered if name in u.stages) for name in stage_names(answered)}
    return {
        "weights": weights or talk.parameters.get("weights") or UNSTATED,
        "started": talk.started,
        "stopped_early": talk.stopped,
        "units": {
            "sent": sum(not unit.skipped for unit in units),
            "answered": len(answered),
            "planned": talk.source.count,
        },
        "outages": [vars(outage) for outage in talk.outages],
        "on_time": {
            "share": round(on_time_share(units), 5),
            "deadline_ms": UNIT_MS,
            "meaning": "response received before the next user unit was complete; unanswered units count as late",
            "late_units": late,
        },
        "ms": {
            "response": percentiles(u.response_ms for u in answered if u.response_ms is not None),
            "total": percentiles(u.stages["total"] for u in answered if "total" in u.stages),
            **stages,
        },
        "first_response_ms": None if first is None else round(first, 3),
        "send_lateness_ms": percentiles(u.late_send_ms for u in units if not u.skipped),
        "agent_states": dict(Counter(u.state for u in answered)),
        "dialogue": [
            {"seconds": round(turn.first * UNIT_SECONDS, 2), "who": who, "text": turn.text.strip()}
            for who, turn in dialogue(units)
        ],
        "degraded_units": degraded,
        "errors": [{"code": e.code, "message": e.message, "fatal": e.fatal} for e in talk.errors],
        "config": {
            "url": talk.url,
            "model": talk.model,
            "session_id": talk.session_id,
            "options": talk.options,
            "unit_ms": UNIT_MS,
            "sample_rate": talk.shape.sample_rate,
            "picture": [talk.shape.height, talk.shape.width],
            "input": {**talk.source.files, **(media or {})},
            "model_parameters": talk.parameters,
        },
        "versions": {
            "server": " ".join(str(talk.server.get(key, "?")) for key in ("name", "version")),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            **{name: _version(name) for name in ("wan-streamer-triton", *PACKAGES)},
        },
    }


def write(report: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
