"""The funnel: how many problems each step of curation left, and why. Plain data for the report and the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypedDict


class Row(TypedDict):
    """One step: problems before and after it, and what it does."""

    step: str
    before: int
    after: int
    why: str


class Funnel:
    """Rows in order; each step begins with what the one before it left."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, step: str, before: int, after: int, why: str) -> None:
        """Append a step. Raises ValueError if counts are negative, grow, or do not follow on from the last step."""
        if not 0 <= after <= before:
            raise ValueError(f"funnel step {step!r}: {before} problems before, {after} after")
        if self._rows and self._rows[-1]["after"] != before:
            raise ValueError(f"funnel step {step!r} begins with {before}, the last step left {self._rows[-1]['after']}")
        self._rows.append({"step": step, "before": before, "after": after, "why": why})

    def start(self, count: int, why: str) -> None:
        """The first row: `count` problems collected."""
        self.add("collected", count, count, why)

    def rows(self) -> list[Row]:
        """The rows as plain data ({"step","before","after","why"}), in order."""
        return [row.copy() for row in self._rows]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows())

    def __len__(self) -> int:
        return len(self._rows)

    @staticmethod
    def reasons(counts: Mapping[str, int]) -> str:
        """Counted reasons in one phrase, the commonest first: "12 no answer, 3 needs a picture"."""
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{n} {why}" for why, n in ordered if n) or "nothing dropped"
