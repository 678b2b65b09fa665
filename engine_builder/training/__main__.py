"""Command line: `python -m engine_builder.training train --run build/runs/train`."""

from __future__ import annotations

import argparse
import json
import logging
import signal
from pathlib import Path
from threading import Event

import torch
from rich.console import Console

from ..checkpoint import TOKENIZER, CheckpointError, load_checkpoint, read_defaults, save_checkpoint
from ..config import ConfigError
from ..options import positive, real, seed, share, whole
from .average import average
from .judges.rehearsal import rehearse
from .judges.run_report import write_report
from .learn.codec_fit import with_finer_codecs
from .learn.ears import with_longer_ears
from .learn.trainer import Trainer, TrainingPlan
from .tutor import model_config
from .world.conversation import Studio
from .world.personas import write_references
from .world.scenario import DENSE
from .world.speech import crowd, synths
from .world.speech.people import DEFAULT, HOME, People


def _people(arguments: argparse.Namespace) -> People | None:
    """Who says English digits in most conversations; None leaves them to the synthesisers."""
    known = None if str(arguments.speech) == "none" else People.load(arguments.speech, tuple(arguments.without))
    return known if arguments.crowd is None else (known or People({})).and_crowd(arguments.crowd)


def _train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    console = Console()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = ("steps", "batch", "units", "seed", "pace", "decay_from", "rollout_from", "ear_steps")
    plan = TrainingPlan(**{name: getattr(arguments, name) for name in names})
    console.print(f"rendering voices into {arguments.cache} (once) ...")
    people = _people(arguments)
    for synth in synths.TRAINED_WITH:
        if synth not in synths.installed():
            console.print(f"{synth} is not here and will not be trained with: {synths.HOW_TO_GET[synth]}")
    studio = Studio(arguments.cache, habits=DENSE, people=people)
    start = load_checkpoint(arguments.start) if arguments.start else None
    if start and arguments.longer_ears:
        start = with_longer_ears(start, arguments.longer_ears)
    if start:
        start = with_finer_codecs(start, studio, plan.codec_conversations)
        config = start.config
    else:
        config = model_config()
    trainer = Trainer(config, plan, studio, arguments.run, not arguments.no_compile, start, arguments.device)
    where = f"{arguments.threads} threads" if arguments.device == "cpu" else arguments.device
    console.print(f"step {trainer.step_number} of {plan.steps}, {where}, {trainer.dtype}")

    def show(row: dict[str, float]) -> None:
        if row["step"] % 20 == 0:
            parts = "  ".join(
                f"{name} {row[name]:.4g}" for name in ("state", "text", "heard", "notes", "audio", "video", "rate")
            )
            console.print(f"{int(row['step']):5d}  {row['seconds']:7.0f} s  {parts}")

    asked = Event()

    def ask(number: int, _: object) -> None:
        asked.set()
        signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C does not wait for the step

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    trainer.train(arguments.save_every, show, stop=asked.is_set)
    for number, handler in before.items():
        signal.signal(number, handler)
    if trainer.step_number < plan.steps:
        console.print(f"stopped after step {trainer.step_number}, kept in {arguments.run}: the same command goes on")
        raise KeyboardInterrupt
    console.print("rehearsal in closed loop with held-out voices ...")
    found, _ = rehearse(trainer.model.cpu(), arguments.cache)
    checkpoint = arguments.run / "checkpoint"
    console.print(f"report: {write_report(arguments.run, found)}")
    console.print(f"checkpoint: {checkpoint}; `make engine CHECKPOINT={checkpoint}` compiles it")


