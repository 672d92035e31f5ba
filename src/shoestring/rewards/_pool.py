"""Worker processes that can be killed in the middle of an item, and are replaced. Standard library only.

Symbolic algebra on a model's answer may never end, and math-verify's own limit is a signal that only a main thread
receives. So each item goes to a process of its own (`_worker`), which limits its own processor time and memory; where
that does not bite (one long C call), the parent kills it by the clock and starts another.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring.records import UserError

START_SECONDS = 120.0  # importing the libraries on a busy machine
FIRST_MARK = "ready"


class _Worker:
    """One child. `item` is the index that it works on, `due` when it is killed for it."""

    def __init__(self, kind: str, seconds: float, memory_mib: int) -> None:
        root = str(Path(__file__).resolve().parents[2])
        env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")}
        env |= {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-m", "shoestring.rewards._worker", kind, str(seconds), str(memory_mib)],
            # -P: a file math.py in the folder where a user works must not become the standard library's
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True,
        )  # fmt: skip
        assert self.child.stdin and self.child.stdout
        self.writer, self.reader = self.child.stdin, self.child.stdout
        self.ready, self.item, self.waiting = False, None, b""
        self.due = time.monotonic() + START_SECONDS

    def send(self, item: int, task: Any, limit: float) -> None:
        self.item, self.due = item, time.monotonic() + limit
        self.writer.write(json.dumps(task).encode() + b"\n")
        self.writer.flush()

    def lines(self) -> list[str] | None:
        """The complete lines that have arrived; None once the child has gone."""
        raw = os.read(self.reader.fileno(), 1 << 16)
        if not raw:
            return None
        *whole, self.waiting = (self.waiting + raw).split(b"\n")
        return [line.decode() for line in whole]

    def kill(self) -> str:
        """End it now; its last words, for the message where it could not even start."""
        self.child.kill()
        with contextlib.suppress(OSError):  # what was still buffered for it has nowhere to go
            self.writer.close()
        self.reader.close()
        assert self.child.stderr
        words = self.child.stderr.read().decode(errors="replace").strip()
        self.child.stderr.close()
        self.child.wait()
        return words


class Pool:
    """A few workers of one kind ("math", "gym"). `run` may be called from any thread; the calls take turns.

    seconds: processor time an item; the clock's limit is three times that, since the machine may be busy.
    killed, restarted: how many items ended by force, and how many workers were started beyond the first ones.
    """

    def __init__(self, kind: str, seconds: float = 2.0, workers: int = 0, memory_mib: int = 2048) -> None:
        self.kind, self.seconds, self.memory_mib = kind, seconds, memory_mib
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.size = workers or min(8, cores)
        self.killed = self.restarted = 0
        self._never_started = 0
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        atexit.register(self.close)

    def close(self) -> None:
        for w in self._workers:
            w.kill()
        self._workers = []

    def run(self, tasks: Sequence[Any]) -> list[dict[str, Any]]:
        """One answer a task, in order: what the worker said, or {"stopped": "timeout" | "memory" | "crashed"}.

        A task is plain data. Raises UserError if the workers cannot start.
        """
        with self._lock:
            try:
                return self._run(tasks)
            except BaseException:  # an interrupted worker's late answer must not become the next item's
                self.close()
                raise

    def _start(self) -> _Worker:
        return _Worker(self.kind, self.seconds, self.memory_mib)

    def _run(self, tasks: Sequence[Any]) -> list[dict[str, Any]]:
        out: list[dict[str, Any] | None] = [None] * len(tasks)
        todo = iter(range(len(tasks)))
        left = len(tasks)
        while len(self._workers) < min(self.size, len(tasks)):
            self._workers.append(self._start())
        with selectors.DefaultSelector() as wait:
            for w in self._workers:
                wait.register(w.reader, selectors.EVENT_READ, w)
                left -= self._next(w, todo, tasks, out) if w.ready else 0
            while left > 0:
                now = time.monotonic()
                busy = [w for w in self._workers if w.item is not None or not w.ready]
                events = wait.select(max(0.0, min(w.due for w in busy) - now))
                for key, _ in events:
                    w: _Worker = key.data
                    lines = w.lines()
                    if lines is None:
                        left -= self._replace(w, wait, out, "crashed")
                        continue
                    for line in lines:
                        if line == FIRST_MARK:
                            w.ready, self._never_started = True, 0
                        else:
                            assert w.item is not None
                            out[w.item], w.item = json.loads(line), None
                            left -= 1
                        left -= self._next(w, todo, tasks, out)
                for w in list(self._workers):
                    if time.monotonic() > w.due and (w.item is not None or not w.ready):
                        left -= self._replace(w, wait, out, "timeout")
        return out  # pyright: ignore[reportReturnType]  # every place is filled: `left` counted them

    def _next(self, w: _Worker, todo: Any, tasks: Sequence[Any], out: list[dict[str, Any] | None]) -> int:
        """Hand a free worker its next task. 1 if it had died in the meantime, which ends that task as crashed."""
        item = next(todo, None)
        if item is None:
            return 0
        try:
            w.send(item, tasks[item], 3 * self.seconds)
        except OSError:  # seen again, and the worker replaced, when its pipe is read
            out[item], w.item = {"stopped": "crashed"}, None
            return 1
        return 0

    def _replace(self, w: _Worker, wait: Any, out: list[dict[str, Any] | None], why: str) -> int:
        wait.unregister(w.reader)
        at = self._workers.index(w)
        words = w.kill()
        if not w.ready and (words or self._never_started >= 2):
            del self._workers[at]
            last = words.splitlines()[-1] if words else f"no sign of life for {START_SECONDS:.0f} seconds"
            raise UserError(f"the {self.kind} grader's worker did not start: {last}")
        self._never_started += not w.ready  # killed by another hand while it loaded: tried again, twice
        done = 0
        if w.item is not None:
            out[w.item] = {"stopped": why}
            self.killed += 1
            done = 1
        self._workers[at] = self._start()
        self.restarted += 1
        wait.register(self._workers[at].reader, selectors.EVENT_READ, self._workers[at])
        return done


_pools: dict[str, Pool] = {}


def shared(kind: str) -> Pool:
    """The process's pool of that kind, started when first used."""
    if kind not in _pools:
        _pools[kind] = Pool(kind)
    return _pools[kind]
