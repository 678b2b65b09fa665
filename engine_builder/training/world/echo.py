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

    share: float = 0.4
    level: tuple[float, float] = (-36.0, -8.0)
    delay: tuple[float, float] = (0.04, 0.3)
    residue: float = 0.3

    def path(self, rng: np.random.Generator) -> EchoPath:
        """A loudspeaker, a microphone and the room between them."""
        gain, delay = 10.0 ** (rng.uniform(*self.level) / 20), int(rng.uniform(*self.delay) * SAMPLE_RATE)
        room = warps.room(rng)
        impulse = np.zeros(delay + room.size, dtype=np.float32)
        impulse[delay:] = gain * room
        return EchoPath(impulse)

    def of(self, agent_pcm: Pcm, rng: np.random.Generator) -> Pcm:
        """What of `agent_pcm` [K, 2560] (unit k is played from k + 1 on) the microphone hears, float32 [K * 2560]."""
        size = agent_pcm.size
        if rng.random() >= self.share:
            return np.zeros(size, dtype=np.float32)
        out = np.zeros(size, dtype=np.float32)
        out[UNIT:] = warps.convolved(agent_pcm[:-1].reshape(-1), self.path(rng).impulse)[: size - UNIT]
        if rng.random() < self.residue:
            # A canceller lets bursts through: a slow random gate, often shut.
            gate = np.clip(rng.normal(0.2, 0.5, size // 800 + 2), 0.0, 1.0)
            out *= np.interp(np.arange(size) / 800, np.arange(gate.size), gate).astype(np.float32)
        return out


class EchoPath:
    """From loudspeaker to microphone, unit by unit: what is played comes back through `impulse` [N]."""

    def __init__(self, impulse: Pcm) -> None:
        self.impulse = impulse
        self._later = np.zeros(impulse.size - 1, dtype=np.float32)

    def heard(self, played: Pcm) -> Pcm:
        """What the microphone hears while `played` [2560] is played, float32 [2560]; the rest comes with the next."""
        out = warps.convolved(played, self.impulse)
        out[: self._later.size] += self._later
        self._later = out[UNIT:]
        return out[:UNIT]
