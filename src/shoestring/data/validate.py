"""Looking a data set over before money is spent on it: every bad line named, repeats counted, lengths measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from shoestring.data import formats
from shoestring.data.formats import BadRow, Chat
from shoestring.data.sources import Row
from shoestring.data.sources.jsonl import problem_of
from shoestring.records import Problem, UserError, content_hash


@dataclass(frozen=True)
class BadLine:
    where: str
    kind: str
    message: str


@dataclass(frozen=True)
class Read:
    """A row that can be learnt from: `item` is a conversation or a problem."""

    where: str
    item: Chat | Problem
    source: str
    licence: str
    format: str


@dataclass
class Findings:
    """What a look at every row gave. `lengths` are tokens a row, empty where no tokenizer was given."""

    name: str
    format: str = ""
    rows: int = 0
    duplicates: int = 0
    first_duplicate: str = ""
    bad: list[BadLine] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)

    def by_class(self) -> dict[str, int]:
        return dict(sorted(Counter(b.kind for b in self.bad).items()))

    def tokens(self) -> dict[str, float] | None:
        """Shortest, mean, median, 95th percentile, longest and sum, in tokens (nearest-rank percentiles)."""
        if not self.lengths:
            return None
        ordered = sorted(self.lengths)
        n = len(ordered)

        def rank(share: float) -> int:
            return ordered[max(0, -(-int(share * 100) * n // 100) - 1)]

        return {
            "min": ordered[0], "mean": round(sum(ordered) / n, 1), "median": rank(0.5), "p95": rank(0.95),
            "max": ordered[-1], "total": sum(ordered),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "format": self.format, "rows": self.rows, "good": self.rows - len(self.bad),
            "bad": len(self.bad), "by_class": self.by_class(), "duplicates": self.duplicates,
            "first_duplicate": self.first_duplicate, "tokens": self.tokens(),
            "sources": [{"source": s, "licence": li, "rows": n} for (s, li), n in sorted(self.sources.items())],
            "lines": [asdict(b) for b in self.bad],
        }  # fmt: skip


def items(
    rows: Iterable[Row], name: str, format: str = "auto", check: Callable[[Problem], None] | None = None
) -> Iterator[Read | BadLine]:
    """Each row as what it is, or as what is wrong with it. "auto" takes the format of the first row that shows one;
    the others must follow. check: asked of every problem, its ValueError makes the row a bad one."""
    for row in rows:
        if row.data is None:
            yield BadLine(row.where, "unreadable", row.wrong)
            continue
        try:
            if format == "auto":
                format = formats.detect(row.data)
            item = _problem(row, name, check) if format == "problems" else formats.read(row.data, format)
        except BadRow as e:
            yield BadLine(row.where, e.kind, str(e))
            continue
        source, licence = row.data.get("source"), row.data.get("licence") or row.data.get("license")
        source = source if isinstance(source, str) and source else name
        yield Read(row.where, item, source, licence if isinstance(licence, str) else "", format)


def _problem(row: Row, name: str, check: Callable[[Problem], None] | None) -> Problem:
    assert row.data is not None
    try:
        problem, _ = problem_of(row.where, row.data, {}, {}, name)
    except UserError as e:
        said = str(e).removeprefix(f"{row.where}: ")
        kind = "missing-column" if said.startswith("no column") else "empty-content" if "empty" in said else "wrong-type"
        raise BadRow(kind, said) from None
    try:
        if check is not None:
            check(problem)
    except ValueError as e:
        raise BadRow("ungradable", f"the answer cannot be graded: {e}") from None
    except UserError as e:  # a grader that does not exist
        raise BadRow("ungradable", str(e)) from None
    return problem


def key_of(item: Chat | Problem) -> str:
    """Two rows with one key are the same row twice."""
    if isinstance(item, Problem):
        return item.id
    return content_hash(json.dumps(item.messages, ensure_ascii=False), str(item.plain))


def inspect(
    rows: Iterable[Row], name: str, format: str = "auto", length: Callable[[Chat | Problem], int] | None = None,
    check: Callable[[Problem], None] | None = None,
) -> Findings:  # fmt: skip
    """Every row looked at once. length: a row's tokens; check: see `items`."""
    found = Findings(name, "" if format == "auto" else format)
    seen: set[str] = set()
    for made in items(rows, name, format, check):
        found.rows += 1
        if isinstance(made, BadLine):
            found.bad.append(made)
            continue
        found.format = made.format
        found.sources[made.source, made.licence] += 1
        key = key_of(made.item)
        if key in seen:
            found.duplicates += 1
            found.first_duplicate = found.first_duplicate or made.where
        seen.add(key)
        if length is not None:
            found.lengths.append(length(made.item))
    return found
