"""When the next user unit goes to the model: every 160 ms, in step with the user's microphone.

The model lives on a continuous stream, so a unit leaves also when nothing has arrived. A unit that is complete leaves
at once, up to EARLY before it is due: a microphone has a clock and a phase of its own, and holding its units back for
a beat of ours would cost 80 ms on average. An incomplete one is waited for up to LATE. The beat follows the microphone
slowly; audio that comes in bursts (a file) never makes it faster.
"""

from __future__ import annotations

from client.stream.units import UNIT_SECONDS

EARLY = 0.040
LATE = 0.080
FOLLOW = 0.25  # share of the phase difference that the beat takes over with each unit
BEHIND = 2 * UNIT_SECONDS  # the beat gives up that much lateness instead of sending a burst


class UnitClock:
    """Pure policy; times are seconds of any one monotonic clock."""

    def __init__(self, start: float) -> None:
        self.due = start + UNIT_SECONDS
        self.slips = 0  # times the beat gave up lateness

    def wait(self, now: float, backlog: float) -> float:
        """Seconds until the unit should leave, 0 or less when it should leave now. backlog: units of waiting audio."""
        if backlog >= 2.0:
            return self.due - now
        return self.due - now - EARLY if backlog >= 1.0 else self.due - now + LATE

    def left(self, now: float, *, complete: bool, backlog: float) -> None:
        """The unit left at `now`. complete: nothing was padded.  backlog: units that still wait."""
        error = now - self.due
        if error > BEHIND:
            self.due = now
            self.slips += 1
        elif complete and backlog < 1.0 and error <= LATE:
            self.due += FOLLOW * error
        self.due += UNIT_SECONDS
