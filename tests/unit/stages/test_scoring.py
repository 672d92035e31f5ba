"""Verdicts → scores, gains and samples: the base is given its best way, and gains are paired problem by problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring import stats
from shoestring.stages import scoring
from shoestring.stages.context import write_lines
from shoestring.stages.scoring import HELDOUT, UNSEEN, UNTRAINED, Measured


def rows(
    marks: dict[str, list[tuple[int, int]]], benchmark: str = UNSEEN, prompting: str = "zero-shot", answer: str = "7"
) -> list[dict[str, Any]]:
    """family → (strict, lenient) a problem."""
    return [
        {
            "benchmark": benchmark, "family": family, "problem_id": f"{family}/{i}", "prompting": prompting,
            "strict": s, "lenient": lenient, "prompt": f"{family}?{i}", "answer": answer if i else "8",
            "text": f"{prompting}: {s}{lenient}",
        }
        for family, pairs in marks.items()
        for i, (s, lenient) in enumerate(pairs)
    ]  # fmt: skip


def measured(name: str, *parts: list[dict[str, Any]], loss: float | None = None) -> Measured:
    return Measured(name, tuple(r for part in parts for r in part), 0.01, loss, 1000 if loss else 0)


N, S, L = (0, 0), (1, 1), (0, 1)  # wrong, right, right only to a kind reader


def base(zero: dict[str, list[tuple[int, int]]], few: dict[str, list[tuple[int, int]]]) -> Measured:
    other = rows({"other": [S, N, L]}, UNTRAINED)
    return measured("base", rows(zero), rows(few, prompting="few-shot"), other, loss=3.0)


@pytest.mark.parametrize(
    ("zero", "few", "way"),
    [
        ({"a": [S, S], "b": [S, N]}, {"a": [N, N], "b": [N, N]}, ("zero-shot", "strict")),
        ({"a": [S, N], "b": [L, L]}, {"a": [S, N], "b": [N, N]}, ("zero-shot", "lenient")),
        ({"a": [N, N], "b": [L, N]}, {"a": [S, S], "b": [S, N]}, ("few-shot", "strict")),
        ({"a": [N, S], "b": [L, N]}, {"a": [S, L], "b": [S, L]}, ("few-shot", "lenient")),
    ],
)
def test_the_base_takes_the_best_of_four_ways(zero: Any, few: Any, way: tuple[str, str]) -> None:
    m = base(zero, few)
    assert scoring.best_way(m) == way
    found = {r["model"]: r for r in scoring.scores([m]) if r["benchmark"] == UNSEEN and r["family"] == "macro"}
    assert found.keys() == {"base", *(f"base-{p}-{x}" for p in ("zero-shot", "few-shot") for x in ("strict", "lenient"))}
    assert found["base"]["accuracy"] == max(r["accuracy"] for r in found.values())
    assert (found["base"]["prompting"], found["base"]["extraction"]) == way
    assert found["base"]["accuracy"] == found[f"base-{way[0]}-{way[1]}"]["accuracy"]


def test_the_best_way_is_chosen_by_macro_not_by_the_largest_family() -> None:
    m = base({"a": [S] * 8, "b": [N]}, {"a": [S] * 5 + [N] * 3, "b": [S]})
    assert scoring.best_way(m)[0] == "few-shot"


def test_trained_models_are_read_strictly_and_plainly() -> None:
    m = measured("sft", rows({"a": [S, L, L], "b": [N, L]}))
    found = {r["family"]: r for r in scoring.scores([m])}
    assert found["a"]["accuracy"] == pytest.approx(1 / 3) and found["b"]["accuracy"] == 0
    assert {r["extraction"] for r in found.values()} == {"strict"}


def test_rows_of_scores_json() -> None:
    found = scoring.scores([base({"a": [S, S, S, N], "b": [N, N]}, {"a": [N] * 4, "b": [N] * 2})])
    own = {(r["benchmark"], r["family"]): r for r in found if r["model"] == "base"}
    a, macro = own[UNSEEN, "a"], own[UNSEEN, "macro"]
    assert (a["n"], a["correct"], a["accuracy"]) == (4, 3, 0.75)
    assert a["ci95"] == pytest.approx(list(stats.wilson_interval(3, 4)))
    assert a["commonest_answer_baseline"] == 0.75  # three of four answers are 7
    assert (macro["n"], macro["correct"]) == (6, 3)
    assert macro["accuracy"] == pytest.approx((0.75 + 0) / 2)  # the mean of the families, not 3 of 6 by luck
    assert macro["commonest_answer_baseline"] == pytest.approx((0.75 + 0.5) / 2)
    assert macro["ci95"][0] <= macro["accuracy"] <= macro["ci95"][1] and macro["usd"] == 0.01
    assert own[UNTRAINED, "macro"]["accuracy"] == pytest.approx(2 / 3)  # forgetting is read kindly
    assert own[HELDOUT, "macro"]["loss"] == 3.0 and own[HELDOUT, "macro"]["accuracy"] is None


def test_macro_is_the_mean_of_families() -> None:
    found = scoring.scores([measured("sft", rows({"a": [S] * 9 + [N], "b": [N, N]}))])
    macro = next(r for r in found if r["family"] == "macro")
    assert macro["accuracy"] == pytest.approx(0.45) and macro["correct"] == 9 and macro["n"] == 12


def run(*models: Measured) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(g["from"], g["to"], g["benchmark"]): g for g in scoring.gains(models)}


def test_gains_are_paired_over_the_better_base() -> None:
    first = base({"a": [L, L, N, N], "b": [N] * 4}, {"a": [S, S, N, N], "b": [S, N, N, N]})
    other = rows({"other": [S, S, N]}, UNTRAINED)
    second = measured("sft", rows({"a": [S, S, S, N], "b": [S, S, N, N]}), other)
    third = measured("grpo", rows({"a": [S, S, S, S], "b": [N, S, S, N]}), other)
    found = run(first, second, third)
    assert found.keys() == {
        (a, b, k) for a, b in (("base", "sft"), ("sft", "grpo"), ("base", "grpo")) for k in (UNSEEN, UNTRAINED)
    }
    step = found["base", "sft", UNSEEN]
    assert step["gain"] == pytest.approx((0.75 - 0.5 + 0.5 - 0.25) / 2)  # over few-shot, not over zero-shot's 0
    assert "base few-shot" in step["note"] and step["ci95"][0] <= step["gain"] <= step["ci95"][1]
    last = found["sft", "grpo", UNSEEN]
    assert last["gain"] == pytest.approx(0.125)
    assert last["p_value"] == pytest.approx(stats.mcnemar([1, 1, 1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 0, 1, 1, 0]))
    assert found["base", "sft", UNTRAINED]["gain"] == pytest.approx(0.0)


def test_pairs_are_matched_by_problem_not_by_place() -> None:
    a = measured("sft", rows({"a": [S, N, S, N, N, N]}))
    b = measured("grpo", rows({"a": [S, N, S, N, N, N]})[::-1])
    (gain,) = scoring.gains([a, b])
    assert gain["gain"] == 0 and gain["p_value"] == 1.0
    assert gain["ci95"] == list(stats.paired_macro_interval({"a": [0] * 6}, {"a": [0] * 6})[1]), "alike, and still not certain"


def test_models_asked_different_numbers_are_compared_on_what_both_answered() -> None:
    a = measured("sft", rows({"a": [S, N, S, N]}))
    b = measured("grpo", rows({"a": [S, S]}))
    (gain,) = scoring.gains([a, b])
    assert gain["gain"] == pytest.approx(0.5)
    assert scoring.gains([a, measured("grpo", rows({"b": [S]}))]) == []


def test_samples_show_where_training_changed_the_verdict() -> None:
    first = base({"a": [N, N, N, S], "b": [S, S]}, {"a": [N] * 4, "b": [N] * 2})
    last = measured("grpo", rows({"a": [N, N, S, S], "b": [S, S]}))
    found = scoring.samples([first, last], per_family=2)
    assert [(s["family"], s["prompt"]) for s in found] == [("a", "a?2"), ("a", "a?0"), ("b", "b?0"), ("b", "b?1")]
    assert [(x["model"], x["correct"]) for x in found[0]["answers"]] == [("base", False), ("grpo", True)]
    assert scoring.samples([]) == []


def test_read_takes_models_in_order_of_evaluation(tmp_path: Path) -> None:
    for place, name in ((2, "base"), (5, "sft"), (11, "grpo")):
        head = {"measured": name, "usd": place / 100} | ({"loss": 2.0, "loss_tokens": 9} if name == "base" else {})
        write_lines(tmp_path / f"{place:02d}-{name}.jsonl", [head, *rows({"a": [S]})])
    found = scoring.read(tmp_path)
    assert [m.model for m in found] == ["base", "sft", "grpo"] and [m.usd for m in found] == [0.02, 0.05, 0.11]
    assert (found[0].loss, found[0].loss_tokens, found[1].loss) == (2.0, 9, None) and len(found[0].rows) == 1
