"""`make eval`: the shipped model judged in closed loop through its engines and the serving runtime.

    python -m tests.eval --engines build/engines/tutor --out build/runs/eval

Everything a user does here (voices, noises, rooms, cards, timing) is of the held-out split, from seeds that nothing
else uses. Files are written after every job, so that Ctrl-C keeps what was done.
"""

from __future__ import annotations

import argparse
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from client.own_server import ServerFailed
from client.stream.errors import DuplexError
from engine_builder.training.judges.figures import Tally
from engine_builder.training.world.speech import crowd, people, synths

from . import crew, parts, plots, report, served
from .ears import Ears
from .results import AS_SERVED, Results, judged, pooled
from .stage import Stage, performance
from .work import Sources, Worker, prepare


class Evaluation:
    """The plan, what has been found, and the files that say so."""

    def __init__(self, a: argparse.Namespace, console: Console) -> None:
        self.out: Path = a.out
        speech = a.speech if (a.speech / "recordings").is_dir() else None
        others = a.crowd if a.crowd.is_dir() else None
        self.sources = Sources(a.engines, a.checkpoint, a.cache, speech=speech, crowd=others)
        flite = "flite" in synths.installed()
        self.speakers = parts.speaker_parts(-(-a.talks // 2), speech is not None, flite, others is not None)
        if speech is None:
            console.print(f"{a.speech}: no recordings; real people are not asked. They are at {people.HOME}")
        if others is None:
            console.print(f"{a.crowd}: not there; strangers are not asked. Unpack {crowd.ARCHIVE} there")
        if not flite:
            console.print(f"flite: not here; an unheard synthesiser is not asked. {synths.HOW_TO_GET['flite']}")
        self.console, self.minutes, self.processes = console, a.minutes, a.processes
        self.main = parts.main_parts(a.talks, a.quiet, a.sessions, a.minutes)
        self.variants = parts.variant_parts(a.variants, a.only) if a.variants else []
        self.personas = parts.persona_parts(0 if a.only else a.variants)
        self.faces = parts.face_parts(0 if a.only else a.variants)
        self.oracle = [parts.oracle_part(min(4, a.variants))] if a.variants and not a.only else []
        self.served = parts.served_part(a.served) if a.served else None
        self.results = Results()
        self.ceilings: dict[str, float] = {}
        self.comparison: dict[str, Any] = {}
        self._begin = time.perf_counter()

    @property
    def todo(self) -> list[parts.Part]:
        return [*self.main, *self.speakers, *self.personas, *self.faces, *self.variants, *self.oracle]

    def play(self) -> None:
        """All jobs, in two processes."""
        todo = self.todo
        columns = (TextColumn("{task.description:<44}"), BarColumn(24), TextColumn("{task.percentage:3.0f} %"))
        with (
            Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as bar,
            crew.Crew(self.sources, self.processes) as workers,
        ):
            task = bar.add_task("", total=sum(part.talks * part.units for part in todo))
            for item in workers.play(todo):
                if isinstance(item, crew.Progress):
                    bar.advance(task, item.units)
                    continue
                self.results.add(item)
                bar.update(task, description=item.part.name)
                if not self.console.is_terminal and self.results.played[item.part.name] >= item.part.talks:
                    self.console.print(f"[{self._seconds():5.0f} s] {item.part.name}", highlight=False)
                self.write()

    def serve(self) -> None:
        """The part that goes through tritonserver, beside the same through the runtime."""
        if self.served is None:
            return
        part = self.served
        self.console.print(f"{part.talks} conversations through a real tritonserver ...")
        worker = Worker(self.sources)
        talks = worker.conversations(part, part.seed, part.seed + part.talks)
        local = []
        with Stage(self.sources.engines, part.batch, part.units) as stage:
            for first in range(0, len(talks), part.batch):
                local += stage.play(talks[first : first + part.batch])
            states = stage.config.language.states
        answers = served.serve(self.sources.engines, self.out, talks, part.batch)
        self.comparison = asdict(served.compare(answers, local))
        for name, done in (
            ("tritonserver", [served.performance(states, row) for row in answers]),
            ("runtime", [performance(states, row) for row in local]),
        ):
            tally = Tally()
            for talk, performed in zip(talks, done, strict=True):
                worker.ears.template.conversation(talk.scenario, performed, tally)
            self.comparison[name] = {k: v for k, v in judged(tally, Tally()).items() if v is not None}
        self.write()

    def summary(self, complete: bool = False) -> dict[str, Any]:
        """Everything so far."""
        results = self.results
        found: dict[str, Any] = dict(results.figures(*AS_SERVED))
        minutes = results.minutes(self.minutes)
        if minutes is not None:
            found["minutes_stable"] = minutes.stable
        by_speaker: dict[str, Any] = {}
        if results.template("left-out voices"):
            by_speaker |= {
                "held-out voices": results.figures("main", "dense"),
                "Lee and Marco, which the split leaves out": results.figures("left-out voices"),
                "all twelve": results.figures("main", "dense", "left-out voices"),
            }
        rows = {
            "people": "real people",
            "strangers": "strangers",
            "foreign_synth": "Flite",
            "echo": "loudspeaker, -12 dB",
            "nothing": "after a minute of noise, music and murmurs",
            "other talk": "after a minute of greetings, thanks and cards",
        }
        for group, row in rows.items():
            if results.template(group):
                by_speaker[row] = results.figures(group)
        total = pooled(results.template(*AS_SERVED))
        return {
            **found,
            "complete": complete,
            "retention": parts.TRAINED_RETENTION,
            "trials": results.trials(),
            "interval95": results.intervals(),
            "minutes": minutes.summary() if minutes is not None else None,
            "speakers": by_speaker,
            "personas": results.personas(self.personas),
            "faces": {part.name: results.figures(part.group) for part in self.faces},
            "variants": results.variants(self.variants),
            "oracle": results.oracle(),
            "served": self.comparison,
            "ceilings": self.ceilings,
            "conversations": dict(results.played),
            "mistakes": [[*pair, n] for pair, n in total.mistakes.most_common(20)],
            "seconds": round(self._seconds(), 1),
        }

    def _seconds(self) -> float:
        return time.perf_counter() - self._begin

    def write(self, complete: bool = False) -> dict[str, Any]:
        """summary.json and table.md; with `complete` the plots as well."""
        summary = self.summary(complete)
        report.write(self.out, summary)
        return summary

    def finish(self, complete: bool) -> dict[str, Any]:
        """Files and plots; returns the summary."""
        summary = self.write(complete)
        plots.delays(self.out, pooled(self.results.template(*AS_SERVED)))
        minutes = self.results.minutes(self.minutes)
        if minutes is not None:
            plots.minutes(self.out, minutes)
        if summary["variants"]:
            plots.variants(self.out, summary["variants"])
        return summary


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Exit status: 0 all targets met, 1 some missed or the evaluation failed, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.eval", description=__doc__)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tutor"))
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/tutor"), help="what they were built from")
    parser.add_argument("--out", type=Path, default=Path("build/runs/eval"))
    parser.add_argument("--cache", type=Path, default=Path("build/cache"))
    parser.add_argument("--speech", type=Path, default=people.DEFAULT, metavar="DIR", help="recordings of real people")
    parser.add_argument(
        "--crowd", type=Path, default=crowd.DEFAULT, metavar="DIR", help="people who were never trained with, if any"
    )
    parser.add_argument("--talks", type=int, default=64, help="conversations of 24 s; half as many of rare events")
    parser.add_argument("--quiet", type=int, default=96, help="silent or noisy stretches of 10 s")
    parser.add_argument("--sessions", type=int, default=6, help="long conversations")
    parser.add_argument("--minutes", type=int, default=10, help="length of the long conversations")
    parser.add_argument("--variants", type=int, default=8, help="conversations for each way of running the model")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="WAY", help="of these ways alone, by a part of the name"
    )
    parser.add_argument("--served", type=int, default=8, help="conversations through a real tritonserver")
    parser.add_argument("--processes", type=int, default=2, help="workers, one thread each")
    console = Console()
    evaluation = Evaluation(parser.parse_args(), console)
    complete, status = False, 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    try:
        console.print("voices and judges ...")
        prepare(evaluation.sources, evaluation.todo)
        evaluation.ceilings = Ears().ceilings()
        evaluation.play()
        evaluation.serve()
        complete = True
    except KeyboardInterrupt:
        console.print("interrupted; what was played is kept")
        status = 130
    except (crew.JobFailed, ServerFailed, DuplexError) as error:
        console.print(f"failed: {error}; what was played is kept", markup=False)
    summary = evaluation.finish(complete)
    missed = report.misses(summary)
    for line in missed:
        console.print(f"MISSED {line}")
    asked = sum(name in summary for name, _, _ in report.TARGETS)
    console.print(f"{asked - len(missed)} of {asked} targets met: {evaluation.out / 'table.md'}")
    return status or int(bool(missed) or not complete)


if __name__ == "__main__":
    raise SystemExit(main())
