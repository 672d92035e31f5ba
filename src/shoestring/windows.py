"""Off-peak windows: the hours of a day in which a run may work, such as "22:00-06:00 Europe/Berlin".

Everything is a pure function of unix seconds. Summer time is handled as a wall clock handles it: an opening that the clock
jumps over is at the jump, and a night may be an hour longer or shorter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC as UTC_ZONE
from datetime import date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, available_timezones

from shoestring.tables import nearest

_WINDOW = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)\s*-\s*([01]?\d|2[0-3]|24):([0-5]\d)(?:\s+(\S+))?")
UTC = "UTC"


@dataclass(frozen=True)
class Window:
    """Open every day from `start` to `end`, in minutes after midnight of `zone` (an IANA name); `end` at or before `start`
    is on the day after."""

    start: int
    end: int
    zone: str = UTC

    def __str__(self) -> str:
        return f"{_hhmm(self.start)}-{_hhmm(self.end)} {self.zone}"

    def hours(self) -> float:
        """Hours a day, on a day without a change of clocks."""
        return ((self.end - self.start - 1) % 1440 + 1) / 60

    def _zone(self) -> tzinfo:
        return UTC_ZONE if self.zone == UTC else ZoneInfo(self.zone)

    def _span(self, day: date) -> tuple[float, float]:
        """(opens, closes) in unix seconds of the window that opens on `day`."""
        return self._at(day, self.start), self._at(day + timedelta(days=int(self.end <= self.start)), self.end)

    def _at(self, day: date, minutes: int) -> float:
        day += timedelta(days=minutes // 1440)
        return datetime.combine(day, time(minutes // 60 % 24, minutes % 60), self._zone()).timestamp()

    def _spans(self, now: float) -> list[tuple[float, float]]:
        today = datetime.fromtimestamp(now, self._zone()).date()
        return [self._span(today + timedelta(days=d)) for d in (-1, 0, 1, 2)]

    def closes(self, now: float) -> float | None:
        """When the window that is open at `now` closes; None where it is shut."""
        return next((closes for opens, closes in self._spans(now) if opens <= now < closes), None)

    def is_open(self, now: float) -> bool:
        return self.closes(now) is not None

    def next_start(self, now: float) -> float:
        """`now` where it is open, else the unix second at which it opens next."""
        if self.is_open(now):
            return now
        return min(opens for opens, closes in self._spans(now) if opens > now and closes > opens)

    def fits(self, now: float, seconds: float) -> bool:
        """Whether work of this length, begun at `now`, ends before the window shuts. False where it is shut."""
        closes = self.closes(now)
        return closes is not None and now + seconds <= closes

    def finish(self, now: float, seconds: float, restart: float = 0.0) -> tuple[float, int]:
        """(unix second at which work of `seconds` is done, windows used), stopping at each end and going on at the next
        opening; `restart`: seconds that each further start takes. Raises ValueError where a window is no longer than that."""
        if restart >= self.hours() * 3600:
            raise ValueError(f"a start takes {restart:.0f} s and {self} is open for {self.hours() * 3600:.0f} s")
        at, used, left = now, 0, seconds
        while True:
            at = self.next_start(at)
            closes = self.closes(at)
            assert closes is not None
            used += 1
            need = left + (restart if used > 1 else 0.0)
            if at + need <= closes:
                return at + need, used
            left = need - (closes - at)
            at = closes

    def show(self, when: float) -> str:
        """ "Mon 22:00 Europe/Berlin" """
        return datetime.fromtimestamp(when, self._zone()).strftime("%a %H:%M ") + self.zone


def parse(text: object) -> Window:
    """Raises ValueError saying what is wrong with it."""
    example = 'such as "22:00-06:00 Europe/Berlin"'
    if not isinstance(text, str) or not (match := _WINDOW.fullmatch(text.strip())):
        raise ValueError(f"window must be hours of a day and a time zone, {example}, not {text!r}")
    h1, m1, h2, m2, zone = match.groups()
    start, end = int(h1) * 60 + int(m1), int(h2) * 60 + int(m2)
    if end > 1440:
        raise ValueError(f"window {text!r}: a day ends at 24:00")
    if start == end or (start, end) == (0, 1440):
        raise ValueError(f"window {text!r} is the whole day; leave it away")
    zone = UTC if zone is None or zone.upper() == UTC else zone
    if zone != UTC:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            known = available_timezones()
            where = nearest(zone, known) if known else "; no time zones are installed here: write it in UTC"
            raise ValueError(f"window {text!r}: unknown time zone {zone!r}{where}") from None
    return Window(start, end, zone)


def _hhmm(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
