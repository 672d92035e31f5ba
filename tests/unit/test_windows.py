"""Off-peak windows, against a slow twin that walks minute by minute; summer time included."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.windows import Window, parse

HOUR = 3600.0


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC if zone == "UTC" else ZoneInfo(zone)).timestamp()


def test_a_night_across_midnight() -> None:
    w = parse("22:00-06:00")
    assert str(w) == "22:00-06:00 UTC" and w.hours() == 8
    assert not w.is_open(at("2026-03-01 21:59")) and w.is_open(at("2026-03-01 22:00")) and w.is_open(at("2026-03-02 05:59"))
    assert not w.is_open(at("2026-03-02 06:00")) and w.closes(at("2026-03-02 01:00")) == at("2026-03-02 06:00")
    assert w.next_start(at("2026-03-02 06:00")) == at("2026-03-02 22:00") and w.next_start(at("2026-03-02 03:00")) == at("2026-03-02 03:00")
    assert w.fits(at("2026-03-02 05:00"), HOUR) and not w.fits(at("2026-03-02 05:00"), HOUR + 1) and not w.fits(at("2026-03-02 12:00"), 1)
    assert w.show(at("2026-03-02 22:00")) == "Mon 22:00 UTC"


@pytest.mark.parametrize(
    ("evening", "morning", "hours"),
    [
        ("2026-01-10 22:00", "2026-01-11 06:00", 8),
        ("2026-03-28 22:00", "2026-03-29 06:00", 7),  # clocks go forward
        ("2026-10-24 22:00", "2026-10-25 06:00", 9),  # and back
    ],
)
def test_summer_time(evening: str, morning: str, hours: int) -> None:
    w, zone = parse("22:00-06:00 Europe/Berlin"), "Europe/Berlin"
    opens, closes = at(evening, zone), at(morning, zone)
    assert w.next_start(opens - 5 * HOUR) == opens and w.closes(opens) == closes and closes - opens == hours * HOUR


def test_work_is_spread_over_nights() -> None:
    w, noon = parse("22:00-06:00"), at("2026-03-01 12:00")
    assert w.finish(noon, 8 * HOUR) == (at("2026-03-02 06:00"), 1)
    assert w.finish(noon, 9 * HOUR) == (at("2026-03-02 23:00"), 2)
    assert w.finish(noon, 9 * HOUR, restart=600) == (at("2026-03-02 23:10"), 2)
    assert w.finish(at("2026-03-01 23:00"), HOUR) == (at("2026-03-02 00:00"), 1)
    with pytest.raises(ValueError, match="a start takes"):
        parse("01:00-02:00").finish(noon, 9 * HOUR, restart=HOUR)


@given(
    st.integers(0, 1439), st.integers(0, 1439), st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]),
    st.integers(1_767_225_600, 1_798_761_600),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_against_the_clock_on_the_wall(start: int, end: int, zone: str, now: int) -> None:
    """Without a change of clocks near by, open means that the wall clock stands between start and end."""
    if start == end:
        return
    w, tz = Window(start, end, zone), UTC if zone == "UTC" else ZoneInfo(zone)

    def wall(when: float) -> bool:
        t = datetime.fromtimestamp(when, tz)
        minute = t.hour * 60 + t.minute
        return start <= minute < end if start < end else minute >= start or minute < end

    offsets = {datetime.fromtimestamp(now + d * 86400, tz).utcoffset() for d in (-2, 2)}
    if len(offsets) > 1:
        return
    assert w.is_open(now) == wall(now)
    opens = w.next_start(now)
    assert opens >= now and w.is_open(opens) and (opens == now) == w.is_open(now)
    closes = w.closes(opens)
    assert closes is not None and opens < closes <= opens + 86400
    assert not wall(closes) and wall(closes - 1) and (opens == now or not wall(opens - 1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (5, "must be hours of a day"), ("night", "must be hours of a day"), ("25:00-06:00", "must be hours"), ("22:00-24:30", "ends at 24:00"),
        ("06:00-06:00", "whole day"), ("00:00-24:00", "whole day"), ("22:00-06:00 Europe/Berlim", 'did you mean "Europe/Berlin"'),
    ],
)  # fmt: skip
def test_bad_windows(text: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_the_end_of_a_day() -> None:
    w = parse("18:00-24:00 utc")
    assert w.hours() == 6 and w.closes(at("2026-03-01 23:00")) == at("2026-03-02 00:00")
