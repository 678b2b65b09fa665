"""A run in numbers: summary.json."""

from __future__ import annotations

import os
import platform
from collections import Counter
from typing import Any

from ..report.figures import STAGES, UNSTATED, percentiles
from ..stream.units import UNIT_MS
from .driver import Run
from .playout import BUFFER_MS, Playout, play
from .user import UnitLog, UserLog

# A driver that gets round to its units later than this falsifies what it measures.
DRIVER_LIMIT_MS = 20.0


def build(run: Run) -> dict[str, Any]:
    """All times are milliseconds. Only units after the warm-up are judged; shares are of the units that were due."""
    plan, judged = run.plan, run.judged()
    answered = [unit for unit in judged if unit.received is not None]
    plays = [play(user.units, plan.warm_units) for user in run.users]
    driver = percentiles(unit.driver_ms for unit in judged)
    failed = [user for user in run.users if user.error is not None]
    return {
        "on_time": {
            "share": round(run.on_time_share, 5),
            "deadline_ms": UNIT_MS,
            "meaning": "answer here at most one unit after the user unit was complete (its due time, whenever it could "
            "be sent); units that were due and never sent or answered count as late",
        },
        "sessions": {"wanted": plan.sessions, "without_error": len(run.users) - len(failed)},
        "units": {"due": run.planned, "sent": sum(u.sent is not None for u in judged), "answered": len(answered)},
        "ms": {
            "response": percentiles(unit.response_ms for unit in answered if unit.response_ms is not None),
            "service": percentiles(unit.service_ms for unit in answered if unit.service_ms is not None),
            "total": _stage(answered, "total"),
            **{stage: _stage(answered, stage) for stage in STAGES},
            "transport": percentiles(
                unit.service_ms - unit.stages["total"]
                for unit in answered
                if unit.service_ms is not None and "total" in unit.stages
            ),
        },
        "first_response_ms": percentiles(u.first_response_ms for u in run.users if u.first_response_ms is not None),
        "send_lateness_ms": percentiles((u.sent - u.due) * 1e3 for u in judged if u.sent is not None),
        "driver_lateness_ms": driver,
        "driver_fit": driver is not None and driver["p99"] <= DRIVER_LIMIT_MS,
        "playout": _playout(plays),
        "degraded_units": dict(Counter(kind for unit in answered for kind in unit.degradation)),
        "errors": dict(Counter(user.error.code for user in failed if user.error)),
        "error_messages": sorted({str(user.error)[:300] for user in failed})[:10],
        "plan": {
            "url": plan.url,
            "sessions": plan.sessions,
            "seconds": plan.seconds,
            "warm_up_seconds": plan.warm_up,
            "options": dict(plan.options),
            "media": run.media,
        },
        "gave_up": run.gave_up,
        "started": run.started,
        "weights": run.parameters.get("weights") or UNSTATED,
        "model": run.parameters.get("model", plan.model),
        "server": " ".join(str(run.server.get(key, "?")) for key in ("name", "version")),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "load_average": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        },
    }


def user_rows(run: Run) -> list[dict[str, Any]]:
    """One row a user, for the report."""
    return [_user_row(run, user) for user in run.users]


def _user_row(run: Run, user: UserLog) -> dict[str, Any]:
    units = user.units[run.plan.warm_units :]
    due = max(0, user.planned - run.plan.warm_units)
    response = percentiles(unit.response_ms for unit in units if unit.response_ms is not None)
    return {
        "user": user.number,
        "due": due,
        "on_time": round(sum(unit.on_time for unit in units) / due, 5) if due else 0.0,
        "p50": response and round(response["p50"], 1),
        "p99": response and round(response["p99"], 1),
        "underruns": play(user.units, run.plan.warm_units).underruns,
        "error": str(user.error) if user.error else "",
    }


def _stage(units: list[UnitLog], name: str) -> dict[str, float] | None:
    return percentiles(unit.stages[name] for unit in units if name in unit.stages)


def _playout(plays: list[Playout]) -> dict[str, Any]:
    units, frames = sum(p.units for p in plays), sum(p.frames for p in plays)
    return {
        "buffer_ms": BUFFER_MS,
        "underruns": sum(p.underruns for p in plays),
        "underrun_share": round(sum(p.underruns for p in plays) / units, 5) if units else None,
        "lost_sound_ms": round(sum(p.lost_ms for p in plays), 1),
        "frozen_frame_share": round(sum(p.frozen for p in plays) / frames, 5) if frames else None,
        "av_skew_ms": percentiles(skew for p in plays for skew in p.skew_ms),
    }
