"""The scripted user of `make demo`: `python -m engine_builder.training.demo_user --out build/media`.

Writes user.flac (words by held-out voices in a noisy room), user.mp4 (a recorded face, coloured cards held in front of
it) and script.json: what the user does when, and what the number tutor owes him for it. The client plays these files
and compares; it knows nothing of this package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from .world.camera import CARD_RGB
from .world.notes import Notes
from .world.room import Room
from .world.speech.crowd import RecordingsMissing
from .world.speech.espeak import SpeechToolMissing
from .world.speech.people import DEFAULT, People
from .world.speech.voices import SAMPLE_RATE, Pcm, Voice, render, user_voices
from .world.words import BACKCHANNELS, COLOURS, Meaning, answer, spoken

FACE = Path(__file__).parents[2] / "client" / "demo_media" / "user_face.mp4"
SCRIPT = "script.json"
PICTURE = 416  # pixels, twice the recording's
FPS = 25
_LEVEL_DB, _NOISE_DB = -20.0, -52.0  # of speech and of the room, full scale
_ROOM = 2  # the bank of noises that held-out conversations have
_ANSWER = 2.6  # seconds left for an answer of four words to start and to end
_RIM = 1.8 / 64  # of the picture: a card's printed edge


@dataclass(frozen=True)
class Event:
    """One thing that the user does, in seconds, and what is due for it.

    kind: 'say', 'type', 'show', 'murmur' or 'quiet'.  words: the due answer, the decisive word first; none for a murmur
    and for silence.  interrupts: the agent is to stop for it.  cut: it is itself interrupted, so its first word is all
    that can be asked for.  card: colour index.
    """

    kind: str
    start: float
    stop: float
    caption: str
    words: tuple[str, ...] = ()
    interrupts: bool = False
    cut: bool = False
    text: str = ""
    card: int = -1


@dataclass(frozen=True)
class Recording:
    """A real person's word."""

    speaker: str
    pcm: Pcm


class Script:
    """Builds the user's half minute from left to right; `now` is where the next thing may start."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.notes = Notes()
        self.now = 1.2
        self.voices = "eSpeak NG, held-out voices"
        self.events: list[Event] = []
        self.clips: list[tuple[float, Pcm]] = []

    def say(
        self,
        voice: Voice | Recording,
        meaning: Meaning,
        language: str,
        *,
        cut: bool = False,
        interrupts: bool = False,
    ) -> None:
        """A word, and time for its answer; `cut`: until just after the answer's first word."""
        word = spoken(meaning, language)
        if isinstance(voice, Recording):
            stop, who = self._speak(voice.pcm), f"{voice.speaker} (a recording) says"
        else:
            stop, who = self._speak(render(word, voice, language)), "says"
        due = self._due(meaning)
        self.events.append(Event("say", self.now, stop, f"{who}: {word}", due, interrupts, cut))
        self.now = stop + (0.9 if cut else _ANSWER if len(due) > 2 else 1.8)

    def murmur(self, voice: Voice, after: float) -> None:
        """A backchannel that starts `after` seconds behind the end of the last word, while the answer is given."""
        start = self.events[-1].stop + after
        clip = render(BACKCHANNELS[1], voice, "en")
        self.clips.append((start, clip))
        self.events.append(Event("murmur", start, start + clip.size / SAMPLE_RATE, "murmurs: mm-hm"))

    def show(self, colour: int, seconds: float = 1.6) -> None:
        due = self._due(Meaning("colour", colour))
        name = COLOURS[self.language][colour]
        self.events.append(Event("show", self.now, self.now + seconds, f"shows a {name} card", due, card=colour))
        self.now += seconds + 1.2

    def type(self, digit: int) -> None:
        due = self._due(Meaning("digit", digit))
        self.events.append(Event("type", self.now, self.now, f"types: {digit}", due, text=str(digit)))
        self.now += _ANSWER + 0.3

    def quiet(self, seconds: float, knock: Pcm) -> None:
        """Nobody says anything, something is knocked over."""
        self.clips.append((self.now + seconds / 2, knock))
        self.events.append(Event("quiet", self.now, self.now + seconds, "says nothing; a knock"))
        self.now += seconds

    def _due(self, meaning: Meaning) -> tuple[str, ...]:
        meant, self.notes = self.notes.meant(meaning), self.notes.after(meaning)
        return answer(meant, self.language)

    def _speak(self, clip: Pcm) -> float:
        self.clips.append((self.now, clip))
        return self.now + clip.size / SAMPLE_RATE

    def sound(self, room: Pcm) -> Pcm:
        """Everything that is heard, float32 [n]; `room` is noise of RMS 1, at least as long."""
        out = room[: round(self.now * SAMPLE_RATE)] * 10 ** (_NOISE_DB / 20)
        for start, clip in self.clips:
            loud = clip[np.abs(clip) > 0.02]
            gain = 10 ** (_LEVEL_DB / 20) / max(float(np.sqrt((loud**2).mean())), 1e-3)
            at = round(start * SAMPLE_RATE)
            part = out[at : at + clip.size]
            part += gain * clip[: part.size]
        return np.clip(out, -1.0, 1.0).astype(np.float32)


