"""A judge off the shelf: PocketSphinx with its bundled US-English model and a grammar of the task's words."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..world.voices import SAMPLE_RATE, Pcm

_LEAD, _TAIL = 3200, 4800  # silence around a word, samples: the recogniser estimates the noise floor in it
_DITHER = 1e-3


class Recogniser:
    """Knows English words of its dictionary only. Raises ImportError with advice if PocketSphinx is missing."""

    def __init__(self, words: Sequence[str]) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ImportError("pocketsphinx: not installed; `pip install pocketsphinx` (extra `eval`)") from error
        self.words = tuple(words)
        with tempfile.TemporaryDirectory() as folder:
            grammar = Path(folder) / "words.gram"
            grammar.write_text(f"#JSGF V1.0; grammar words; public <word> = {' | '.join(self.words)};")
            self._decoder = Decoder(jsgf=str(grammar), loglevel="FATAL", samprate=SAMPLE_RATE)

    def judge(self, pcm: Pcm) -> str:
        """The recognised word, '' if none."""
        peak = max(float(np.abs(pcm).max()), 1e-6)
        padded = np.concatenate([np.zeros(_LEAD), pcm * (0.7 / peak), np.zeros(_TAIL)])
        padded = padded + np.random.default_rng(0).normal(0.0, _DITHER, padded.size)
        decoder = self._decoder
        decoder.start_utt()
        decoder.process_raw((np.clip(padded, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found is not None else ""
