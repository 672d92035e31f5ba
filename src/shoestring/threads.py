"""How many threads to compute with while other processes want the cores too.

A parallel step waits for its slowest thread. With one thread a core and a neighbour on one of the cores, every one of the
thousands of small operations in a step waits for the scheduler, and two threads become five to ten times slower than one
(docs/LOG.md). So cores that others keep busy are left to them, and taken back when they are free again. Nothing of ours
depends on the count, and on a processor without AMX no matrix product does: losses, gradients and sampled tokens are
bit-equal (tests/unit/test_threads.py). With AMX, oneDNN cuts some sums among the threads (of 13 row counts, gradients by
the input of SmolLM2's layers at 3 to 6), and their last bits change with the count: `exact` is False, and whoever changes
it says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from shoestring.estimate.machine import PROC, cpu_flags

LEAVE, RETURN = 0.45, 0.2  # cores that others use: above, a core is left to them; below, it is taken back
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def machine_busy(stat: Path = Path("/proc/stat")) -> float | None:
    """Core-seconds that this machine was busy since it started, stolen time included; None where it does not say."""
    try:
        fields = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = (fields + [0] * 8)[:8]
    return (user + nice + system + irq + softirq + steal) / TICKS


def exact(cpuinfo: str | Path = PROC) -> bool:
    """Whether results keep every bit when the count changes. True where the processor does not say what it has."""
    return "amx_bf16" not in cpu_flags(cpuinfo)


def own_busy() -> float:
    """Core-seconds of this process."""
    t = os.times()
    return t.user + t.system


class Threads:
    """Adjusts the thread count between steps. Does nothing where the user chose one with OMP_NUM_THREADS."""

    def __init__(
        self,
        most: int,
        apply: Callable[[int], None],
        busy: Callable[[], float | None] = machine_busy,
        own: Callable[[], float] = own_busy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most, self.count, self._apply = most, most, apply
        self._busy, self._own, self._clock = busy, own, clock
        self._fixed = "OMP_NUM_THREADS" in os.environ or most < 2
        self._last = self._read()

    def _read(self) -> tuple[float, float, float] | None:
        busy = self._busy()
        return None if busy is None else (self._clock(), busy, self._own())

    def adjust(self) -> int | None:
        """Call between steps. Returns the new count if it changed."""
        if self._fixed:
            return None
        now = self._read()
        last = self._last
        if now is None or last is None or now[0] - last[0] < 0.5:
            return None
        self._last = now
        others = max(0.0, (now[1] - last[1]) - (now[2] - last[2])) / (now[0] - last[0])
        count = self.count
        if others > LEAVE:
            count = max(1, self.most - round(others + 0.05))
        elif others < RETURN:
            count = self.most
        if count == self.count:
            return None
        self.count = count
        self._apply(count)
        return count
