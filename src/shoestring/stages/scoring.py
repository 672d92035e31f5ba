"""Verdicts → scores, gains and samples. Pure functions over the files in runs/<name>/verdicts. No torch.

A verdict row: benchmark, family, problem_id, prompting ("zero-shot" or "few-shot"), strict, lenient (0 or 1), prompt,
answer, text. The base model is scored in four ways (two promptings, two readings of the answer); "base" in scores.json
is the way that scores best, so that no gain is counted that better prompting or kinder reading would also give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring import stats
from shoestring.answers import normalise
from shoestring.records import Problem
from shoestring.rewards import Reward, _selftest
from shoestring.stages.context import read_lines

UNSEEN, UNTRAINED, HELDOUT = "unseen", "untrained", "heldout-text"
Outcomes = dict[str, list[float]]


@dataclass(frozen=True)
class Measured:
    """One evaluated model: its rows in order of problems, dollars accrued when it was measured, loss on plain text."""

    model: str
    rows: tuple[Mapping[str, Any], ...]
    usd: float
    loss: float | None
    loss_tokens: int = 0


def self_test(problems: Sequence[Problem], reward: Reward | None = None, name: str = "") -> dict[str, int]:
    """Known-good and known-bad answers to a few of the problems, graded before anything is trained on the rewards.

    reward: what will be paid (a mixture, a user's function); each problem's own grader without it. Returns how many known
    answers each grader was given; raises UserError if one of them pays what is wrong.
    """
    return _selftest.refuse(problems, reward, name)


def read(folder: Path) -> list[Measured]:
    """Every evaluated model, in the order of evaluation (the file names begin with a number)."""
    out = []
    for path in sorted(folder.glob("*.jsonl")):
        rows = read_lines(path)
        head = next(r for r in rows if "measured" in r)
        verdicts = tuple(r for r in rows if "problem_id" in r)
        out.append(Measured(head["measured"], verdicts, head["usd"], head.get("loss"), head.get("loss_tokens", 0)))
    return out


def outcomes(m: Measured, benchmark: str, prompting: str, reading: str) -> Outcomes:
    by: Outcomes = {}
    for r in m.rows:
        if r["benchmark"] == benchmark and r["prompting"] == prompting:
            by.setdefault(r["family"], []).append(float(r[reading]))
    return by


def paired(
    a: Measured, b: Measured, benchmark: str, way_a: tuple[str, str], way_b: tuple[str, str]
) -> tuple[Outcomes, Outcomes]:
    """Outcomes of the problems that both answered, in one order. Empty unless both answered the same families."""
    verdicts = []
    for m, (prompting, reading) in ((a, way_a), (b, way_b)):
        rows = [r for r in m.rows if r["benchmark"] == benchmark and r["prompting"] == prompting]
        verdicts.append({(r["family"], r["problem_id"]): float(r[reading]) for r in rows})
    both = [key for key in verdicts[0] if key in verdicts[1]]
    if not {f for f, _ in verdicts[0]} == {f for f, _ in verdicts[1]} == {f for f, _ in both}:
        return {}, {}
    before: Outcomes = {}
    after: Outcomes = {}
    for key in both:
        before.setdefault(key[0], []).append(verdicts[0][key])
        after.setdefault(key[0], []).append(verdicts[1][key])
    return before, after


def commonest(m: Measured, benchmark: str, prompting: str) -> dict[str, float]:
    answers: dict[str, list[str]] = {}
    for r in m.rows:
        if r["benchmark"] == benchmark and r["prompting"] == prompting:
            answers.setdefault(r["family"], []).append(normalise(r["answer"]))
    return {f: stats.commonest_answer_baseline(a)[1] for f, a in answers.items()}


def ways(m: Measured) -> list[tuple[str, str]]:
    """(prompting, reading) pairs that were measured on the unseen problems."""
    promptings = sorted({r["prompting"] for r in m.rows if r["benchmark"] == UNSEEN}, reverse=True)
    return [(p, reading) for p in promptings for reading in ("strict", "lenient")]


def best_way(m: Measured) -> tuple[str, str]:
    return max(ways(m), key=lambda w: stats.macro_average(outcomes(m, UNSEEN, *w)))


def _rows(name: str, m: Measured, benchmark: str, way: tuple[str, str]) -> list[dict[str, Any]]:
    by = outcomes(m, benchmark, *way)
    if not by:
        return []
    base = commonest(m, benchmark, way[0])
    shared = {"usd": m.usd, "prompting": way[0], "extraction": way[1]}
    rows = []
    for family, values in sorted(by.items()):
        lo, hi = stats.wilson_interval(sum(values), len(values))
        rows.append(
            {
                "model": name, "benchmark": benchmark, "family": family, "n": len(values), "correct": int(sum(values)),
                "accuracy": sum(values) / len(values), "ci95": [lo, hi],
                "commonest_answer_baseline": base[family], **shared,
            }
        )  # fmt: skip
    everything = [v for values in by.values() for v in values]
    lo, hi = stats.macro_interval(by)
    rows.append(
        {
            "model": name, "benchmark": benchmark, "family": "macro", "n": len(everything),
            "correct": int(sum(everything)), "accuracy": stats.macro_average(by), "ci95": [lo, hi],
            "commonest_answer_baseline": sum(base.values()) / len(base), **shared,
        }
    )  # fmt: skip
    return rows


def scores(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """The rows of scores.json."""
    out: list[dict[str, Any]] = []
    for m in measured:
        way = best_way(m) if m.model == "base" else ("zero-shot", "strict")
        out += _rows(m.model, m, UNSEEN, way)
        if m.model == "base":
            for w in ways(m):
                out += _rows(f"base-{w[0]}-{w[1]}", m, UNSEEN, w)
        out += _rows(m.model, m, UNTRAINED, ("zero-shot", "lenient"))
        if m.loss is not None:
            out.append(
                {
                    "model": m.model, "benchmark": HELDOUT, "family": "macro", "n": m.loss_tokens, "correct": None,
                    "accuracy": None, "ci95": None, "commonest_answer_baseline": None, "loss": m.loss, "usd": m.usd,
                }
            )  # fmt: skip
    return out


def gains(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Paired differences: each model against the one before it, and the last against the better base."""
    pairs = [(a, b) for a, b in zip(measured, measured[1:], strict=False)]
    if len(measured) > 2:
        pairs.append((measured[0], measured[-1]))
    out = []
    for a, b in pairs:
        for benchmark in (UNSEEN, UNTRAINED):
            way_a = best_way(a) if a.model == "base" else ("zero-shot", "strict")
            way_b = ("zero-shot", "strict")
            if benchmark == UNTRAINED:
                way_a = way_b = ("zero-shot", "lenient")
            before, after = paired(a, b, benchmark, way_a, way_b)
            if not before:
                continue
            gain, (lo, hi) = stats.paired_macro_interval(before, after)
            flat = [[v for f in sorted(x) for v in x[f]] for x in (before, after)]
            note = f"{a.model} {way_a[0]}, {way_a[1]} reading; {b.model} {way_b[0]}, {way_b[1]} reading"
            out.append(
                {
                    "from": a.model, "to": b.model, "benchmark": benchmark, "gain": gain, "ci95": [lo, hi],
                    "p_value": stats.mcnemar(*flat), "note": note,
                }
            )  # fmt: skip
    return out


def samples(measured: Sequence[Measured], per_family: int = 2) -> list[dict[str, Any]]:
    """A few problems a family with every model's answer: the first where base and last differ, then the first."""
    if not measured:
        return []
    way = best_way(measured[0]) if measured[0].model == "base" else ("zero-shot", "strict")
    lookup = {m.model: _by_problem(m.rows) for m in measured}
    order: dict[str, list[Mapping[str, Any]]] = {}
    for r in measured[0].rows:
        if r["benchmark"] == UNSEEN and r["prompting"] == way[0]:
            order.setdefault(r["family"], []).append(r)
    out = []
    last = measured[-1].model
    for family, rows in sorted(order.items()):

        def changed(r: Mapping[str, Any]) -> bool:
            after = lookup[last].get((r["problem_id"], "zero-shot"))
            return after is not None and after["strict"] != r[way[1]]

        for r in sorted(rows, key=lambda r: not changed(r))[:per_family]:
            answers = []
            for m in measured:
                kind, reading = way if m.model == "base" else ("zero-shot", "strict")
                v = lookup[m.model].get((r["problem_id"], kind))
                if v is not None:
                    answers.append({"model": m.model, "text": v["text"], "correct": bool(v[reading])})
            out.append({"family": family, "prompt": r["prompt"], "answer": r["answer"], "answers": answers})
    return out


def _by_problem(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(r["problem_id"], r["prompting"]): r for r in rows if r["benchmark"] == UNSEEN}
