"""The ledger: an append-only file of JSON lines that survives kill -9 at any point.

Each line holds seq, time, kind, payload, prev (the hash of the line before) and hash (SHA-256 of the rest). Every
append is synced to disk under a file lock, and whoever takes the lock first reads what other processes appended, so
two processes on one ledger see one history. Kinds:

    attempt  {"attempt", "process"}             a process began to work
    usage    {a Usage}                          something was used
    reserve  {"id", "attempt", "intent", "stop"} the most that the next step can use, and that stopping after it takes
    release  {"id", "usages"}                   what that step did use, and the end of its reservation: one line, so
                                                that a kill between the two is impossible
    end      {"attempt", "reason", "lease_end"} the process stopped by itself, or was found dead
    reversal {"seq", "reason", "usages"}        what line seq posted counts no more; `usages` stand in its place
    note     {anything}
    charge   {"what", "quantity", ...}          what no machine sees, or its reversal (cost/charges.py); never in `usages`
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from shoestring.cost import accounts
from shoestring.cost.entries import KINDS, Entry, LedgerError, Reservation, State
from shoestring.cost.prices import GB_MONTH, SECOND
from shoestring.cost.process import identify, process_alive
from shoestring.records import Intent, Usage

_FIRST = "0" * 64
_ENTRY_KEYS = {"seq", "time", "kind", "payload", "prev", "hash"}


_LEDGERS: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _forked() -> None:
    """In a forked child: let go of the parent's lock. A child that kept it open would hold it after the parent was
    killed, and a child that used it would not be locked out by the parent."""
    for ledger in list(_LEDGERS):
        ledger._threads = threading.RLock()
        ledger.close()


os.register_at_fork(after_in_child=_forked)


class Ledger:
    """One run's ledger, open for writing. Safe to use from several threads and, on one file, several processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = State()
        self._lock_path = path.with_name(path.stem + ".lock")
        self._threads = threading.RLock()
        self._depth = 0
        self._pid = 0
        self._lock_fd = self._fd = -1
        self._offset = self._seq = 0
        self._last = _FIRST
        self._stale = False
        _LEDGERS.add(self)

    @classmethod
    def open(cls, path: str | Path) -> Ledger:
        """Open or create. A torn last line (the writer was killed) is moved to `ledger.torn`; everything before it
        stays. Raises LedgerError for a broken line elsewhere, UserError where the file cannot be read or written."""
        ledger = cls(Path(path))
        with _explained(ledger.path):
            ledger.path.parent.mkdir(parents=True, exist_ok=True)
        ledger.refresh()
        return ledger

    @staticmethod
    def read(path: str | Path) -> State:
        """The state of a ledger without locking or repairing it, for `bill` and `report`. A torn last line is skipped."""
        ledger = Ledger(Path(path))
        with _explained(ledger.path):
            ledger._take(ledger.path.read_bytes())
        return ledger.state

    def close(self) -> None:
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock_fd = -1
        self._pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # reading

    def refresh(self) -> State:
        """Read what other processes appended."""
        with self._locked():
            return self.state

    def usages(self) -> list[Usage]:
        """Everything used so far, by every process."""
        with self._locked():
            return list(self.state.usages)

    def open_reservations(self) -> list[Reservation]:
        with self._locked():
            return list(self.state.reservations.values())

    def verify(self) -> int:
        """Re-read the whole file, check the chain and that the accounts balance (cost/accounts.py). Returns the number of
        lines; raises LedgerError naming the line, or the attempt whose seconds do not add up to its lease."""
        with self._locked():
            fresh = Ledger(self.path)
            with _explained(self.path):
                rest = fresh._take(self.path.read_bytes())
            if rest or (fresh._seq, fresh._last) != (self._seq, self._last):
                raise LedgerError(f"{self.path}:{fresh._seq + 1}: the ledger changed under a running process")
            for complaint in accounts.unbalanced(fresh.state):
                raise LedgerError(f"{self.path}: {complaint}")
            return fresh._seq

    # writing

    def append(self, kind: str, payload: Mapping[str, Any], now: float | None = None) -> Entry:
        """Append one line and sync it. Raises UserError where the disk is full or the file cannot be written."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}")
        with self._locked():
            body = {"seq": self._seq + 1, "time": time.time() if now is None else now, "kind": kind,
                    "payload": json.loads(_json(payload)), "prev": self._last}  # fmt: skip
            entry = Entry(**body, hash=_digest(body))
            self.state.trial(entry)  # a line that makes no sense is not written
            self._write((_json(asdict(entry)) + "\n").encode())
            self.state.apply(entry)
            self._seq, self._last = entry.seq, entry.hash
            return entry

    def begin(self, attempt: str, now: float | None = None, **info: Any) -> Entry:
        """A process starts to work under this attempt id. It is identified without naming the host."""
        return self.append("attempt", {"attempt": attempt, "process": identify(os.getpid()), **info}, now)

    def end(self, attempt: str, reason: str, now: float | None = None, lease_end: float | None = None) -> Entry:
        """The process stops by itself: "done", "budget", "interrupted" or what the caller names. `lease_end`: unix
        seconds at which its lease ended; from then on its seconds must add up (see `verify`)."""
        own = {} if lease_end is None else {"lease_end": lease_end}
        return self.append("end", {"attempt": attempt, "reason": reason, **own}, now)

    def reverse(self, seq: int, reason: str, usages: Iterable[Usage] = (), now: float | None = None) -> Entry:
        """Take back what line `seq` posted and post `usages` in its place, in one line. Nothing is ever edited.

        Raises LedgerError for a line that posted nothing, or that was taken back before.
        """
        if not reason.strip():
            raise LedgerError(f"{self.path}:{seq}: a reversal needs a reason")
        with self._locked():
            if seq not in self.state.lines:
                why = "was taken back already" if seq in self.state.undone else "posted no usage"
                raise LedgerError(f"{self.path}:{seq}: this line {why}; only a line that counts can be reversed")
            new = [asdict(_checked(u)) for u in usages]
            return self.append("reversal", {"seq": seq, "reason": reason, "usages": new}, now)

    def post(self, usage: Usage, now: float | None = None) -> Entry:
        """Post one usage. Raises ValueError for a quantity that is negative or not a number."""
        return self.append("usage", asdict(_checked(usage)), now)

    def reserve(
        self, intent: Intent, allowed: Callable[[State], bool], attempt: str = "", now: float | None = None,
        stop: Sequence[Usage] = (),
    ) -> str | None:  # fmt: skip
        """Reserve `intent` if `allowed(state)` says so; None if not. The check and the reservation are one act: the
        state holds what other processes appended, and none can append in between. `stop`: what stopping safely will
        take; it is kept from others until this attempt's next reservation or its end."""
        with self._locked():
            for usage in intent.usages:
                _checked(usage)
            if not allowed(self.state):
                return None
            name = f"r{self._seq + 1}"  # unique: the lock is held until the line with this seq is written
            payload = {"id": name, "attempt": attempt, "intent": asdict(intent)}
            if stop and attempt:
                payload["stop"] = [asdict(_checked(u)) for u in stop]
            self.append("reserve", payload, now)
            return name

    def release(self, id: str, usages: Iterable[Usage], now: float | None = None) -> Entry:
        """End a reservation with what was really used. One line: a kill cannot fall between the two."""
        with self._locked():
            if id not in self.state.reservations:
                raise LedgerError(f"{self.path}: reservation {id} is not open")
            return self.append("release", {"id": id, "usages": [asdict(_checked(u)) for u in usages]}, now)

    def recover(
        self, now: float | None = None, alive: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> list[Usage]:
        """Close what dead processes left open, and return what was posted for it.

        A reservation of a dead attempt is released with outcome "failed": seconds up to the reservation's age and
        size (times the machines, where the usage's start and end tell how many), everything else in full, because a
        call that was sent may have been charged. `alive(attempt payload)` decides who is dead; by default the process
        is looked up on this machine. An attempt that never called `begin` counts as dead.
        """
        posted: list[Usage] = []
        with self._locked():
            moment = time.time() if now is None else now
            for held in list(self.state.reservations.values()):
                begun = self.state.attempts.get(held.attempt)
                if begun and held.attempt not in self.state.ended and (alive or process_alive)(begun):
                    continue
                left = max(0.0, moment - held.time)
                used = [_lost(u, held, left) for u in held.intent.usages]
                self.release(held.id, used, now)
                posted += used
        return posted

    # the file

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._threads:
            if self._pid != os.getpid():
                self._pid, self._depth = os.getpid(), 0
                with _explained(self.path):
                    self._lock_fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                    self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                    _sync_folder(self.path.parent)
            if not self._depth:
                with _explained(self.path):
                    fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            self._depth += 1
            try:
                if self._depth == 1:
                    self._catch_up()
                yield
            except LedgerError:
                raise
            except BaseException:  # Ctrl-C can fall between a line and its place in memory: read everything again
                self._stale = True
                raise
            finally:
                self._depth -= 1
                if not self._depth:
                    fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        if self._stale:
            self.state, self._offset, self._seq, self._last, self._stale = State(), 0, 0, _FIRST, False
        with _explained(self.path):
            size = os.fstat(self._fd).st_size
            if size == self._offset:
                return
            if size < self._offset:
                raise LedgerError(f"{self.path}: became shorter while it was open; something else wrote to it")
            data = os.pread(self._fd, size - self._offset, self._offset)
            torn = self._take(data)
            if torn:  # the lock is held, so its writer is dead
                self._set_aside(torn)

    def _take(self, data: bytes) -> bytes:
        """Apply the whole lines of `data`; return the torn rest."""
        lines = data.split(b"\n")
        rest = lines.pop()
        for n, line in enumerate(lines):
            body = _parse(line)
            if body is None and n == len(lines) - 1 and not rest:
                return line + b"\n"  # the last line of all: a crash of the machine can leave zeros there
            entry = self._entry(body)
            self._seq, self._last = entry.seq, entry.hash
            self._offset += len(line) + 1
        return rest

    def _entry(self, body: dict[str, Any] | None) -> Entry:
        where = f"{self.path}:{self._seq + 1}"
        if body is None:
            raise LedgerError(f"{where}: not a ledger line")
        stated = body.pop("hash")
        if body["seq"] != self._seq + 1 or body["prev"] != self._last or _digest(body) != stated:
            raise LedgerError(f"{where}: the chain of hashes is broken; this line or the one before was changed")
        entry = Entry(**body, hash=stated)
        try:
            self.state.apply(entry)
        except (KeyError, TypeError, ValueError) as e:
            raise LedgerError(f"{where}: {entry.kind} line is not understood: {e}") from None
        return entry

    def _set_aside(self, torn: bytes) -> None:
        # first the copy, then the cut: a kill in between leaves the piece twice, never not at all
        fd = os.open(self.path.with_name(self.path.stem + ".torn"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(fd, torn if torn.endswith(b"\n") else torn + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.ftruncate(self._fd, self._offset)
        os.fsync(self._fd)

    def _write(self, line: bytes) -> None:
        with _explained(self.path):
            try:
                done = 0
                while done < len(line):
                    done += os.write(self._fd, line[done:])
                os.fsync(self._fd)
            except OSError:
                with contextlib.suppress(OSError):  # what could not be written whole must not stay in part
                    os.ftruncate(self._fd, self._offset)
                raise
        self._offset += len(line)


def _lost(usage: Usage, held: Reservation, left: float) -> Usage:
    """What a dead attempt used of one reserved usage, `left` seconds after it reserved."""
    took, quantity = left, usage.quantity
    if usage.unit == SECOND:
        planned = usage.end - usage.start
        machines = quantity / planned if planned > 0 else 1.0
        quantity = min(quantity, left * machines)
        took = quantity / machines if machines else 0.0
    elif usage.unit == GB_MONTH and usage.end > usage.start:  # storage, while it was provisioned
        took = min(left, usage.end - usage.start)
        quantity *= took / (usage.end - usage.start)
    attempt = usage.attempt or held.attempt
    return replace(usage, quantity=quantity, start=held.time, end=held.time + took, attempt=attempt, outcome="failed")


def _checked(usage: Usage) -> Usage:
    if not math.isfinite(usage.quantity) or usage.quantity < 0:
        raise ValueError(f"usage of {usage.sku} with quantity {usage.quantity!r}")
    return replace(usage, quantity=float(usage.quantity))


def _json(data: Any) -> str:
    return json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(body).encode()).hexdigest()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(line)
    except ValueError:
        return None
    return body if isinstance(body, dict) and set(body) == _ENTRY_KEYS else None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system says about the file into one line for the user."""
    try:
        yield
    except OSError as e:
        said = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
                errno.EACCES: "no permission", errno.EPERM: "no permission", errno.EROFS: "the disk is read-only",
                errno.ENOENT: "no such file"}.get(e.errno or 0, (e.strerror or str(e)).lower())  # fmt: skip
        raise LedgerError(f"{path}: the ledger cannot be used: {said}; the run stops, nothing posted is lost") from None