def _rehearse(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    model = load_checkpoint(arguments.checkpoint)
    people = People.load(arguments.speech, only=(arguments.only,)) if arguments.only else None
    found, tally = rehearse(
        model, arguments.cache, arguments.talks, arguments.units, solver_steps=arguments.steps, people=people
    )
    print(json.dumps({**found, "trials": dict(tally.trials)}, indent=1))


def _average(arguments: argparse.Namespace) -> None:
    checkpoints: list[Path] = arguments.checkpoints
    shares = arguments.shares or [1.0] * len(checkpoints)
    if len(shares) != len(checkpoints):
        raise ConfigError(f"--shares: expected {len(checkpoints)}, one a checkpoint, got {len(shares)}")
    mean = average([load_checkpoint(checkpoint) for checkpoint in checkpoints], shares)
    said = ", ".join(f"{part:g} of {checkpoint}" for part, checkpoint in zip(shares, checkpoints, strict=True))
    tokenizer, defaults = checkpoints[0] / TOKENIZER, read_defaults(checkpoints[0])
    save_checkpoint(mean, arguments.out, tokenizer, torch.float16, note=f"the mean of {said}", defaults=defaults)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine_builder.training", description=__doc__)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train the tiny checkpoint, or go on with an interrupted run")
    train.add_argument("--run", type=Path, default=Path("build/runs/train"), help="run directory")
    train.add_argument("--cache", type=Path, default=Path("build/cache"), help="rendered voices")
    train.add_argument(
        "--speech",
        type=Path,
        default=DEFAULT,
        metavar="DIR",
        help=f"recordings of real people: a clone of {HOME} (default: {DEFAULT}); 'none': nobody of it",
    )
    train.add_argument(
        "--crowd",
        type=Path,
        metavar="DIR",
        help=f"digits by many more people, in the layout of Speech Commands ({crowd.ARCHIVE}); a quarter of them, who "
        "judge, is left out",
    )
    train.add_argument("--without", action="append", default=[], metavar="SPEAKER", help="leave this person out")
    train.add_argument(
        "--from", type=Path, dest="start", metavar="CHECKPOINT", help="go on from these weights instead of from chance"
    )
    train.add_argument(
        "--longer-ears",
        type=whole(1, 1023),
        nargs="+",
        default=[],
        metavar="DILATION",
        help="with --from: more convolutions in the audio encoder, of these dilations, which begin as nothing",
    )
    train.add_argument("--pace", type=positive, default=TrainingPlan.pace, help="factor on the learning rates")
    train.add_argument(
        "--decay-from",
        type=real(0.0, 0.99),
        default=TrainingPlan.decay_from,
        metavar="SHARE",
        help="of the run, after which the learning rates fall to zero (default: %(default)g)",
    )
    train.add_argument(
        "--rollout-from",
        type=share,
        default=TrainingPlan.rollout_from,
        metavar="SHARE",
        help="of the run, after which the model also sees its own latents as context (default: %(default)g)",
    )
    train.add_argument("--ear-steps", type=whole(), default=TrainingPlan.ear_steps, help="of the ears' warm-up")
    train.add_argument("--steps", type=whole(), default=TrainingPlan.steps)
    train.add_argument("--batch", type=whole(1), default=TrainingPlan.batch, help="stretches a step")
    train.add_argument("--units", type=whole(1), default=TrainingPlan.units, help="units of 160 ms a stretch")
    train.add_argument("--seed", type=seed, default=TrainingPlan.seed)
    train.add_argument(
        "--threads", type=whole(1, 1024), default=1, help="one repeats exactly, and is nearly as fast as two"
    )
    train.add_argument("--device", default="cpu", help="of PyTorch, for the network: cuda (default: cpu)")
    train.add_argument("--save-every", type=whole(1), default=200)
    train.add_argument("--no-compile", action="store_true", help="skip torch.compile (no C++ compiler, short runs)")
    train.set_defaults(action=_train)
    check = commands.add_parser("rehearse", help="closed-loop figures of a checkpoint in PyTorch, in a minute")
    check.add_argument("checkpoint", type=Path)
    check.add_argument("--cache", type=Path, default=Path("build/cache"), help="rendered voices")
    check.add_argument("--talks", type=whole(1), default=16, help="held-out conversations")
    check.add_argument("--units", type=whole(1), default=150, help="units of each")
    check.add_argument("--steps", type=whole(1), default=None, help="solver steps (default: the checkpoint's)")
    check.add_argument("--only", metavar="SPEAKER", help="digits by this person of --speech, whom --without left out")
    check.add_argument("--speech", type=Path, default=DEFAULT, metavar="DIR", help=f"default: {DEFAULT}")
    check.add_argument("--threads", type=whole(1, 1024), default=2)
    check.set_defaults(action=_rehearse)
    mean = commands.add_parser("average", help="one checkpoint of several that began as one: the mean of their weights")
    mean.add_argument("out", type=Path)
    mean.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    mean.add_argument("--shares", type=positive, nargs="+", metavar="SHARE", help="of each checkpoint (default: equal)")
    mean.set_defaults(action=_average)
    references = commands.add_parser("personas", help="pictures and voices of the people that the agent may be")
    references.add_argument("out", type=Path)
    references.set_defaults(action=lambda arguments: write_references(arguments.out))
    arguments = parser.parse_args(argv)
    try:
        arguments.action(arguments)
    except (crowd.RecordingsMissing, CheckpointError, ConfigError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
