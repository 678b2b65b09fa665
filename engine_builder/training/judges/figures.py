"""What an agent did in held-out conversations, judged: the figures of the evaluation.

Nothing here knows the model. Input is a scenario (what the user did and what was due) and a performance (states,
words, audio, frames by unit), wherever that came from. Terms follow Full-Duplex-Bench (Lin et al. 2025).

Delays are those of right answers, and of interruptions of a sentence that was due: in units from the end (answers) or
the start (interruptions) of the user's sound to the moment at which the agent's unit can first be heard. Unit k is
heard from (k + 1) on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from engine_builder.tokenizer import heard_ids, note_ids, word_ids

from ..world.face import GLANCE_UNITS
from ..world.scenario import SPEAK, Reaction, Scenario
from ..world.speech.agent_voice import UNIT
from ..world.speech.voices import Pcm
from .closed_loop import Performance
from .glances import BLINK, EYES, LEFT, MEAN, RIGHT, sides
from .likeness import faces_of, voice_of
from .sync import sync

_UNASKED = 3  # units of a stretch worth judging
_EARLY, _LATE = 1, 6  # an answer may start this many units before and after its due unit
_QUIET = 0.01  # RMS below which a unit is silent
_IN_STEP = 0.5  # least correlation at which mouth and voice have a lag to speak of
_OUT_OF_STEP_MS = 240.0  # what counts instead: the reach of the search
_WHITE = 200  # blue of an eye's white, the bluest pixels there, and more than the blue of skin
_OPEN = (25, 100)  # white pixels of open eyes: about 50
_CLOSED = 0.4  # of the usual number of white pixels: fewer are a blink; head and gaze never leave less than 0.8


@dataclass(frozen=True)
class SpokenWord:
    """A word of the agent: its text, the unit it starts in, its audio, and whether it was spoken to its end."""

    text: str
    unit: int
    pcm: Pcm
    complete: bool


@dataclass
class Tally:
    """Counts and samples collected over conversations; `figures` turns them into numbers."""

    hits: Counter[str] = field(default_factory=Counter)
    trials: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[float]] = field(default_factory=dict)
    mistakes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count(self, name: str, hit: bool) -> None:
        self.trials[name] += 1
        self.hits[name] += hit

    def sample(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)

    def share(self, name: str) -> float | None:
        """Hits per trial; None without trials."""
        return round(self.hits[name] / self.trials[name], 4) if self.trials[name] else None

    def percentile(self, name: str, q: float) -> float | None:
        values = self.samples.get(name)
        return round(float(np.percentile(values, q)), 3) if values else None


class Judge:
    """`hear`: (audio, language, person whose voice it is) -> word, the independent ear."""

    def __init__(self, hear: Callable[[Pcm, str, str], str]) -> None:
        self.hear = hear
        self.words = {token: word for word, token in word_ids().items()}
        self.heard = {token: word for word, token in heard_ids().items()}
        self.silent = self.heard.keys() | set(note_ids().values())  # tokens that are not said

    def conversation(self, scene: Scenario, done: Performance, tally: Tally) -> None:
        """Adds one conversation to the tally."""
        spoken = self.spoken(done)
        heard = [self.hear(w.pcm, scene.language, scene.voice) if w.complete else None for w in spoken]
        for word, ear in zip(spoken, heard, strict=True):
            if ear is not None:
                tally.count("audio_agrees_with_own_text", ear == word.text)
                if ear != word.text:
                    tally.mistakes[word.text, ear] += 1
        for i, reaction in enumerate(scene.reactions):
            limit = self._limit(scene.reactions, i, len(scene.state))
            if reaction.action == "answer" and reaction.unit + 3 < limit:
                self._answer(scene, reaction, limit, spoken, heard, tally)
            elif reaction.action == "stop":
                self._barge_in(scene, reaction, done, spoken, tally)
            elif reaction.action == "nod":
                self._backchannel(scene, reaction, done, spoken, tally)
        self._transcript(scene, done, tally)
        self._unasked(scene, done, spoken, tally)
        self._likeness(scene, done, spoken, tally)
        if spoken:
            lag, correlation = sync(done.frames.reshape(-1, *done.frames.shape[2:]), done.pcm.reshape(-1))
            tally.sample("av_lag_ms", abs(lag) if correlation >= _IN_STEP else _OUT_OF_STEP_MS)
            tally.sample("av_correlation", correlation)

    def _transcript(self, scene: Scenario, done: Performance, tally: Tally) -> None:
        """Word errors of what the agent says it heard: least edits over words said (until the last that was due)."""
        said = [word for word in scene.heard if word is not None]
        told = [self.heard[token] for tokens in done.words for token in tokens if token in self.heard]
        row = list(range(len(told) + 1))
        for i, word in enumerate(said, start=1):
            before, row = row, [i]
            for j, other in enumerate(told, start=1):
                row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (word != other)))
        tally.trials["transcript_error_rate"] += len(said)
        tally.hits["transcript_error_rate"] += row[-1]

    @staticmethod
    def _unasked(scene: Scenario, done: Performance, spoken: list[SpokenWord], tally: Tally) -> None:
        """Stretches after an answer in which nobody says or shows anything: does the agent speak again?"""
        for unit in range(1, len(scene.state)):
            ended = scene.playing[unit - 1] is not None and scene.playing[unit] is None
            if not ended:
                continue
            begun = [u.start // UNIT for u in scene.utterances] + [first // 4 for _, first, _ in scene.cards]
            due = [r.unit for r in scene.reactions if r.action != "nod"]
            ends = [k for k in (*begun, *due, *scene.typed) if k >= unit]
            stop = min([*ends, len(scene.state)])
            start = unit + _LATE  # an answer may be late, and end late
            if stop - start >= _UNASKED:
                tally.count("self_answer_rate", any(start <= w.unit < stop for w in spoken))

    @staticmethod
    def _likeness(scene: Scenario, done: Performance, spoken: list[SpokenWord], tally: Tally) -> None:
        """Face and voice are those of the persona: every unit's last frame, every word spoken to its end."""
        for face in faces_of(done.frames[:, -1]):
            tally.count("persona_face", face == scene.face)
        for word in spoken:
            if word.complete:
                tally.count("persona_voice", voice_of(word.pcm) == scene.voice)

    def quiet(self, done: Performance, tally: Tally, stretch: int = 62) -> None:
        """A conversation in which nothing is said or shown: every 10 s stretch (62 units) is a trial.

        A false start is a unit that speaks; the face is alive if its eyes are open mostly and closed once. Eyes choose
        if an open pair looks to a side; they turn if it is another than at the glance before.
        """
        looks = sides(done.frames)
        for look in looks[looks != BLINK]:
            tally.count("idle_eyes_choose", look != MEAN)
        for before, after in zip(looks, looks[GLANCE_UNITS:], strict=False):
            if {before, after} <= {LEFT, RIGHT}:
                tally.count("idle_eyes_turn", before != after)
        for start in range(0, len(done.state) - stretch + 1, stretch):
            tally.count("false_start_rate", bool((done.state[start : start + stretch] == SPEAK).any()))
            whites = (done.frames[start : start + stretch, :, *EYES, 2] > _WHITE).sum(axis=(2, 3)).reshape(-1)
            usual = float(np.median(whites))
            steady = float((abs(whites - usual) < 0.5 * usual).mean()) > 0.8 and _OPEN[0] < usual < _OPEN[1]
            tally.count("idle_face_blinks", steady and bool(whites.min() < _CLOSED * usual))

    def spoken(self, done: Performance) -> list[SpokenWord]:
        """The agent's words cut by its own text timing (by energy, "six" would break in two)."""
        starts = [(k, token) for k, tokens in enumerate(done.words) for token in tokens if token not in self.silent]
        out = []
        for i, (unit, token) in enumerate(starts):
            stop = unit + 1
            until = starts[i + 1][0] if i + 1 < len(starts) else len(done.state)
            while stop < until and done.state[stop] == SPEAK:
                stop += 1
            # The codec is one hop late: a word's last samples come 20 ms into the next unit.
            pcm = done.pcm[unit : stop + 1].reshape(-1)[320 : (stop - unit) * UNIT + 320]
            # The tail of a complete word is silent; an interrupted one, or the end of the recording, is not.
            complete = stop < len(done.state) and float(np.abs(pcm[-200:]).max(initial=0.0)) < 0.02
            out.append(SpokenWord(self.words.get(token, f"<{token}>"), unit, pcm, complete))
        return out

    @staticmethod
    def _limit(reactions: list[Reaction], index: int, units: int) -> int:
        later = [r.unit for r in reactions[index + 1 :] if r.action != "nod"]
        return min([units, *later])

    def _answer(
        self,
        scene: Scenario,
        due: Reaction,
        limit: int,
        spoken: list[SpokenWord],
        heard: list[str | None],
        tally: Tally,
    ) -> None:
        window = range(due.unit - _EARLY, min(due.unit + _LATE, limit))
        found = next((i for i, word in enumerate(spoken) if word.unit in window), None)
        names = {"speech": "answer", "text": "text_input", "camera": "colour"}
        name = names[due.source]
        tally.count("take_over_rate", found is not None)
        right = found is not None and spoken[found].text == due.words[0]
        tally.count(f"{name}_accuracy_text", right)
        if due.source == "speech":
            tally.count(f"minute_{due.unit // 375}", right)
            tally.count(f"{due.meaning.kind}_answered", right)
        if found is None:
            tally.count(f"{name}_accuracy_audio_with_misses", False)
            return
        if heard[found] is not None:
            tally.count(f"{name}_accuracy_audio", heard[found] == due.words[0])
            tally.count(f"{name}_accuracy_audio_with_misses", heard[found] == due.words[0])
        after = due.unit + sum(1 for k in range(due.unit, limit) if scene.playing[k] == (due.words, k - due.unit))
        if after < limit or limit == len(scene.state):
            said = tuple(w.text for w in spoken[found : found + len(due.words)])
            if spoken[found].unit + 12 < len(scene.state):
                tally.count("sentence_accuracy_text", said == due.words)
        if due.source == "speech" and right:
            ends = [u.stop for u in scene.utterances if u.meaning == due.meaning and u.stop <= (due.unit + 1) * UNIT]
            if ends:
                tally.sample("response_delay_units", spoken[found].unit + 1 - max(ends) / UNIT)

    @staticmethod
    def _talking(scene: Scenario, spoken: list[SpokenWord], unit: int) -> bool:
        """Whether the agent had begun the sentence that is due at `unit`: babble cannot be interrupted."""
        now = scene.playing[unit]
        if now is None:
            return False
        begin = unit - now[1]
        return any(w.text == now[0][0] and begin - _EARLY <= w.unit <= min(unit, begin + _LATE) for w in spoken)

    @classmethod
    def _barge_in(
        cls, scene: Scenario, due: Reaction, done: Performance, spoken: list[SpokenWord], tally: Tally
    ) -> None:
        starts = [u.start for u in scene.utterances if u.meaning == due.meaning and u.start < (due.unit + 1) * UNIT]
        if not starts:
            return
        onset = max(starts)
        first = onset // UNIT
        if first < 1 or done.state[first - 1] != SPEAK or (first > 1 and done.state[first - 2] != SPEAK):
            return  # the agent was not really talking
        if not cls._talking(scene, spoken, first - 1):
            return
        for k in range(first, min(first + 12, len(done.state))):
            if done.state[k] != SPEAK:
                tail = float(np.sqrt((done.pcm[k][UNIT // 2 :] ** 2).mean()))
                tally.count("barge_in_silent", tail < _QUIET)
                tally.sample("barge_in_stop_units", k + 1 - onset / UNIT)
                return
        tally.sample("barge_in_stop_units", 12.0)

    @classmethod
    def _backchannel(
        cls, scene: Scenario, due: Reaction, done: Performance, spoken: list[SpokenWord], tally: Tally
    ) -> None:
        murmurs = [u for u in scene.utterances if u.meaning == due.meaning and u.stop <= (due.unit + 1) * UNIT]
        first = max(u.start for u in murmurs) // UNIT if murmurs else -1
        last = due.unit + 2
        if first < 1 or last >= len(scene.state) or any(s != SPEAK for s in scene.state[first - 1 : last + 1]):
            return
        if done.state[first - 1] != SPEAK or not cls._talking(scene, spoken, first - 1):
            return
        # One unit of slack at the end: an agent that started a unit early also finishes a unit early.
        tally.count("backchannel_stop_rate", bool((done.state[first:last] != SPEAK).any()))


def figures(tally: Tally) -> dict[str, float | None]:
    """The named figures of the evaluation, rounded."""
    out: dict[str, float | None] = {
        "answer_accuracy_text": tally.share("answer_accuracy_text"),
        "self_answer_rate": tally.share("self_answer_rate"),
        "transcript_error_rate": tally.share("transcript_error_rate"),
        "answer_accuracy_audio_judge": tally.share("answer_accuracy_audio"),
        "answer_accuracy_audio_with_misses": tally.share("answer_accuracy_audio_with_misses"),
        "audio_agrees_with_own_text": tally.share("audio_agrees_with_own_text"),
        "sentence_accuracy_text": tally.share("sentence_accuracy_text"),
        "take_over_rate": tally.share("take_over_rate"),
        "response_delay_units_p50": tally.percentile("response_delay_units", 50),
        "response_delay_units_p95": tally.percentile("response_delay_units", 95),
        "barge_in_stop_units_p50": tally.percentile("barge_in_stop_units", 50),
        "barge_in_stop_units_p95": tally.percentile("barge_in_stop_units", 95),
        "barge_in_silent": tally.share("barge_in_silent"),
        "false_start_rate": tally.share("false_start_rate"),
        "backchannel_stop_rate": tally.share("backchannel_stop_rate"),
        "colour_accuracy": tally.share("colour_accuracy_text"),
        "text_input_accuracy": tally.share("text_input_accuracy_text"),
        "again_accuracy": tally.share("again_answered"),
        "recall_accuracy": tally.share("recall_answered"),
        "persona_face": tally.share("persona_face"),
        "persona_voice": tally.share("persona_voice"),
        "idle_face_blinks": tally.share("idle_face_blinks"),
        "idle_eyes_choose": tally.share("idle_eyes_choose"),
        "idle_eyes_turn": tally.share("idle_eyes_turn"),
        "av_sync_ms": tally.percentile("av_lag_ms", 50),
        "av_sync_ms_p95": tally.percentile("av_lag_ms", 95),
        "av_correlation": tally.percentile("av_correlation", 50),
    }
    return out
