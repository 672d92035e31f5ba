"""The child of `_pool`: reads tasks, one JSON line each, and answers each with one line. Not imported by the package.

It limits its own memory for good and its own processor time an item; both end the item, not the process. Answers:
{"score": number}, {"refused": why} where the gold cannot be read, {"unreadable": true} where the answer cannot be,
{"stopped": "timeout" | "memory"}.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class _OutOfTime(BaseException):
    """Not an Exception: the libraries catch those and go on."""


def _ring(*_: Any) -> NoReturn:
    signal.setitimer(signal.ITIMER_PROF, 0.2)  # some code swallows even this: ring until it has ended
    raise _OutOfTime


def answer(work: Callable[[Any], dict[str, Any]], task: Any, seconds: float) -> dict[str, Any]:
    """One item within its limits."""
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds)
            return work(task)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _OutOfTime:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return {"stopped": "timeout"}
    except MemoryError:
        return {"stopped": "memory"}
    except RecursionError:
        return {"unreadable": True}


def main(kind: str, seconds: float, memory_mib: int) -> None:
    work = importlib.import_module(f"shoestring.rewards._work_{kind}").prepare()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the libraries print must not be read as an answer
    os.dup2(1, 2)
    signal.signal(signal.SIGPROF, _ring)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with contextlib.suppress(ValueError, OSError):  # not limitable on macOS: the clock still is
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    print("ready", file=out)
    for line in sys.stdin:
        print(json.dumps(answer(work, json.loads(line), seconds)), file=out)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
