"""conversation.mp4: both pictures side by side, the user's voice in the left ear and the agent's in the right.

The agent is shown as a listener would have met it: behind the user by a fixed delay that lets 99% of the answers
arrive. Where all are on time that delay is two units, because unit k may come until user unit k + 1 is complete. A unit
that came later than the delay, or never, holds the last picture in silence. Late units carry a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from ..media.loudness import FLOOR_DB, active
from ..stream.errors import MediaError
from ..stream.units import FPS, FRAMES_PER_UNIT, UNIT_MS, UNIT_SECONDS, Float32, UInt8
from ..talk.conversation import Conversation, UnitRecord
from .canvas import WAVE_SECONDS, Canvas, Side
from .captions import turns

MIN_DELAY, MAX_DELAY = 2, 25  # units; unit k is spoken during unit k, complete at k + 1, on time until k + 2
OUTPUT_RATE = 48_000  # plays everywhere
CAPTION_UNITS = 25  # four seconds after its last word a caption goes
CAPTION_SECONDS = 1.6  # a user's caption stays at least so long


def write_conversation(
    talk: Conversation, path: Path, on_unit: Callable[[int, int], None] | None = None, *, weights: str = ""
) -> None:
    """Writes the file: H.264 and AAC.

    on_unit(done, total) reports progress.  weights: what speaks here, written small into the picture.
    Raises MediaError when there is nothing to show and when encoding fails.
    """
    if not talk.units:
        raise MediaError(f"{path}: no unit was sent, there is nothing to show")
    film = _Film(talk, f"weights: {weights}" if weights else "")
    total = len(talk.units) + film.delay
    try:
        with av.open(f"file:{path}", "w", options={"movflags": "faststart"}) as file:
            canvas = film.canvas
            video = file.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "22"})
            video.width, video.height, video.pix_fmt = canvas.width, canvas.height, "yuv420p"
            sound = file.add_stream("aac", rate=OUTPUT_RATE, layout="stereo")
            sound.bit_rate = 128_000
            resampler = av.AudioResampler(format="fltp", layout="stereo", rate=OUTPUT_RATE)
            samples = talk.shape.samples
            for unit, (frames, piece) in enumerate(film.units()):
                for frame in frames:
                    file.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                chunk = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
                chunk.sample_rate, chunk.pts = talk.shape.sample_rate, unit * samples
                for part in resampler.resample(chunk):
                    file.mux(sound.encode(part))
                if on_unit is not None:
                    on_unit(unit + 1, total)
            for part in resampler.resample(None):
                file.mux(sound.encode(part))
            file.mux(video.encode(None))
            file.mux(sound.encode(None))
    except FFmpegError as error:
        raise MediaError(f"{path}: cannot be written ({error.strerror or error})") from None


def playout_delay(talk: Conversation) -> int:
    """How many units the agent is shown behind the user."""
    times = [u.response_ms for u in talk.units if u.response_ms is not None]
    if not times:
        return MIN_DELAY
    return min(max(1 + math.ceil(float(np.percentile(times, 99)) / UNIT_MS), MIN_DELAY), MAX_DELAY)


def in_time(unit: UnitRecord, delay: int) -> bool:
    """Whether a unit had arrived when a film with this delay shows it."""
    return unit.response_ms is not None and unit.response_ms <= (delay - 1) * UNIT_MS


class _Film:
    """Pictures and sound, unit by unit."""

    def __init__(self, talk: Conversation, note: str) -> None:
        self.delay = playout_delay(talk)
        self.canvas = Canvas(talk.shape.height, talk.shape.width, note)
        self._talk = talk
        spoken, answered = talk.levels()
        answered[[not in_time(unit, self.delay) for unit in talk.units]] = FLOOR_DB
        silence = np.full((self.delay, FRAMES_PER_UNIT), FLOOR_DB)
        levels = np.concatenate([spoken, silence]), np.concatenate([silence, answered])
        self._loud = [np.clip((db.ravel() + 55.0) / 45.0, 0.0, 1.0).astype(np.float32) for db in levels]
        self._talking = active(levels[0])
        self._captions = _Captions(talk, self.delay)
        self._inset = talk.source.video is not None and self.canvas.panel_height >= 2 * talk.shape.height

    def units(self) -> Iterator[tuple[list[UInt8], Float32]]:
        """Of each unit four frames, uint8 [height, width, 3], and float32 [2, samples]: the user at once, the agent
        `delay` units later, silent where nothing was there in time."""
        talk, canvas, samples = self._talk, self.canvas, self._talk.shape.samples
        user = talk.source.pictures(canvas.panel_height, canvas.panel_width)
        mine = next(user)
        agent: UInt8 = np.full(talk.shape.frames, 24, dtype=np.uint8)  # dark until the first answer
        for unit in range(len(talk.units) + self.delay):
            record = talk.units[unit - self.delay] if unit >= self.delay else None
            found = talk.recording.get(record.index) if record is not None and in_time(record, self.delay) else None
            agent = found[1] if found is not None else np.repeat(agent[-1:], FRAMES_PER_UNIT, axis=0)
            sound = np.zeros((2, samples), np.float32)
            if unit < len(talk.units):
                spoken = talk.source.pcm[unit * samples : (unit + 1) * samples]
                sound[0, : spoken.size] = spoken
            if found is not None:
                sound[1] = np.clip(found[0], -1.0, 1.0)
            sides = self._sides(unit, record)
            frames = []
            for index in range(FRAMES_PER_UNIT):
                tick = unit * FRAMES_PER_UNIT + index
                first = max(0, tick + 1 - int(WAVE_SECONDS * FPS))
                peaks = (self._loud[0][first : tick + 1], self._loud[1][first : tick + 1])
                frames.append(canvas.frame(sides, (mine, agent[index]), peaks, tick / FPS))
                if unit < len(talk.units):
                    mine = next(user)
            yield frames, sound

    def _sides(self, unit: int, record: UnitRecord | None) -> tuple[Side, Side]:
        talking = bool(self._talking[unit])
        state = "waiting" if record is None else record.state or "no answer"
        late = record is not None and not record.on_time
        spoken, written = self._captions.at(unit)
        speaking = state not in ("listen", "waiting", "no answer")
        return (
            Side("User", "speaking" if talking else "quiet", talking, spoken, inset=self._inset),
            Side("Agent", state, speaking, written, late),
        )


class _Captions:
    """Which text is to be read during which unit of the film."""

    def __init__(self, talk: Conversation, delay: int) -> None:
        count = len(talk.units) + delay
        self._typed = [""] * count
        self._said = [""] * count
        for caption in talk.source.captions:
            last = max(caption.stop, caption.start + CAPTION_SECONDS)
            for unit in range(int(caption.start / UNIT_SECONDS), min(int(last / UNIT_SECONDS) + 1, count)):
                self._typed[unit] = caption.text
        for record in talk.units if not talk.source.captions else ():
            if record.user_text:
                self._fill(self._typed, record.index, f"types: {record.user_text}")
        for turn in turns(talk.units, "heard") if not talk.source.captions else ():
            self._fill(self._typed, turn.first + delay, turn.text.strip())
        records = {u.index: u for u in talk.units}
        for turn in turns(talk.units):
            text = ""
            for index in range(turn.first, turn.last + 1):
                text += records[index].text if index in records else ""
                self._fill(self._said, index + delay, text)

    @staticmethod
    def _fill(lines: list[str], first: int, text: str) -> None:
        for unit in range(first, min(first + CAPTION_UNITS, len(lines))):
            lines[unit] = text

    def at(self, unit: int) -> tuple[str, str]:
        return self._typed[unit], self._said[unit]
