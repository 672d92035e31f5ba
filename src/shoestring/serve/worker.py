"""One thread owns the engine and serves a queue: requests that overlap in time share its decode steps."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shoestring.generate.request import Completion, Request
from shoestring.serve.reader import Reader


class Session(Protocol):
    """A running batch that takes requests as they come (`generate.engine.Session`). Used by one thread."""

    @property
    def idle(self) -> bool: ...
    def add(self, request: Request) -> int: ...
    def cancel(self, id: int) -> bool: ...
    def step(self) -> Sequence[tuple[int, int, float] | tuple[int, Completion]]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Piece:
    """One token of choice `index`, and the text that became certain with it (often another token's, sometimes none)."""

    index: int
    token: int
    logprob: float
    text: str


@dataclass(frozen=True)
class End:
    """The end of choice `index` with the text that was still held back. reason "refused": the request cannot be met;
    "failed": the engine broke."""

    index: int
    reason: Literal["stop", "length", "refused", "failed"]
    text: str = ""
    error: str = ""


@dataclass(eq=False)
class Job:
    """One choice. `emit` is called by the engine's thread and must not block."""

    index: int
    request: Request
    reader: Reader
    emit: Callable[[Piece | End], None]
    id: int = field(default=-1)  # the session's
    gone: bool = False


class Worker:
    """`submit` and `cancel` may be called from any thread. `open_session` is called again after an engine's failure."""

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._open = open_session
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._thread: threading.Thread | None = None
        self.ended = False  # no engine any more: it was stopped, or a new session could not be opened

    def start(self) -> None:
        """The first session is opened here, so that a cache that does not fit is the caller's to report."""
        self._thread = threading.Thread(target=self._run, args=(self._open(),), name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End now: whatever still runs is told so."""
        self._inbox.put(("stop", ()))
        if self._thread is not None:
            self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start these together, so that their common prompt is computed once."""
        self._inbox.put(("add", jobs))
        if self.ended:  # whoever comes too late must be answered as well
            self._drain()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forget these; nothing more is emitted for them, and what they hold in the cache is free at the next step."""
        self._inbox.put(("cancel", jobs))

    def _run(self, session: Session) -> None:
        try:
            while self._read_inbox(session):
                try:
                    for event in session.step():
                        self._event(session, event)
                except Exception as e:  # whatever it is, other clients must go on being served
                    traceback.print_exc(file=sys.stderr)
                    self._end_all(f"the engine failed ({type(e).__name__})")
                    session.close()
                    session = self._open()
            session.close()
        finally:
            self.ended = True
            self._end_all("the server is stopping")
            self._drain()

    def _read_inbox(self, session: Session) -> bool:
        """Take in everything that has come; wait for something if there is nothing to do. False: stop."""
        while True:
            try:
                what, jobs = self._inbox.get(block=session.idle)
            except queue.Empty:
                return True
            if what == "stop":
                return False
            for job in jobs:
                if what == "cancel":
                    job.gone = True
                    if self._jobs.pop(job.id, None) is not None:
                        session.cancel(job.id)
                elif not job.gone:
                    job.id = session.add(job.request)
                    self._jobs[job.id] = job

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                what, jobs = self._inbox.get_nowait()
                for job in jobs if what == "add" else ():
                    job.emit(End(job.index, "failed", error="the server is stopping"))

    def _event(self, session: Session, event: tuple[int, int, float] | tuple[int, Completion]) -> None:
        job = self._jobs.get(event[0])
        if job is None:  # ended by a stop string within this very step
            return
        if len(event) == 3:
            _, token, logprob = event
            # a stop token is counted and listed, but it is no part of the text
            text = "" if token in job.request.stop else job.reader.feed(token)
            job.emit(Piece(job.index, token, logprob, text))
            if job.reader.stopped:
                session.cancel(job.id)
                self._finish(job, End(job.index, "stop"))
            return
        done = event[1]
        if done.reason == "error":
            self._finish(job, End(job.index, "refused", error=done.error))
        else:
            text = job.reader.end()
            self._finish(job, End(job.index, "stop" if job.reader.stopped else done.reason, text))

    def _finish(self, job: Job, end: End) -> None:
        del self._jobs[job.id]
        job.emit(end)

    def _end_all(self, why: str) -> None:
        for job in list(self._jobs.values()):
            self._finish(job, End(job.index, "failed", error=why))
