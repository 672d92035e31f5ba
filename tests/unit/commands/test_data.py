"""`shoestring data validate`: what it prints, what it ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoestring import cli

GOOD = {"prompt": "a", "completion": "b"}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def test_good_is_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(tmp_path / "a.jsonl", GOOD, GOOD)
    assert cli.main(["data", "validate", name]) == 0
    out = capsys.readouterr().out
    assert f"{name}: 2 rows of prompt_completion: 2 good, 0 bad" in out and f"duplicates among the good: 1 (the first at {name}:2)" in out


def test_bad_is_2_with_every_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(tmp_path / "a.jsonl", GOOD, "{", {"prompt": "", "completion": "x"})
    assert cli.main(["data", "validate", name]) == 2
    out = capsys.readouterr().out
    assert f"{name}:2: unreadable: is not JSON" in out and f"{name}:3: empty-content: prompt is empty; fill it" in out
    assert "3 rows of prompt_completion: 1 good, 2 bad" in out and "  empty-content: 1" in out
    assert cli.main(["data", "validate", name, "--json"]) == 2
    made = json.loads(capsys.readouterr().out)
    assert made["bad"] == 2 and made["by_class"] == {"empty-content": 1, "unreadable": 1} and len(made["lines"]) == 2


def test_many_bad_lines_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(tmp_path / "a.jsonl", *["{"] * 50)
    assert cli.main(["data", "validate", name]) == 2
    out = capsys.readouterr().out
    assert "... and 30 more" in out and "50 rows of no known format" in out


def test_a_stated_format_is_held_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(tmp_path / "a.jsonl", GOOD)
    assert cli.main(["data", "validate", name, "--format", "alpaca"]) == 2
    assert "no column 'instruction'" in capsys.readouterr().out


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "validate", str(tmp_path / "x.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert cli.main(["data", "validate", write(tmp_path / "e.jsonl")]) == 2
    assert "no rows" in capsys.readouterr().err


def test_problems_are_graded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["data", "validate", "bundled:lcm"]) == 0
    assert "rows of problems" in capsys.readouterr().out
    name = write(tmp_path / "p.jsonl", {"prompt": "x", "answer": "two", "grader": "numeric"}, {"prompt": "x", "answer": "2", "grader": "nope"})
    assert cli.main(["data", "validate", name]) == 2
    assert capsys.readouterr().out.count("ungradable") == 3
