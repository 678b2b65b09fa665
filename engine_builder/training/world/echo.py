"""The agent's own voice in the user's microphone: from a loudspeaker, late, quieter, and coloured by the room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .speech import warps
from .speech.agent_voice import UNIT
from .speech.voices import SAMPLE_RATE, Pcm


@dataclass(frozen=True)
class Echo:
    """share: of conversations that have one.  level: dB against the agent's voice as sent.  delay: seconds from the
    moment at which a unit can first be heard.  residue: share of echoes that an echo canceller has been at."""

    share: float = 0.6
    level: tuple[float, float] = (-32.0, -6.0)
    delay: tuple[float, float] = (0.04, 0.3)
    residue: float = 0.3

    def of(self, agent_pcm: Pcm, rng: np.random.Generator) -> Pcm:
        """What of `agent_pcm` [K, 2560] (unit k is played from k + 1 on) the microphone hears, float32 [K * 2560]."""
        size = agent_pcm.size
        out = np.zeros(size, dtype=np.float32)
        if rng.random() >= self.share:
            return out
        gain, delay = 10.0 ** (rng.uniform(*self.level) / 20), int(rng.uniform(*self.delay) * SAMPLE_RATE)
        start = UNIT + delay
        if start >= size:
            return out
        out[start:] = gain * agent_pcm.reshape(-1)[: size - start]
        out = warps.in_room(out, rng)
        if rng.random() < self.residue:
            # A canceller lets bursts through: a slow random gate, often shut.
            gate = np.clip(rng.normal(0.2, 0.5, size // 800 + 2), 0.0, 1.0)
            out *= np.interp(np.arange(size) / 800, np.arange(gate.size), gate).astype(np.float32)
        return out
