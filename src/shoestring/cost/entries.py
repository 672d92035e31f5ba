"""The lines of a ledger and what they add up to. The file itself is `cost/ledger.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoestring.cost import charges
from shoestring.cost.charges import Charge
from shoestring.records import Intent, Usage, UserError

KINDS = ("attempt", "usage", "reserve", "release", "end", "note", "charge", "reversal")


class LedgerError(UserError):
    """The ledger cannot be trusted or cannot be written. It stops the run."""


@dataclass(frozen=True)
class Entry:
    seq: int
    time: float  # unix seconds
    kind: str
    payload: Mapping[str, Any]
    prev: str
    hash: str


@dataclass(frozen=True)
class Reservation:
    id: str
    time: float
    attempt: str
    intent: Intent


@dataclass
class State:
    """What the entries add up to.

    usages: what counts, in order; it grows, and only a reversal takes something out. lines: the same by the line that
    posted it. undone: what was taken back, by the line that had posted it, with the line that took it back.
    reservations: the open ones, by id. stopping: what each attempt would still need to stop safely, by its last
    reservation. leases: (start, end) in unix seconds of every attempt that ended and said when.
    """

    usages: list[Usage] = field(default_factory=list)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    attempts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)  # attempt → reason
    charges: list[Charge] = field(default_factory=list)
    lines: dict[int, tuple[Usage, ...]] = field(default_factory=dict)
    undone: dict[int, tuple[int, tuple[Usage, ...]]] = field(default_factory=dict)
    stopping: dict[str, tuple[Usage, ...]] = field(default_factory=dict)
    leases: dict[str, tuple[float, float]] = field(default_factory=dict)

    def apply(self, entry: Entry) -> None:
        """Raises KeyError, TypeError or ValueError for a line that makes no sense here; then nothing has changed."""
        p = entry.payload
        if entry.kind == "usage":
            self._post(entry.seq, [Usage(**p)])
        elif entry.kind == "reserve":
            stop = _usages(p.get("stop", ()))
            self.reservations[p["id"]] = Reservation(p["id"], entry.time, p["attempt"], _intent(p["intent"]))
            if p["attempt"]:
                self.stopping[p["attempt"]] = stop
        elif entry.kind == "release":
            used = _usages(p["usages"])
            if self.reservations.pop(p["id"], None) is None:
                raise ValueError(f"releases {p['id']}, which is not reserved")
            self._post(entry.seq, used)
        elif entry.kind == "reversal":
            new = _usages(p["usages"])
            if p["seq"] not in self.lines:
                raise ValueError(f"takes back line {p['seq']}, which posts nothing that counts")
            self.undone[p["seq"]] = (entry.seq, self.lines.pop(p["seq"]))
            self.usages = [u for line in self.lines.values() for u in line]
            self._post(entry.seq, new)
        elif entry.kind == "attempt":
            self.attempts[p["attempt"]] = p
        elif entry.kind == "end":
            self._end(p)
        elif entry.kind == "charge":
            self.charges.append(charges.read(entry.seq, entry.time, p))

    def _post(self, seq: int, usages: Iterable[Usage]) -> None:
        posted = tuple(usages)
        if posted:
            self.lines[seq] = posted
            self.usages.extend(posted)

    def _end(self, p: Mapping[str, Any]) -> None:
        attempt = p["attempt"]
        self.ended[attempt] = p["reason"]
        self.stopping.pop(attempt, None)
        begun = self.attempts.get(attempt, {}).get("lease_start")
        if begun is not None and p.get("lease_end") is not None:
            self.leases[attempt] = (float(begun), float(p["lease_end"]))

    def trial(self, entry: Entry) -> None:
        """Apply the entry to a copy of what it could touch: raises what `apply` would raise, and changes nothing."""
        seq = entry.payload.get("seq")
        own = {seq: self.lines[seq]} if entry.kind == "reversal" and seq in self.lines else {}
        State(reservations=dict(self.reservations), lines=own).apply(entry)


def _usages(rows: Iterable[Mapping[str, Any]]) -> tuple[Usage, ...]:
    return tuple(Usage(**u) for u in rows)


def _intent(data: Mapping[str, Any]) -> Intent:
    return Intent(**{**data, "usages": _usages(data["usages"])})
