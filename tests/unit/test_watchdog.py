"""The alarm that ends a step: it rings in the main thread, once, and never after it was taken back."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from shoestring import watchdog
from shoestring.stages.context import Overrun


def test_rings_in_the_middle_of_a_step() -> None:
    before = signal.getsignal(signal.SIGALRM)
    dog = watchdog.of(time.time)
    try:
        now = time.time()
        dog.arm(now + 0.05, now)
        with pytest.raises(Overrun):
            time.sleep(5)
        assert time.time() - now < 2 and dog.rang
        dog.rang = False
        dog.arm(now - 10, time.time())  # the money was gone before it began
        with pytest.raises(Overrun):
            time.sleep(5)
        dog.rang = False
        dog.arm(time.time() + 0.02, time.time())
        dog.disarm()
        time.sleep(0.04)
        assert not dog.rang
        dog.arm(float("1e300"), time.time())
    finally:
        dog.close()
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_no_library_can_swallow_it() -> None:
    assert not issubclass(Overrun, Exception)


def test_other_threads_and_clocks_have_none() -> None:
    made: list[watchdog.Watchdog | watchdog.NoWatchdog] = []
    thread = threading.Thread(target=lambda: made.append(watchdog.of(time.time)))
    thread.start()
    thread.join()
    made.append(watchdog.of(lambda: 0.0))
    for dog in made:
        dog.arm(0.0, 10.0)
        dog.disarm()
        dog.close()
        assert not dog.rang