def tutorial(people: People | None = None) -> Script:
    """An answer, a barge-in, a murmur, a card, a typed digit, a silence, a question for what was before, a foreign word
    by another voice, a goodbye.

    Three of the digits are `people`'s, if there are any.
    """
    voices = user_voices("held_out", 48)
    first, second = voices[6], voices[1]

    def somebody(number: int, digit: int) -> Voice | Recording:
        if people is None:
            return first
        speaker = number % len(people.speakers)
        return Recording(people.speakers[speaker], people.clip(speaker, digit, 0))

    room = Room(_ROOM)
    script = Script("en")
    if people is not None:
        script.voices += "; three words by real people"
    script.say(first, Meaning("greeting"), "en")
    script.say(somebody(0, 7), Meaning("digit", 7), "en")
    script.say(first, Meaning("digit", 2), "en", cut=True)
    script.say(somebody(1, 6), Meaning("digit", 6), "en", interrupts=True)
    script.show(0)
    script.say(somebody(2, 8), Meaning("digit", 8), "en")
    script.murmur(first, after=0.85)
    script.type(4)
    script.quiet(4.5, 0.25 * room.knock(np.random.default_rng(3)))
    script.say(first, Meaning("recall"), "en")
    script.say(second, Meaning("digit", 3), "de")
    script.show(2)
    script.say(second, Meaning("farewell"), "en")
    script.now += 0.8
    return script


def write(script: Script, out: Path) -> None:
    """The three files; script.json last, so that it vouches for the others."""
    out.mkdir(parents=True, exist_ok=True)
    room = Room(_ROOM).noise(np.random.default_rng(1), round((script.now + 1) * SAMPLE_RATE))
    _write_sound(script.sound(room), out / "user.flac")
    _write_film(script, out / "user.mp4")
    data = {
        "format": 1,
        "language": script.language,
        "seconds": round(script.now, 3),
        "voices": script.voices,
        "events": [asdict(event) for event in script.events],
    }
    (out / SCRIPT).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _write_sound(pcm: Pcm, path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.round(pcm * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def _write_film(script: Script, path: Path) -> None:
    cards = [event for event in script.events if event.card >= 0]
    face = _face()
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"crf": "16", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = PICTURE, PICTURE, "yuv420p"
        for tick in range(round(script.now * FPS)):
            picture = next(face)
            for number, event in enumerate(cards):
                inside = _held_up(tick / FPS, event)
                if inside > 0:
                    picture = _with_card(picture, event.card, inside, number)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))


def _face() -> Iterator[NDArray[np.uint8]]:
    """The recorded man at 25 pictures a second, over and over."""
    while True:
        with av.open(str(FACE)) as file:
            stream = file.streams.video[0]
            repeat = round(Fraction(FPS) / Fraction(stream.average_rate or FPS))
            for frame in file.decode(stream):
                picture = frame.to_ndarray(format="rgb24", width=PICTURE, height=PICTURE, interpolation="BICUBIC")
                for _ in range(repeat):
                    yield picture.astype(np.uint8, copy=False)


def _held_up(now: float, event: Event, slide: float = 0.12) -> float:
    """How far a card is in view, 0..1."""
    return float(np.clip(min(now - event.start, event.stop - now) / slide, 0.0, 1.0))


def _with_card(picture: NDArray[np.uint8], colour: int, inside: float, number: int) -> NDArray[np.uint8]:
    """The picture with a card that comes from below; `number` varies place, size and angle."""
    rng = np.random.default_rng([7, number])
    y, x = np.mgrid[0:PICTURE, 0:PICTURE].astype(np.float32) / PICTURE
    width, height, angle = rng.uniform(0.34, 0.42), rng.uniform(0.34, 0.42), rng.uniform(-0.25, 0.25)
    centre_x, centre_y = rng.uniform(0.4, 0.6), rng.uniform(0.5, 0.6) + (1 - inside) * 0.7
    across = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
    along = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
    depth = np.minimum(width / 2 - abs(across), height / 2 - abs(along))  # inside the edge, in pictures
    alpha = np.clip(depth * PICTURE, 0, 1)[..., None]
    printed = np.clip((depth - _RIM) * PICTURE, 0, 1)[..., None]
    rgb = CARD_RGB[colour]
    card = (215.0 if rgb.mean() <= 128 else 40.0) * (1 - printed) + rgb * printed
    return (picture + alpha * (card * (1.0 + 0.15 * across[..., None]) - picture)).clip(0, 255).astype(np.uint8)


def _people(folder: Path) -> People | None:
    try:
        people = People.load(folder)
    except RecordingsMissing:
        print(f"no recordings of real people in {folder}: all words are synthetic (SPEECH=DIR names another folder)")
        return None
    print(f"three words are recordings of {', '.join(people.speakers[:3])} ({folder})")
    return people


def main(argv: list[str] | None = None) -> int:
    """Without eSpeak NG there is no script, which is said and no failure: the demo then has its recorded user."""
    parser = argparse.ArgumentParser(prog="python -m engine_builder.training.demo_user", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/media"), metavar="DIR")
    parser.add_argument("--speech", type=Path, default=DEFAULT, metavar="DIR", help="recordings of real people, if any")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / SCRIPT).unlink(missing_ok=True)
        write(tutorial(_people(arguments.speech)), out)
    except SpeechToolMissing as error:
        print(error)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
