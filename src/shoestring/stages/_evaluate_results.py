"""Graded answers of benchmarks → eval.json, rows of scores.json and gains.json, scaling.json. Pure functions. No torch.

Every figure is of the samples that exist: where a stage was stopped, a problem with fewer samples counts with those it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from shoestring import stats
from shoestring.answers import normalise
from shoestring.records import UserError
from shoestring.stages import _evaluate_asks as asks
from shoestring.stages.context import read_lines

if TYPE_CHECKING:
    from shoestring.data.benchmarks import Loaded
    from shoestring.stages.evaluate import Config

Row = Mapping[str, Any]
Groups = dict[str, list[Row]]  # problem → its samples, in order


def by_problem(rows: Iterable[Row]) -> Groups:
    out: Groups = {}
    for r in rows:
        out.setdefault(r["problem_id"], []).append(r)
    return {p: sorted(rs, key=lambda r: r["sample"]) for p, rs in out.items()}


def means(groups: Groups, reading: str = "strict") -> list[float]:
    """The share of right samples, a problem each."""
    return [fmean(r[reading] for r in rs) for rs in groups.values()]


def valued(values: Sequence[float]) -> dict[str, Any]:
    return {"value": fmean(values), "ci95": list(stats.problem_interval(values)), "problems": len(values)}


def ks(config: Config, most: int) -> list[int]:
    """The k of pass@k and majority@k: those that were asked for, else 1 and the number of samples; none above it."""
    return [k for k in dict.fromkeys(config.pass_at or (1, most)) if k <= most]


def pass_at(groups: Groups, k: int) -> dict[str, Any] | None:
    """Unbiased pass@k (Chen et al. 2021, equation 1) over the problems with at least k samples; None where there are none."""
    values = [stats.pass_at_k(len(rs), sum(r["strict"] for r in rs), k) for rs in groups.values() if len(rs) >= k]
    return valued(values) if values else None


def majority(groups: Groups, k: int) -> dict[str, Any] | None:
    values = [
        stats.majority_at_k([r["said"] for r in rs], [float(r["strict"]) for r in rs], k)
        for rs in groups.values()
        if len(rs) >= k
    ]
    return valued(values) if values else None


def of_setting(config: Config, setting: asks.Setting, rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of one model, benchmark and setting. Tokens are of the answers, thinking and forced ones included; dollars
    are those of the machine's seconds (or the server's tokens) in which they were written and graded."""
    groups = by_problem(rows)
    each = means(groups)
    most = max(map(len, groups.values()))
    tokens, usd, right = sum(r["tokens"] for r in rows), sum(r["usd"] for r in rows), sum(r["strict"] for r in rows)
    golds = [normalise(rs[0]["answer"]) for rs in groups.values()]
    return {
        **setting.facts(), "family": setting.family, "problems": len(groups), "answers": len(rows),
        "accuracy": fmean(each), "ci95": list(stats.problem_interval(each)),
        "lenient_accuracy": fmean(means(groups, "lenient")),
        "commonest_answer_baseline": stats.commonest_answer_baseline(golds)[1],
        "pass_at_k": {str(k): v for k in ks(config, most) if (v := pass_at(groups, k))},
        "majority_at_k": {str(k): v for k in ks(config, most) if k > 1 and (v := majority(groups, k))},
        "right": right, "unread": sum(r["said"] is None for r in rows), "cut": sum(r["reason"] == "length" for r in rows),
        "tokens": tokens, "mean_tokens": tokens / len(rows), "mean_thinking_tokens": fmean(r["thinking_tokens"] for r in rows),
        "waits_used": sum(r["waits_used"] for r in rows),
        "prompt_tokens": sum(r.get("prompt_tokens", 0) for r in rows),
        "prompt_rows": sum(r.get("prompt_rows", 0) for r in rows),
        "usd": usd, "tokens_per_correct": tokens / right if right else None, "usd_per_correct": usd / right if right else None,
        "basis": "measured",
    }  # fmt: skip


