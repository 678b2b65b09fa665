"""`make eval`: the shipped model judged in closed loop through its engines and the serving runtime.

    python -m tests.eval --engines build/engines/tiny --out build/runs/eval

Everything a user does here (voices, noises, rooms, cards, timing) is of the held-out split.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from engine_builder.tokenizer import word_ids
from engine_builder.training.conversation import Conversation, Studio
from engine_builder.training.judges.figures import Tally, figures
from tests.eval import report
from tests.eval.ears import Ears
from tests.eval.report import Figures
from tests.eval.stage import DEFAULT_RETENTION, Stage

_SEED = 8_000_000
MINUTE = 375  # units
VARIANTS: dict[str, dict[str, object]] = {
    "1 solver step": {"steps": 1},
    "2 solver steps": {"steps": 2},
    "4 solver steps": {"steps": 4},
    "8 solver steps": {"steps": 8},
    "full retention": {"keep": "full"},
    "window 4 + 50": {"keep": {"window": {"sink": 4, "recent": 50}}},
    "window 8": {"keep": {"window": {"sink": 0, "recent": 8}}},
    "window 8, language 16": {"keep": {"window_language": {"sink": 0, "recent": 8, "language_recent": 16}}},
}


class Evaluation:
    """Holds the held-out studio, the ears and the engines; every method is one part of the report."""

    def __init__(self, engines: Path, cache: Path, console: Console, batch: int = 8) -> None:
        self.engines, self.console, self.batch = engines, console, batch
        self.studio = Studio(cache, "held_out")
        self.ears = Ears({token: word for word, token in word_ids().items()})

    def talks(self, count: int, units: int, **options: object) -> tuple[Tally, Tally]:
        """`count` conversations of `units` units, heard by the template judge and by the recogniser (English)."""
        template, recogniser = Tally(), Tally()
        for first in range(0, count, self.batch):
            seeds = range(_SEED + first, _SEED + min(first + self.batch, count))
            for talk, done in self._play([self.studio.conversation(s, units) for s in seeds], options):
                self.ears.template.conversation(talk.scenario, done, template)
                if talk.scenario.language == "en":
                    self.ears.recogniser.conversation(talk.scenario, done, recogniser)
        return template, recogniser

    def quiet(self, stretches: int) -> Tally:
        """Stretches of 10 s without speech or cards, with noise, music and knocks."""
        tally, units = Tally(), 124
        for first in range(0, stretches // 2, self.batch):
            seeds = range(_SEED + first, _SEED + min(first + self.batch, stretches // 2))
            for _, done in self._play([self.studio.conversation(s, units, quiet=True) for s in seeds], {}):
                self.ears.template.quiet(done, tally)
        return tally

    def minutes(self, sessions: int, count: int) -> list[float]:
        """Share of right answers in each minute of conversations that last `count` minutes."""
        tally = Tally()
        talks = [self.studio.conversation(_SEED + 500 + i, count * MINUTE) for i in range(sessions)]
        for talk, done in self._play(talks, {}):
            self.ears.template.conversation(talk.scenario, done, tally)
        return [tally.share(f"minute_{m}") or 0.0 for m in range(count)]

    def _play(self, talks: list[Conversation], options: dict[str, object]):  # type: ignore[no-untyped-def]
        units = len(talks[0].state)
        with Stage(self.engines, len(talks), units, **options) as stage:  # type: ignore[arg-type]
            return list(zip(talks, stage.run(talks), strict=True))


def judged(template: Tally, recogniser: Tally) -> Figures:
    """Figures with the stricter of the two judges where they differ."""
    found, other = figures(template), figures(recogniser)
    for name in ("answer_accuracy_audio_judge", "audio_agrees_with_own_text"):
        found[f"{name}_template"], found[f"{name}_recogniser_en"] = found[name], other[name]
        values = [v for v in (found[name], other[name]) if v is not None]
        found[name] = min(values) if values else None
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.eval", description=__doc__)
    parser.add_argument("--engines", type=Path, default=Path("build/engines/tiny"))
    parser.add_argument("--out", type=Path, default=Path("build/runs/eval"))
    parser.add_argument("--cache", type=Path, default=Path("build/cache"))
    parser.add_argument("--talks", type=int, default=24, help="conversations of 48 s")
    parser.add_argument("--quiet", type=int, default=96, help="silent or noisy stretches of 10 s")
    parser.add_argument("--sessions", type=int, default=4, help="long conversations")
    parser.add_argument("--minutes", type=int, default=10, help="length of the long conversations")
    parser.add_argument("--no-variants", action="store_true", help="skip the comparison of solver steps and retention")
    a = parser.parse_args()
    console, begin = Console(), time.perf_counter()
    evaluation = Evaluation(a.engines, a.cache, console)

    def log(text: str) -> None:
        console.print(f"[{time.perf_counter() - begin:5.0f} s] {text}")

    log(f"{a.talks} conversations of 48 s")
    template, recogniser = evaluation.talks(a.talks, 300)
    found = judged(template, recogniser)
    log(f"{a.quiet} stretches of silence, noise and music")
    found["false_start_rate"] = evaluation.quiet(a.quiet).share("false_start_rate")
    log(f"{a.sessions} conversations of {a.minutes} minutes")
    minutes = evaluation.minutes(a.sessions, a.minutes) if a.sessions else []
    # Stable: up to the last minute whose accuracy is within 3 points of the first two minutes' mean.
    base = sum(minutes[:2]) / max(1, len(minutes[:2]))
    found["minutes_stable"] = float(next((i for i, m in enumerate(minutes) if m < base - 0.1), len(minutes)))
    variants: dict[str, Figures] = {}
    for name, options in {} if a.no_variants else VARIANTS.items():
        log(f"variant: {name}")
        variants[name] = judged(*evaluation.talks(8, 200, **options))
    summary = {
        **found,
        "retention": DEFAULT_RETENTION,
        "minutes": minutes,
        "ceilings": evaluation.ears.ceilings(),
        "trials": dict(template.trials),
        "mistakes": [[*pair, n] for pair, n in template.mistakes.most_common(20)],
        "variants": variants,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    report.write(a.out, summary, found, variants)
    report.plot(a.out, template, minutes)
    missed = report.misses(found)
    for line in missed:
        log(f"MISSED {line}")
    log(f"{len(report.TARGETS) - len(missed)} of {len(report.TARGETS)} targets met; {a.out / 'summary.json'}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
