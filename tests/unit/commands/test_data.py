"""`shoestring data validate`: what it prints, what it ends with."""

from __future__ import annotations

import json
import math
import re
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


def test_augment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New numbers with the solver's answers, options with their letters; what cannot be made is counted, or refused."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
    schema = json.loads((Path(__file__).resolve().parents[3] / "docs" / "schemas" / "data-augment.schema.json").read_text())
    out = tmp_path / "more.jsonl"
    assert cli.main(["data", "augment", "bundled:lcm", "--out", str(out), "--count", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    jsonschema.validate(told, schema)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == told["made"] > 0 and all(r["source"].endswith("perturbed") and r["licence"] == "Apache-2.0" for r in rows)
    for r in rows[:20]:
        a, b = map(int, re.findall(r"\d+", r["prompt"])[-2:])
        assert int(r["answer"]) == math.lcm(a, b)
    choices = write(tmp_path / "c.jsonl", {"prompt": "Which is even?\nA) 3\nB) 4\nC) 5", "answer": "B", "grader": "choice"}, {"prompt": "1+1", "answer": "2"})
    assert cli.main(["data", "augment", choices, "--how", "shuffle", "--out", str(tmp_path / "s.jsonl")]) == 0
    assert "left out: 1 (no options A, B, C …)" in capsys.readouterr().out
    [row] = map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())
    assert f"{row['answer']}) 4" in row["prompt"]
    for more, said in ((["--out", str(out)], "exists"), (["--out", str(tmp_path / "n"), "--how", "shuffle"], "not one new problem"), (["--out", str(tmp_path / "n"), "--count", "0"], "--count 0")):
        assert cli.main(["data", "augment", "bundled:lcm", *more]) == 2
        assert said in capsys.readouterr().err
