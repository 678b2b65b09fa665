"""Which of the agent's output may still be heard after the user cancelled it."""

from __future__ import annotations

SPEAK = "speak"


class Fence:
    """Epochs of one conversation.

    Everything that the agent says in one run of `speak` units carries the epoch in which the run began. `cut` raises
    the epoch, so that the rest of the run, whether it still waits to be sent or has yet to be made, is of the past.
    The model itself goes on: the next run of speech belongs to the new epoch.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.fenced = 0  # messages held back
        self._speaking = False
        self._run = 0  # epoch of the present run
        self._barrier = -1  # last unit that had been sent when the epoch was raised

    @property
    def muted(self) -> bool:
        """The agent is still saying what was cancelled."""
        return self._speaking and self._run != self.epoch

    def stamp(self, unit: int, state: str) -> int:
        """The epoch of what the agent says in `unit`. Call it once for each unit, in order."""
        speaking = state == SPEAK
        if speaking and not self._speaking:
            # A run that answers a unit sent before the cut was under way already, though nobody could know.
            self._run = self.epoch if unit > self._barrier else self.epoch - 1
        self._speaking = speaking
        return self._run if speaking else self.epoch

    def cut(self, last_sent: int) -> int:
        """Cancels what is being said. last_sent: the newest unit that has gone to the model. Returns the new epoch."""
        self.epoch += 1
        self._barrier = last_sent
        return self.epoch

    def passes(self, epoch: int | None) -> bool:
        """The one place where late output is dropped. None: it has no epoch (state, timings, pictures)."""
        if epoch is None or epoch == self.epoch:
            return True
        self.fenced += 1
        return False
