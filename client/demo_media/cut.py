"""Cuts the demo's user out of its sources: `python client/demo_media/cut.py POCKETSPHINX_SDIST FACE_GIF`.

SOURCES.md says where the two come from. Needed only to make the two files again; the demo itself uses the files that
lie next to this one.
"""

from __future__ import annotations

import io
import sys
import tarfile
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HERE = Path(__file__).parent
RATE = 16_000
SENTENCES = ("0880", "0890", "0920", "0930")  # numbers of the LibriVox sentences in the PocketSphinx test data
LEAD_SECONDS, PAUSE_SECONDS = 0.8, 2.4
FADE = 160  # samples; 10 ms, so that a cut does not click
BOX = (135, 10, 343, 218)  # left, top, right, bottom of the face in the 480 x 270 picture
GIF_RATE = Fraction(25, 2)


def speech(sdist: Path) -> np.ndarray:
    """The sentences with pauses, int16 [n] at 16 kHz."""
    parts = [np.zeros(round(LEAD_SECONDS * RATE), np.int16)]
    folder = f"{sdist.name.removesuffix('.tar.gz')}/test/data/librivox"
    with tarfile.open(sdist) as archive:
        for number in SENTENCES:
            name = f"{folder}/sense_and_sensibility_01_austen_64kb-{number}.wav"
            data = archive.extractfile(name)
            if data is None:
                raise FileNotFoundError(f"{sdist}: expected {name}")
            with wave.open(io.BytesIO(data.read())) as file:
                pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float64)
            pcm[:FADE] *= np.linspace(0, 1, FADE)
            pcm[-FADE:] *= np.linspace(1, 0, FADE)
            parts += [pcm.astype(np.int16), np.zeros(round(PAUSE_SECONDS * RATE), np.int16)]
    return np.concatenate(parts)


def write_speech(pcm: np.ndarray, path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("flac", rate=RATE, layout="mono", options={"compression_level": "12"})
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def write_face(gif: Path, path: Path) -> None:
    """The cropped clip forwards and then backwards, so that it can be repeated without a jump."""
    left, top, right, bottom = BOX
    with av.open(str(gif)) as file:
        pictures = [f.to_ndarray(format="rgb24")[top:bottom, left:right] for f in file.decode(video=0)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=GIF_RATE, options={"crf": "21", "preset": "veryslow"})
        stream.height, stream.width, stream.pix_fmt = bottom - top, right - left, "yuv420p"
        for picture in pictures + pictures[-2:0:-1]:
            file.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture, dtype=np.uint8), format="rgb24"))
            )
        file.mux(stream.encode(None))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write_speech(speech(Path(sys.argv[1])), HERE / "user_speech.flac")
    write_face(Path(sys.argv[2]), HERE / "user_face.mp4")
