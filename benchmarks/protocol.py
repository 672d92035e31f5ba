"""A worker is a process that loads once and then works a block whenever it is told to.

Commands and replies are JSON lines over stdin and stdout. Because only one worker works at a time and the sides take
turns, whatever else slows the machine slows both alike. Standard library only: both environments import this file.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Channel:
    """The worker's end. What libraries print goes to stderr, so that only replies are on stdout."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any] | None:
        """The next command; None when the other side is gone."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def send(self, **reply: Any) -> None:
        self._out.write(json.dumps({**reply, "peak_gib": peak_gib()}) + "\n")
        self._out.flush()


class Stopwatch:
    """Wall and CPU seconds over the parts of a block that count."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def __enter__(self) -> Stopwatch:
        self._at = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._at[0]
        self.cpu += time.process_time() - self._at[1]


def peak_gib() -> float:
    """The largest resident set of this process so far (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (30 if sys.platform == "darwin" else 20)


class Worker:
    """Our end. Use as a context manager: the process ends with the block."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(environment),
            text=True,
        )
        self.ready = self._reply()

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **command}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # _reply says what the process left behind
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        tail = self._errors.read()[-3000:]
        raise RuntimeError(f"{self.name} ended with exit code {code}:\n{tail}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._errors.close()
