"""From easy to hard (Bengio et al. 2009): problems in the order of their measured pass rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoestring.records import Problem

UNKNOWN = 0.5  # a problem that nobody has tried stands in the middle


def easy_first(
    problems: Sequence[Problem], rates: Mapping[str, float], lengths: Mapping[str, int] | None = None
) -> list[Problem]:
    """The same problems, the one that is solved most often first; of equals the one with the shorter trace, then by id.

    rates: pass rates by problem id, from 0 to 1. lengths: of the trace, by id; an unknown one counts as 0.
    """
    known = lengths or {}
    return sorted(problems, key=lambda p: (-rates.get(p.id, UNKNOWN), known.get(p.id, 0), p.id))
