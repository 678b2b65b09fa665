"""What issue 4 wants of an H200, beside what was measured: name, goal, figure, met or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

UNIT_MS, UNIT_PRESET, UNIT_SESSIONS = 110.0, "v0.1-8b", 2
SHARE_OF_FLOOR = 0.60  # of the sessions that the two ceilings allow
SHARE_OF_MATMUL, MATMUL_BATCH = 0.55, 4
SHARE_OF_COPY = 0.60
TIMES_PLAIN = 2.0


@dataclass(frozen=True)
class Goal:
    """`met` None: not measured in this run."""

    name: str
    goal: str
    got: str
    met: bool | None


def goals(presets: dict[str, dict[str, Any]], steps: Sequence[dict[str, Any]]) -> list[Goal]:
    """presets: results by name; steps: rows of gpu_steps.csv. A preset that failed counts as not measured."""
    found: list[Goal] = []
    main = presets.get(UNIT_PRESET, {})
    found.append(_goal(f"{UNIT_PRESET}: unit, ms", f"<= {UNIT_MS:g}", main.get("unit_ms"), lambda ms: ms <= UNIT_MS))
    sessions = main.get("sessions")
    found.append(
        _goal(f"{UNIT_PRESET}: sessions on time", f">= {UNIT_SESSIONS}", sessions, lambda n: n >= UNIT_SESSIONS)
    )
    for name, result in presets.items():
        floor, plain, own = result.get("sessions_floor"), result.get("plain_sessions"), result.get("sessions")
        share = own / floor if own is not None and floor else None
        text = f">= {SHARE_OF_FLOOR:.0%} of {'those' if floor is None else floor}, which the ceilings allow"
        found.append(_goal(f"{name}: sessions on time", text, share, lambda s: s >= SHARE_OF_FLOOR, percent=True))
        # Plain PyTorch that keeps no session on time is beaten by any that does.
        times = None if own is None or plain is None else own / plain if plain else float("inf") if own else 0.0
        text = f">= {TIMES_PLAIN:g} times {'those' if plain is None else f'the {plain}'} of plain PyTorch"
        found.append(_goal(f"{name}: sessions on time", text, times, lambda x: x >= TIMES_PLAIN))
        wide = [r["share_matmul"] for r in _rows(steps, name, "perform") if r["batch"] >= MATMUL_BATCH]
        text = f">= {SHARE_OF_MATMUL:.0%} of the product ceiling at batch >= {MATMUL_BATCH}"
        worst = min(wide, default=None)
        found.append(_goal(f"{name}: perform", text, worst, lambda s: s >= SHARE_OF_MATMUL, percent=True))
        slot = next((r["share_copy"] for r in _rows(steps, name, "slot") if r["batch"] == 1), None)
        text = f">= {SHARE_OF_COPY:.0%} of the copy ceiling at batch 1"
        found.append(_goal(f"{name}: slot", text, slot, lambda s: s >= SHARE_OF_COPY, percent=True))
    return found


def _rows(steps: Sequence[dict[str, Any]], preset: str, step: str) -> list[dict[str, Any]]:
    return [row for row in steps if (row["preset"], row["step"]) == (preset, step)]


def _goal(name: str, goal: str, got: float | None, met: Any, percent: bool = False) -> Goal:
    if got is None:
        return Goal(name, goal, "not measured", None)
    return Goal(name, goal, f"{got:.0%}" if percent else f"{got:.4g}", bool(met(got)))
