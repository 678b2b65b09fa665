"""What no code can beat: ms of every step and of a unit, from shapes and two ceilings of a card. No GPU is asked.

    python tests/bench/gpu/floors.py    the tables of docs/PERFORMANCE.md

One session over a history of 8 s, bf16, codecs float32. A step takes the longer of its arithmetic at the rate of a
large matrix product and its bytes at the rate of a large copy (`gpu_work`). A unit is perceive, think, two fed slots,
the preset's solver steps and render, one after the other.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the repository: nothing need be installed

from gpu_work import Ceilings, Work, history_tokens, step_work

from engine_builder.config import UNIT_MS
from engine_builder.presets import preset
from triton_models.runtime.budget.costs import STEPS

PRESETS = ("v0.1-0.6b", "v0.1-1.7b", "v0.1-8b", "v0.1-8b-wan", "v0.2-8b", "v0.2-8b-wan")
# Assumed until `bench_gpu.py` has measured them: 80% of the datasheets' 989 (dense bf16) and 67 TFLOP/s (float32), 90%
# of 4.8 and of 3.35 TB/s.
CARDS = {"H200": Ceilings(4300, 790, 53), "H100": Ceilings(3000, 790, 53)}
WINDOW_SECONDS, SLOTS = 8.0, 2


@dataclass(frozen=True)
class Floors:
    """Of one preset: tokens of history, work and calls of each step in a unit."""

    preset: str
    history: int
    work: dict[str, Work]
    calls: dict[str, int]

    @classmethod
    def of(cls, name: str, fp8: bool = False) -> Floors:
        config = preset(name)
        history = history_tokens(config, WINDOW_SECONDS, SLOTS)
        work = {step: step_work(config, step, 1, history, fp8) for step in STEPS}
        return cls(
            name, history, work, {step: {"slot": SLOTS, "perform": config.solver.steps}.get(step, 1) for step in STEPS}
        )

    def step_ms(self, step: str, card: str) -> float:
        return self.work[step].floor_ms(CARDS[card])

    def unit_ms(self, card: str) -> float:
        return sum(count * self.step_ms(step, card) for step, count in self.calls.items())


def table() -> str:
    """Markdown, a row for each preset and step and one for the unit."""
    lines = ["| preset | step | TFLOP | GB | H200, ms | H100, ms | bound by |", "|---|---|---|---|---|---|---|"]
    for floors in map(Floors.of, PRESETS):
        for step, work in floors.work.items():
            bound = {work.floor_ms(replace(c, copy_gbs=1e9)) == work.floor_ms(c) for c in CARDS.values()}
            by = "arithmetic" if bound == {True} else "memory" if bound == {False} else "both"
            times = " | ".join(f"{floors.step_ms(step, card):.3g}" for card in CARDS)
            lines.append(
                f"| {floors.preset} | {step} | {work.flops / 1e12:.3g} | {work.bytes / 1e9:.3g} | {times} | {by} |"
            )
        units = [floors.unit_ms(card) for card in CARDS]
        times = " | ".join(f"**{ms:.3g}**" for ms in units)
        fit = " / ".join(f"{UNIT_MS / ms:.1f}" for ms in units)
        calls = ", ".join(f"{count} {step}" for step, count in floors.calls.items())
        lines.append(f"| {floors.preset} | unit: {calls} | | | {times} | {fit} units in {UNIT_MS} ms |")
    return "\n".join(lines)


def fp8_table() -> str:
    """Markdown: what is left where the matrices of the layers are float8, a row for each preset."""
    lines = [
        "| preset | think | slot H200 / H100 | perform | unit H200 / H100 | against bf16 |",
        "|---|---|---|---|---|---|",
    ]
    for name in PRESETS:
        fp8, bf16 = Floors.of(name, fp8=True), Floors.of(name)
        slots = " / ".join(f"{fp8.step_ms('slot', card):.3g}" for card in CARDS)
        units = " / ".join(f"{fp8.unit_ms(card):.3g}" for card in CARDS)
        gain = " / ".join(f"{fp8.unit_ms(card) - bf16.unit_ms(card):.3g} ms" for card in CARDS)
        think, perform = (fp8.step_ms(step, "H200") for step in ("think", "perform"))
        lines.append(f"| {name} | {think:.3g} | {slots} | {perform:.3g} | **{units}** | {gain} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(), fp8_table(), sep="\n\n")