def chosen(rows: Iterable[Row], benchmark: str, setting: asks.Setting, model: str | None = None) -> list[Row]:
    return [
        r for r in rows
        if r["benchmark"] == benchmark and model in (None, r["model"])
        and (r["role"], r["budget"], r["waits"]) == (setting.role, setting.budget, setting.waits)
    ]  # fmt: skip


def models(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(r["model"] for r in rows))


def summary(config: Config, stage: str, rows: Sequence[Row], found: Sequence[Loaded], stopped: bool) -> dict[str, Any]:
    """eval.json."""
    results, names = [], models(rows)
    for name in names:
        for loaded in found:
            bench = loaded.benchmark
            about = {
                "model": name, "benchmark": bench.name, "title": bench.title or bench.name, "source": bench.source,
                "licence": bench.licence, "grader": bench.grader if not bench.spec else "each problem's own",
                "expected_problems": bench.problems or None, "rows": loaded.count, "warning": loaded.warning,
            }  # fmt: skip
            for s in asks.settings(config):
                if mine := chosen(rows, bench.name, s, name):
                    results.append(about | of_setting(config, s, mine))
    compared = []
    if len(names) == 2:
        compared = compare(config, rows, names[0], rows, names[1])
    return {
        "stage": stage, "stopped": stopped, "where": config.endpoint or "engine", "results": results, "comparisons": compared,
    }  # fmt: skip


def compare(config: Config, rows: Sequence[Row], a: str, others: Sequence[Row], b: str, name: str = "") -> list[dict[str, Any]]:
    """Model a against model b on the problems that both answered, setting by setting; name: of b, where it is shown under
    another. Empty where they share no problem."""
    out = []
    for bench in asks.names(config):
        for s in asks.settings(config):
            mine, theirs = by_problem(chosen(rows, bench, s, a)), by_problem(chosen(others, bench, s, b))
            both = [p for p in mine if p in theirs]
            if not both:
                continue
            first = [fmean(r["strict"] for r in theirs[p]) for p in both]
            then = [fmean(r["strict"] for r in mine[p]) for p in both]
            gain, ends, p_value = stats.paired_problems(first, then)
            exact = all(v in (0, 1) for v in (*first, *then))
            test = "McNemar's exact test" if exact else "sign-flip permutation test over problems"
            out.append(
                {
                    "benchmark": bench, "family": s.family, "from": name or b, "to": a, "problems": len(both), "gain": gain,
                    "ci95": list(ends), "p_value": p_value, "test": test,
                }
            )  # fmt: skip
    return out


def against_run(config: Config, rows: Sequence[Row], run: Path, stopped: bool) -> list[dict[str, Any]]:
    """The run's own models, each against the model that another run evaluated last. UserError where they share nothing."""
    path = asks.last_file(run)
    others = [r for r in read_lines(path) if "problem_id" in r] if path else []
    if not others:
        raise UserError(f"compare: {run}: no evaluated answers there")
    other = others[0]["model"]  # a run's own model is asked before the one that it was compared with
    name = f"{run.resolve().name}/{other}"
    out = [c for m in models(rows) for c in compare(config, rows, m, others, other, name)]
    if not out and not stopped:
        asked = ", ".join(sorted({r["benchmark"] for r in others}))
        raise UserError(f"compare: {run} answered no problem of this evaluation under the same setting (it has {asked})")
    return out


