"""Named benchmarks on the terminal and on the page: pass@k, votes, intervals, tokens and dollars a right answer, warnings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shoestring.report import scores, terminal
from shoestring.report.load import RunFolder


def row(**rest: Any) -> dict[str, Any]:
    def at(value: float) -> dict[str, Any]:
        return {"value": value, "ci95": [value - 0.1, value + 0.1], "problems": 40}

    base = {
        "model": "base", "benchmark": "gsm8k", "family": "macro", "n": 40, "correct": 10.0, "accuracy": 0.25, "ci95": [0.15, 0.37],
        "commonest_answer_baseline": 0.05, "usd": 0.02, "samples": 4, "pass_at_k": {"1": at(0.25), "4": at(0.5)},
        "majority_at_k": {"4": at(0.3)}, "tokens_per_correct": 1234.4, "usd_per_correct": 0.0005,
        "warning": "GSM8K has 1,319 problems, x.jsonl holds 40",
    }  # fmt: skip
    return base | rest


def printed(rows: list[dict[str, Any]], width: int = 80) -> str:
    out = io.StringIO()
    terminal.print_scores(rows, [], Console(file=out, width=width))
    return out.getvalue()


def test_the_terminal_shows_all_of_it() -> None:
    said = printed([row(), row(family="thinking 256", samples=1, warning="", usd_per_correct=None, tokens_per_correct=None)])
    assert "25.0% (15–37)" in said and "1,234" in said and "$0.0005" in said and "thinking 256" in said
    joined = " ".join(said.split())
    assert "pass@k 1: 25.0%, 4: 50.0% (40–60); majority@k 4: 30.0%" in joined
    assert joined.count("warning: GSM8K has 1,319 problems, x.jsonl holds 40") == 1
    assert max(map(len, said.splitlines())) <= 80


def test_right_answers_without_a_mark_are_said() -> None:
    said = " ".join(printed([row(benchmark="gym:chain_sum?size=9&seed=1", lenient_accuracy=0.75)]).split())
    assert "gym:chain_sum?…, plain, n = 4: 75.0% where the last number counts too" in said and "size=9" not in said
    assert "last number" not in printed([row(lenient_accuracy=0.26)])


def test_nothing_without_benchmarks() -> None:
    own = [row(benchmark="unseen", family="f", warning=""), row(benchmark="untrained", warning="")]
    assert "Benchmarks" not in printed(own)
    assert scores.benchmarks(RunFolder(Path("x"), scores=own)) == ""


def test_the_page_escapes_what_files_hold() -> None:
    section = scores.benchmarks(RunFolder(Path("x"), scores=[row(model="<b>", warning="<script>")]))
    assert "<h2" in section and "&lt;script&gt;" in section and "<script>" not in section and "25.0%" in section


@pytest.mark.parametrize("spoil", [{"pass_at_k": None}, {"pass_at_k": []}, {"n": "many"}, {"samples": None}, {"majority_at_k": {"4": 1}}])
def test_files_that_are_not_as_they_should_be(spoil: dict[str, Any]) -> None:
    assert "gsm8k" in printed([row(**spoil)])
