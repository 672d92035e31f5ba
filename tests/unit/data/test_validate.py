"""Looking a data set over: every bad line with its place, repeats, lengths, sources."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from shoestring.data import sources, validate
from shoestring.records import Problem


def chat(n: int, **rest: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a" * n}], **rest}


def look(path: Path, rows: list[Any], **rest: Any) -> validate.Findings:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return validate.inspect(sources.rows(str(path)), str(path), **rest)


def test_counts_and_places(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [chat(1), "{", chat(2), chat(1), {"messages": []}, {"prompt": "a", "completion": "b"}, chat(2)]
    found = look(path, rows)
    assert (found.rows, found.format, found.duplicates, found.first_duplicate) == (7, "messages", 2, f"{path}:4")
    assert [(b.where, b.kind) for b in found.bad] == [
        (f"{path}:2", "unreadable"), (f"{path}:5", "empty-content"), (f"{path}:6", "missing-column"),
    ]  # fmt: skip
    made = found.to_dict()
    assert made["good"] == 4 and made["bad"] == 3 and made["tokens"] is None and sum(made["by_class"].values()) == 3
    json.dumps(made)


@pytest.mark.parametrize("n", [1, 2, 3, 19, 20, 21, 100])
def test_lengths_against_a_plain_count(tmp_path: Path, n: int) -> None:
    found = look(tmp_path / "a.jsonl", [chat(k + 1) for k in range(n)], length=lambda item: len(item.messages[-1]["content"]))
    lengths = list(range(1, n + 1))
    assert found.tokens() == {
        "min": 1, "mean": round(sum(lengths) / n, 1), "median": lengths[math.ceil(n / 2) - 1],
        "p95": lengths[math.ceil(n * 95 / 100) - 1], "max": n, "total": sum(lengths),
    }  # fmt: skip


def test_source_and_licence_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    found = look(path, [chat(1, source="book", licence="CC0-1.0"), chat(2, license="MIT"), chat(3, source=3)])
    assert found.sources == {("book", "CC0-1.0"): 1, (str(path), "MIT"): 1, (str(path), ""): 1}
    assert len(found.to_dict()["sources"]) == 3


def test_problems(tmp_path: Path) -> None:
    def check(p: Problem) -> None:
        if p.answer == "many":
            raise ValueError("'many' is not a number")

    rows = [{"prompt": "1+1", "answer": 2}, {"prompt": "x", "answer": "many"}, {"prompt": " ", "answer": "1"}, {"prompt": "q"}]
    found = look(tmp_path / "p.jsonl", [rows[0], *rows], format="problems", check=check)
    assert found.format == "problems" and found.duplicates == 1
    assert found.by_class() == {"empty-content": 1, "missing-column": 1, "ungradable": 1}
    assert "cannot be graded: 'many' is not a number" in found.bad[0].message