def scores(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of scores.json, rows of gains.json) of every benchmark evaluation so far; folder: of their
    summaries."""
    rows, gains = [], []
    for path in sorted(folder.glob("*.json")):
        made = json.loads(path.read_text(encoding="utf-8"))
        for r in made["results"]:
            rows.append(
                {
                    "model": r["model"], "benchmark": r["benchmark"], "family": r["family"], "n": r["problems"],
                    "correct": r["accuracy"] * r["problems"], "accuracy": r["accuracy"], "ci95": r["ci95"],
                    "commonest_answer_baseline": r["commonest_answer_baseline"], "usd": r["usd"], "extraction": "strict",
                    "prompting": "zero-shot", "lenient_accuracy": r["lenient_accuracy"], "samples": r["samples"],
                    "pass_at_k": r["pass_at_k"], "majority_at_k": r["majority_at_k"], "mean_tokens": r["mean_tokens"],
                    "tokens_per_correct": r["tokens_per_correct"], "usd_per_correct": r["usd_per_correct"],
                    "warning": r["warning"],
                }
            )  # fmt: skip
        for c in made["comparisons"]:
            benchmark = c["benchmark"] if c["family"] == "macro" else f"{c['benchmark']}, {c['family']}"
            note = f"{c['problems']} problems that both answered; {c['test']}"
            keys = ("from", "to", "gain", "ci95", "p_value")
            gains.append({k: c[k] for k in keys} | {"benchmark": benchmark, "note": note})
    return rows, gains


def curves(config: Config, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """scaling.json of every model and benchmark: accuracy against thinking tokens under budgets, majority votes and rejection
    sampling beside it (Muennighoff et al. 2025, s1, section 4.2), and s1's metrics (section 3.2). [] without budgets."""
    made = []
    for name in models(rows) if config.thinking else []:
        for bench in asks.names(config):
            free: Groups = {}
            points = []
            for s in asks.settings(config):
                mine = chosen(rows, bench, s, name)
                if s.role == "parallel":
                    free = by_problem(mine)
                elif mine:
                    points.append(_point(config, s, mine))
            made.append(
                {
                    "model": name, "benchmark": bench, "points": points, "majority": _majorities(free),
                    "rejection": _rejections(free, config.thinking), "metrics": _metrics(points, config),
                }
            )  # fmt: skip
    return [m for m in made if m["points"]]


def _point(config: Config, setting: asks.Setting, rows: Sequence[Row]) -> dict[str, Any]:
    r = of_setting(config, setting, rows)
    return {
        "budget": setting.budget, "waits": setting.waits, "mean_thinking_tokens": r["mean_thinking_tokens"],
        "mean_tokens": r["mean_tokens"], "accuracy": r["accuracy"], "ci95": r["ci95"], "n": r["problems"], "usd": r["usd"],
        "lenient_accuracy": r["lenient_accuracy"],
        "thinking_tokens": [x["thinking_tokens"] for x in rows],
    }  # fmt: skip


def _majorities(free: Groups) -> list[dict[str, Any]]:
    """Votes of 1, 2, 4, ... samples at the tokens that so many take."""
    if not free:
        return []
    most, tokens = max(map(len, free.values())), fmean(r["tokens"] for rs in free.values() for r in rs)
    out, k = [], 1
    while k <= most:
        if found := majority(free, k):
            out.append({"samples": k, "tokens": k * tokens, "accuracy": found["value"], "ci95": found["ci95"]})
        k *= 2
    return out


def _rejections(free: Groups, budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Sampling again until an answer ends within the budget: what those samples score that do; a problem without one is
    wrong. tokens: of the accepted answers; spent: with the rejected ones before them (samples over accepted ones)."""
    out = []
    for budget in budgets if free else ():
        values, accepted, samples, used = [], 0, 0, []
        for rs in free.values():
            fits = [r for r in rs if r["tokens"] <= budget and r["reason"] == "stop"]
            values.append(fmean(r["strict"] for r in fits) if fits else 0.0)
            accepted += len(fits)
            samples += len(rs)
            used += [r["tokens"] for r in fits]
        found = valued(values)
        all_tokens = sum(min(r["tokens"], budget) for rs in free.values() for r in rs)
        out.append(
            {
                "budget": budget, "tokens": fmean(used) if used else 0.0, "accuracy": found["value"], "ci95": found["ci95"],
                "accepted": accepted, "tries": samples / accepted if accepted else None,
                "spent": all_tokens / accepted if accepted else None,
            }
        )  # fmt: skip
    return out


def _metrics(points: Sequence[Mapping[str, Any]], config: Config) -> dict[str, Any]:
    from shoestring import scaling

    return scaling.metrics(points)
