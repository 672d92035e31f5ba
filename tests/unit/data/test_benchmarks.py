"""Benchmark files: every shipped one holds, real formats are read, counts are compared, complaints are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoestring import rewards
from shoestring.data import benchmarks
from shoestring.records import Problem, UserError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def check(p: Problem) -> None:
    rewards.get(p.grader).check(p)


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


@pytest.mark.parametrize("name", benchmarks.names())
def test_a_shipped_file_holds(name: str) -> None:
    b = benchmarks.get(name)
    assert b.name == name and b.title and b.problems > 0 and b.source.startswith("https://") and b.licence and b.hub
    assert b.grader in rewards.names() and "Answer:" in b.template
    assert ("{options}" in b.template) == bool(b.options)


def test_the_issue_s_benchmarks_ship() -> None:
    assert {"gsm8k", "math-500", "aime-2024", "aime-2025", "svamp", "olympiadbench", "gpqa-diamond"} <= set(benchmarks.names())


def test_no_problem_ships() -> None:
    files = [p for p in benchmarks.SHIPPED.iterdir() if p.suffix not in (".toml", ".py", ".md") and p.name != "__pycache__"]
    assert not files and max(p.stat().st_size for p in benchmarks.SHIPPED.glob("*.toml")) < 1500


@pytest.mark.parametrize(
    ("name", "row", "gold", "question"),
    [
        ("gsm8k", {"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"}, "2", "1 + 1?"),
        ("gsm8k", {"question": "1 + 1?", "answer": "1,234"}, "1,234", "1 + 1?"),
        ("svamp", {"ID": "chal-1", "Body": "Two and two.", "Question": "How many?", "Answer": 4.0}, "4.0", "Two and two. How many?"),
        ("math-500", {"problem": "P", "solution": "so \\boxed{\\frac{1}{2}}."}, "\\frac{1}{2}", "P"),
        ("math-500", {"problem": "P", "answer": "\\frac{1}{2}", "solution": "\\boxed{3}"}, "\\frac{1}{2}", "P"),
        ("aime-2024", {"Problem": "P", "Answer": 33}, "33", "P"),
        ("aime-2025", {"problem": "P", "answer": "033"}, "033", "P"),
        ("olympiadbench", {"id": 1, "question": "P", "final_answer": ["2", "3"]}, "2, 3", "P"),
    ],
)  # fmt: skip
def test_rows_as_their_authors_write_them(tmp_path: Path, name: str, row: dict[str, Any], gold: str, question: str) -> None:
    (p,) = benchmarks.load(benchmarks.get(name), lines(tmp_path / "d.jsonl", [row]), check).problems
    assert p.answer == gold and p.prompt.startswith(question + "\n") and p.domain == name
    assert rewards.get(p.grader).grade(f"So it is.\nAnswer: {gold}", p) == 1.0  # type: ignore[attr-defined]


def test_options_are_dealt_by_the_problem(tmp_path: Path) -> None:
    header = "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"
    path = tmp_path / "gpqa.csv"
    path.write_text(header + "".join(f"r{i},Which {i}?,right {i},no,never,nowhere\n" for i in range(40)))
    found = benchmarks.load(benchmarks.get("gpqa-diamond"), str(path), check)
    assert "198" in found.warning and "40" in found.warning
    for i, p in enumerate(found.problems):
        assert f"({p.answer}) right {i}\n" in p.prompt + "\n" and p.prompt.count("\n(") == 4 and p.grader == "choice"
    assert {p.answer for p in found.problems} == {"A", "B", "C", "D"}
    assert found.problems == benchmarks.load(benchmarks.get("gpqa-diamond"), str(path), check).problems


@pytest.mark.parametrize(
    ("name", "file", "n", "warning"),
    [
        ("gsm8k", "gsm8k/test_dev1000.jsonl.gz", 1000, "1,319 problems"),
        ("svamp", "svamp/svamp.jsonl.gz", 1000, ""),
        ("math-500", "math/math500_dev300.jsonl.gz", 300, "500 problems"),
        ("olympiadbench", "olympiadbench/olympiadbench_oe_to_math_en.jsonl.gz", 675, ""),
    ],
)
def test_the_real_files(name: str, file: str, n: int, warning: str) -> None:
    if not (SHARED / file).exists():
        pytest.skip("the data sets that are shared between projects are not on this machine")
    found = benchmarks.load(benchmarks.get(name), str(SHARED / file))
    assert found.count == n and (warning in found.warning if warning else not found.warning)
    assert len({p.id for p in found.problems}) == n


def test_what_cannot_be_graded_is_left_out_and_said(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "#### many"}])
    found = benchmarks.load(benchmarks.get("gsm8k"), path, check)
    assert len(found.problems) == 1 and found.count == 2
    assert "holds 2" in found.warning and "1 of them are left out" in found.warning and "d.jsonl:2" in found.warning


def test_the_same_problems_are_drawn(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [{"question": f"q{i}", "answer": str(i)} for i in range(50)])
    some = benchmarks.load(benchmarks.get("gsm8k"), path, most=10)
    assert some.problems == benchmarks.load(benchmarks.get("gsm8k"), path, most=10).problems and some.count == 50
    answers = [int(p.answer) for p in some.problems]
    assert answers == sorted(answers) and answers != list(range(10))


def test_a_row_twice_is_two_problems(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [{"question": "q", "answer": "1"}] * 3)
    assert len({p.id for p in benchmarks.load(benchmarks.get("gsm8k"), path).problems}) == 3


def test_any_source_is_a_benchmark(tmp_path: Path) -> None:
    own = lines(tmp_path / "own.jsonl", [{"prompt": "1 + 1?", "answer": "2", "grader": "numeric"}])
    (p,) = benchmarks.load(benchmarks.get(own), check=check).problems
    assert p.prompt == "1 + 1?" and p.grader == "numeric"
    assert benchmarks.load(benchmarks.get("bundled:lcm")).problems
    with pytest.raises(UserError, match="leave the data away"):
        benchmarks.load(benchmarks.get("bundled:lcm"), own)


def test_generated_families() -> None:
    pytest.importorskip("reasoning_gym", reason="generated families need the extra gym")
    found = benchmarks.load(benchmarks.get("gym:chain_sum?size=60"), check=check)
    assert found.problems and not found.warning and found.problems[0].domain == "chain_sum"


def test_a_benchmark_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('prompt = "q"\nanswer = "a"\nproblems = 2\ngrader = "numeric"\ntemplate = "Q: {prompt} A:"\n')
    found = benchmarks.load(benchmarks.get(str(path)), lines(tmp_path / "d.jsonl", [{"q": "x", "a": 1}]), check)
    assert found.problems[0].prompt == "Q: x A:" and found.problems[0].domain == "mine" and "mine has 2" in found.warning


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('prompt = "q"\nanswers = "a"\n', r'm.toml:2: unknown key "answers".*answer'),
        ('prompt = "q"\n', "prompt and answer must name"),
        ('prompt = "q"\nanswer = "a"\nproblems = "many"\n', "m.toml:3: problems"),
        ('prompt = "q"\nanswer = "a"\ntemplate = "no place"\n', "template must hold"),
        ("prompt = \n", "m.toml:1:9: not TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as e:
        benchmarks.get(str(path))
    assert "\n" not in str(e.value)


def test_wrong_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown benchmark 'gsm8'; did you mean \"?'?gsm8k"):
        benchmarks.get("gsm8")
    with pytest.raises(UserError, match=r"d.jsonl:1: no prompt in question.*Question"):
        benchmarks.load(benchmarks.get("gsm8k"), lines(tmp_path / "d.jsonl", [{"Question": "q", "answer": "1"}]))
    with pytest.raises(UserError, match="no such file"):
        benchmarks.load(benchmarks.get("gsm8k"), str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="it holds no problem"):
        benchmarks.load(benchmarks.get("gsm8k"), lines(tmp_path / "e.jsonl", []))


def test_some_of_the_problems_where_some_are_refused(tmp_path: Path) -> None:
    """The draw is among those that are left: a refused row leaves no hole in it."""
    rows = [{"question": f"{i}?", "answer": "#### " + ("many" if i % 3 else str(i))} for i in range(12)]
    path = lines(tmp_path / "d.jsonl", rows)
    for most in range(1, 12):
        found = benchmarks.load(benchmarks.get("gsm8k"), path, check, most)
        assert len({p.id for p in found.problems}) == min(most, 4) and found.count == 12 and "8 of them" in found.warning


@pytest.mark.parametrize(
    "text", ['options = ["wrong"]\ntemplate = "{prompt}"', 'template = "{prompt} {options}"'], ids=["not shown", "not there"]
)
def test_options_are_in_the_question(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.toml").write_text(f'prompt = "q"\nanswer = "a"\n{text}\n')
    with pytest.raises(UserError, match="options .* go together"):
        benchmarks.get(str(tmp_path / "mine.toml"))
