"""One thread owns the engine and serves a queue: requests that overlap in time share its decode steps."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shoestring.generate.request import Event, Request, Top
from shoestring.serve.talk import Talk


class Session(Protocol):
    """A running batch that takes requests as they come (`generate.engine.Session`). Used by one thread."""

    rows: Any
    waiting: Any
    prefixes: Any
    pool: Any

    @property
    def idle(self) -> bool: ...
    def add(self, request: Request) -> int: ...
    def cancel(self, id: int) -> bool: ...
    def step(self) -> Sequence[Event]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Piece:
    """One token of choice `index`, and the text that became certain with it (often another token's, sometimes none).

    text is the answer's, thought that of the thinking before it. thinking: thinking tokens of this choice so far.
    seconds: of the engine's work, this token's share. cached: prompt tokens whose keys and values were in the cache already
    (with a choice's first token only). tops: the likeliest tokens in its place, where they were asked for.
    """

    index: int
    token: int
    logprob: float
    text: str
    thought: str = ""
    thinking: int = 0
    seconds: float = 0.0
    cached: int = 0
    tops: Top = ()


@dataclass(frozen=True)
class End:
    """The end of choice `index` with the text that was still held back. reason "refused": the request cannot be met;
    "failed": the engine broke. thinking: the thinking tokens as the engine counted them, None where it did not."""

    index: int
    reason: Literal["stop", "length", "refused", "failed"]
    text: str = ""
    error: str = ""
    thought: str = ""
    thinking: int | None = None


@dataclass(frozen=True)
class Load:
    """What the engine holds: answers decoded together, answers that wait for room, blocks of its cache."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks: int = 0


@dataclass(eq=False)
class Job:
    """One choice. `emit` is called by the engine's thread and must not block."""

    index: int
    request: Request
    reader: Talk
    emit: Callable[[Piece | End], None]
    id: int = field(default=-1)  # the session's
    gone: bool = False
    begun: bool = False  # its first token has come


class Worker:
    """`submit` and `cancel` may be called from any thread. `open_session` is called again after an engine's failure."""

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._open = open_session
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._thread: threading.Thread | None = None
        self.ended = False  # no engine any more: it was stopped, or a new session could not be opened
        self.load = Load()  # as of the last step; replaced as a whole, so any thread may read it
        self._unshared = 0.0  # seconds of steps that no token has been charged for yet

    def start(self) -> None:
        """The first session is opened here, so that a cache that does not fit is the caller's to report."""
        self._thread = threading.Thread(target=self._run, args=(self._open(),), name="engine", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """`stop`, without waiting for the engine's thread."""
        self._inbox.put(("stop", ()))

    def stop(self) -> None:
        """End now: whatever still runs is told so."""
        self.end()
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
                    self._step(session)
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

    def _step(self, session: Session) -> None:
        # prompts in the cache, which only somebody who waits can find there
        known = {prompt for prompt, p in session.prefixes.items() if p.logits is not None} if session.waiting else ()
        begin = time.perf_counter()
        events = session.step()
        self._unshared += time.perf_counter() - begin
        tokens = sum(len(e) != 2 for e in events)  # none where all are held back: the next ones bear these seconds too
        share = self._unshared / tokens if tokens else 0.0
        self._unshared = 0.0 if tokens else self._unshared
        for event in events:
            self._event(session, event, share, known)

    def _read_inbox(self, session: Session) -> bool:
        """Take in everything that has come; wait for something if there is nothing to do. False: stop."""
        while True:
            pool = session.pool
            self.load = Load(len(session.rows), len(session.waiting), pool.used, pool.capacity)
            try:
                what, jobs = self._inbox.get(block=session.idle)
            except queue.Empty:
                return True
            if what == "stop":
                return False
            for job in jobs:
                if what == "cancel":
                    job.gone = True
                    if self._jobs.get(job.id) is job:  # a new session's ids begin again: an old id may be another's by now
                        del self._jobs[job.id]
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

    def _event(self, session: Session, event: Event, share: float, known: Container[Any]) -> None:
        job = self._jobs.get(event[0])
        if job is None:  # ended by a stop string within this very step
            return
        if len(event) != 2:
            token, logprob, tops = event[1], event[2], event[3] if len(event) == 4 else ()
            first, job.begun = not job.begun, True
            cached = len(job.request.prompt) if first and job.request.prompt in known else 0
            # a stop token is counted and listed, but it is no part of the text
            said = job.reader.feed(token, show=token not in job.request.stop)
            job.emit(Piece(job.index, token, logprob, said.text, said.thought, said.thinking, share, cached, tops))
            if job.reader.stopped:
                session.cancel(job.id)
                self._finish(job, End(job.index, "stop"))
            return
        done = event[1]
        if done.reason == "error":
            self._finish(job, End(job.index, "refused", error=done.error))
        else:
            said = job.reader.end()
            reason = "stop" if job.reader.stopped else done.reason
            counted = done.thinking if job.request.thinking is not None else None
            self._finish(job, End(job.index, reason, said.text, thought=said.thought, thinking=counted))

    def _finish(self, job: Job, end: End) -> None:
        del self._jobs[job.id]
        job.emit(end)

    def _end_all(self, why: str) -> None:
        for job in list(self._jobs.values()):
            self._finish(job, End(job.index, "failed", error=why))
