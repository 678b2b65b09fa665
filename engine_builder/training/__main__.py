"""Command line: `python -m engine_builder.training train --run build/runs/train`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console

from ..config import preset
from .conversation import Studio
from .scenario import DENSE
from .trainer import Trainer, TrainingPlan


def _train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    console = Console()
    plan = TrainingPlan(steps=arguments.steps, batch=arguments.batch, units=arguments.units, seed=arguments.seed)
    console.print(f"rendering voices into {arguments.cache} (once) ...")
    studio = Studio(arguments.cache, habits=DENSE)
    trainer = Trainer(preset("tiny"), plan, studio, arguments.run, compile_layers=not arguments.no_compile)
    console.print(f"step {trainer.step_number} of {plan.steps}, {arguments.threads} threads, {trainer.dtype}")

    def show(row: dict[str, float]) -> None:
        if row["step"] % 20 == 0:
            parts = "  ".join(f"{name} {row[name]:.4g}" for name in ("state", "text", "audio", "video", "rate"))
            console.print(f"{int(row['step']):5d}  {row['seconds']:7.0f} s  {parts}")

    trainer.train(arguments.save_every, show)
    console.print(f"checkpoint: {arguments.run / 'checkpoint'}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engine_builder.training", description=__doc__)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train the tiny checkpoint, or go on with an interrupted run")
    train.add_argument("--run", type=Path, default=Path("build/runs/train"), help="run directory")
    train.add_argument("--cache", type=Path, default=Path("build/cache"), help="rendered voices")
    train.add_argument("--steps", type=int, default=TrainingPlan.steps)
    train.add_argument("--batch", type=int, default=TrainingPlan.batch, help="stretches a step")
    train.add_argument("--units", type=int, default=TrainingPlan.units, help="units of 160 ms a stretch")
    train.add_argument("--seed", type=int, default=TrainingPlan.seed)
    train.add_argument("--threads", type=int, default=2)
    train.add_argument("--save-every", type=int, default=200)
    train.add_argument("--no-compile", action="store_true", help="skip torch.compile (no C++ compiler, short runs)")
    train.set_defaults(action=_train)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
