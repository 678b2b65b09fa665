"""The launcher's own metrics, in Prometheus' text format: they must be readable while the server is down."""

from __future__ import annotations

from collections.abc import Mapping

from .table import LAUNCHER, PARTS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def figures(ready: bool, fault: str | None, faults: Mapping[str, int], restarts: int) -> dict[str, float]:
    """The plain names of the table. fault: the part that is down now, if one is known to be."""
    return {
        "ready": ready,
        "restarts": restarts,
        **{f"up.{part}": fault != part for part in PARTS},
        **{f"faults.{part}": faults.get(part, 0) for part in PARTS},
    }


def text(values: Mapping[str, float]) -> str:
    """One exposition of all launcher metrics."""
    lines: list[str] = []
    for spec in LAUNCHER:
        lines += [f"# HELP {spec.name} {spec.help}", f"# TYPE {spec.name} {spec.kind}"]
        for plain, labels in spec.series.items():
            inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
            lines.append(f"{spec.name}{{{inside}}} {values[plain]:g}" if inside else f"{spec.name} {values[plain]:g}")
    return "\n".join(lines) + "\n"
