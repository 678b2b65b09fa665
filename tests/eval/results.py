"""Outcomes of jobs, gathered into figures: the stricter judge's where they differ, with trials and intervals."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from engine_builder.training.judges.figures import Tally, figures

from .minutes import Minutes
from .parts import Part
from .work import Outcome

Figures = dict[str, float | None]
AS_SERVED = ("main", "dense", "quiet")  # groups of the headline figures
_JUDGED = ("answer_accuracy_audio_judge", "answer_accuracy_audio_with_misses", "audio_agrees_with_own_text")
# Shares of the headline, and the name under which they are counted.
SHARES = {
    "answer_accuracy_text": "answer_accuracy_text",
    "answer_accuracy_audio_judge": "answer_accuracy_audio",
    "audio_agrees_with_own_text": "audio_agrees_with_own_text",
    "colour_accuracy": "colour_accuracy_text",
    "text_input_accuracy": "text_input_accuracy_text",
    "false_start_rate": "false_start_rate",
    "backchannel_stop_rate": "backchannel_stop_rate",
}


def pooled(tallies: Iterable[Tally]) -> Tally:
    """All of them as one."""
    total = Tally()
    for tally in tallies:
        for mine, theirs in ((total.hits, tally.hits), (total.trials, tally.trials)):
            mine.update(theirs)
        total.mistakes.update(tally.mistakes)
        for name, values in tally.samples.items():
            total.samples.setdefault(name, []).extend(values)
    return total


def judged(template: Tally, recogniser: Tally) -> Figures:
    """Figures with the stricter of the two judges where they differ."""
    found, other = figures(template), figures(recogniser)
    for name in _JUDGED:
        found[f"{name}_template"], found[f"{name}_recogniser_en"] = found[name], other[name]
        values = [v for v in (found[name], other[name]) if v is not None]
        found[name] = min(values) if values else None
    return found


def interval(tallies: Sequence[Tally], name: str) -> tuple[float, float] | None:
    """95 % interval of a share, the wider of Wilson's and of one that takes conversations for the draws: voice, room
    and noise are drawn once a conversation, so its answers stand or fall together."""
    total = pooled(tallies)
    trials = total.trials[name]
    if not trials:
        return None
    share, z2 = total.hits[name] / trials, 1.96**2
    middle, half = share + z2 / (2 * trials), 1.96 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    scale = 1 + z2 / trials
    wilson = round(max(0.0, (middle - half) / scale), 4), round(min(1.0, (middle + half) / scale), 4)
    drawn = [t for t in tallies if t.trials[name]]
    if len(drawn) < 2:
        return wilson
    spread = sum((t.hits[name] - share * t.trials[name]) ** 2 for t in drawn) * len(drawn) / (len(drawn) - 1)
    half = 1.96 * math.sqrt(spread) / trials
    return round(min(wilson[0], max(0.0, share - half)), 4), round(max(wilson[1], min(1.0, share + half)), 4)


class Results:
    """Everything that has been played so far."""

    def __init__(self) -> None:
        self._template: dict[str, list[Tally]] = defaultdict(list)
        self._recogniser: dict[str, list[Tally]] = defaultdict(list)
        self.played: Counter[str] = Counter()  # conversations by part

    def add(self, outcome: Outcome) -> None:
        group = outcome.part.group
        self._template[group] += outcome.template
        self._recogniser[group] += outcome.recogniser
        self.played[outcome.part.name] += len(outcome.template)

    def template(self, *groups: str) -> list[Tally]:
        """The template judge's tallies of these groups, one a conversation."""
        return [tally for group in groups for tally in self._template[group]]

    def recogniser(self, *groups: str) -> list[Tally]:
        return [tally for group in groups for tally in self._recogniser[group]]

    def figures(self, *groups: str) -> Figures:
        """Figures of these groups together; empty if nothing of them was played."""
        if not self.template(*groups):
            return {}
        total = pooled(self.template(*groups))
        return judged(total, pooled(self.recogniser(*groups))) | {"answers": total.trials["answer_accuracy_text"]}

    def intervals(self) -> dict[str, tuple[float, float] | None]:
        """Of the headline's shares. The audio figures take the judge whose share is lower."""
        template, recogniser = self.template(*AS_SERVED), self.recogniser(*AS_SERVED)
        found: dict[str, tuple[float, float] | None] = {}
        for name, counted in SHARES.items():
            strict = template
            if name in _JUDGED:
                shares = [pooled(t).share(counted) for t in (template, recogniser)]
                if shares[0] is not None and shares[1] is not None and shares[1] < shares[0]:
                    strict = recogniser
            found[name] = interval(strict, counted)
        return found

    def trials(self) -> dict[str, int]:
        """How many trials each headline share has; the delays' are those of their events."""
        total = pooled(self.template(*AS_SERVED))
        counts = {name: total.trials[counted] for name, counted in SHARES.items()}
        counts |= {name: len(total.samples.get(name, ())) for name in ("response_delay_units", "barge_in_stop_units")}
        return counts | {
            "take_over_rate": total.trials["take_over_rate"],
            "av_sync_ms": len(total.samples.get("av_lag_ms", ())),
        }

    def minutes(self, count: int) -> Minutes | None:
        tallies = self.template("minutes")
        return Minutes.of(tallies, count) if tallies else None

    def personas(self, parts: Sequence[Part]) -> dict[str, Figures]:
        """Figures of each persona that was played, and of all that are known, with the ends of 95 % intervals."""
        found = {part.name: self.figures(part.group) for part in parts if self.template(part.group)}
        known = [part for part in parts if part.persona is not None and not part.persona.unseen]
        for part in parts:
            if part.name in found and part not in known:
                found[part.name] |= {"persona_face": None, "persona_voice": None}
        groups = [part.group for part in known]
        if self.template(*groups):
            found["all that are known"] = row = self.figures(*groups)
            for name in ("persona_face", "persona_voice"):
                ends = interval(self.template(*groups), name)
                if ends is not None:
                    row |= {f"{name}_low95": ends[0], f"{name}_high95": ends[1]}
        return found

    def variants(self, parts: Sequence[Part]) -> dict[str, Figures]:
        """Figures of each variant that was played, `text_points` added: accuracy minus that of the first, in points."""
        found: dict[str, Figures] = {}
        for part in parts:
            row = self.figures(part.group)
            if not row:
                continue
            base = next(iter(found.values()), row)
            mine, theirs = row["answer_accuracy_text"], base["answer_accuracy_text"]
            row["text_points"] = None if mine is None or theirs is None else round(100 * (mine - theirs), 2)
            found[part.name] = row
        return found

    def oracle(self) -> dict[str, object]:
        """What the one-pass model said to the engines' decisions; empty if it was not asked."""
        total = pooled(self.template("oracle"))
        if not total.trials["oracle_agrees"]:
            return {}
        return {
            "decisions": total.trials["oracle_agrees"],
            "same": total.hits["oracle_agrees"],
            "largest_latent_difference": max(total.samples["oracle_latent_difference"]),
        }
