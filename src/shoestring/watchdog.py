"""Ending a step that runs into the ceiling: the operating system's alarm raises `Overrun` in the step's own thread.

The check before a step goes by what the step says it can use. A step that says too little (a machine that swaps, a network
that hangs) would go on beyond the budget; here it is ended when what is left is just enough to stop safely. What it had
done since the last checkpoint is lost and billed as discarded.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

from shoestring.stages.context import Overrun


class Watchdog:
    """`arm` before a step, `disarm` after it; `rang`: whether it ended one since that was last set to False.

    Does nothing outside the main thread, where no signal arrives.
    """

    def __init__(self) -> None:
        self.main = threading.current_thread() is threading.main_thread()
        self._before = signal.signal(signal.SIGALRM, self._ring) if self.main else None
        self._armed = self.rang = False

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._armed:  # an alarm that arrives while it is being taken back is none
            self._armed, self.rang = False, True
            raise Overrun

    def arm(self, until: float, now: float) -> None:
        """Raise `Overrun` in the main thread at unix second `until`; at once, nearly, where that has passed."""
        if self.main:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, min(max(0.001, until - now), 1e8))

    def disarm(self) -> None:
        self._armed = False
        if self.main:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def close(self) -> None:
        self.disarm()
        if self.main:
            signal.signal(signal.SIGALRM, self._before)


class NoWatchdog:
    """For a clock that is not the machine's: nothing rings."""

    rang = False

    def arm(self, until: float, now: float) -> None: ...

    def disarm(self) -> None: ...

    def close(self) -> None: ...


def of(clock: object) -> Watchdog | NoWatchdog:
    """The alarm goes by the machine's clock; a clock that brings its own (`clock.watchdog`) is asked for it."""
    return Watchdog() if clock is time.time else getattr(clock, "watchdog", NoWatchdog())
