"""What the arms come to: accuracy, gains paired over problems and seeds, other domains, minutes and dollars.

An interval covers both sources of chance: the problems that were asked and the seeds that the models were trained with. It is a
bootstrap over both at once (crossed: every model answered every problem): of S seeds S - 1 are drawn with replacement, which
makes the variance of so few unbiased (Rao and Wu 1988, section 2), and of each family's problems as many as there are. The
p-value is of the same draws. With one seed the interval is over problems alone, and `seeds` says so.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from statistics import fmean, median
from typing import Any

from shoestring import stats
from shoestring.ablate.file import SHARED, Ablation
from shoestring.ablate.planning import NOT_MAKING, Planned, to_dict
from shoestring.ablate.pool import Pool
from shoestring.cost.ledger import Ledger
from shoestring.cost.prices import PriceBook
from shoestring.stages import scoring

DRAWS = 4000
Key = tuple[str, str]  # family, problem id
Verdicts = Mapping[Key, float]
Cells = dict[str, list[list[float]]]  # family → [seed][problem]


def cells(models: Sequence[Verdicts]) -> Cells:
    """The problems that every model (one a seed) answered, by family, in one order."""
    both = sorted(set.intersection(*(set(m) for m in models))) if models else []
    out: Cells = {}
    for family in dict.fromkeys(f for f, _ in both):
        keys = [k for k in both if k[0] == family]
        out[family] = [[m[k] for k in keys] for m in models]
    return out


def less(after: Cells, before: Cells) -> Cells:
    """after - before, cell by cell. Raises ValueError unless both have the same shape."""
    if {f: [len(r) for r in rows] for f, rows in after.items()} != {f: [len(r) for r in rows] for f, rows in before.items()}:
        raise ValueError("the two were not asked the same problems under the same seeds")
    return {
        f: [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(after[f], before[f], strict=True)] for f in after
    }


def macro(made: Cells) -> float:
    """The mean over families of the mean over problems and seeds."""
    return fmean(fmean(v for row in rows for v in row) for rows in made.values())


def by_seed(made: Cells) -> list[float]:
    """The macro mean of each seed's model."""
    seeds = len(next(iter(made.values())))
    return [fmean(fmean(rows[s]) for rows in made.values()) for s in range(seeds)]


def crossed(made: Cells, draws: int = DRAWS, seed: int = 0) -> list[float]:
    """Sorted macro means of `draws` resamples of seeds and problems."""
    rng = random.Random(seed)
    families, seeds = list(made.values()), len(next(iter(made.values())))
    means: dict[tuple[int, ...], list[list[float]]] = {}  # of the drawn seeds: [family][problem]
    out = []
    for _ in range(draws):
        drawn = tuple(sorted(rng.choices(range(seeds), k=max(1, seeds - 1))))
        if drawn not in means:
            means[drawn] = [[fmean(rows[s][i] for s in drawn) for i in range(len(rows[0]))] for rows in families]
        out.append(fmean(sum(rng.choices(values, k=len(values))) / len(values) for values in means[drawn]))
    return sorted(out)


def level(made: Cells, draws: int = DRAWS) -> dict[str, Any]:
    """{mean, ci95, n} of an arm. Never narrower than over the problems alone, where a family that is all right or all wrong has
    Wilson's interval (`stats.macro_interval`)."""
    found = crossed(made, draws)
    means = {f: [fmean(c) for c in zip(*rows, strict=True)] for f, rows in made.items()}
    plain = stats.macro_interval(means, draws=min(draws, 1000))
    low, high = stats.quantile(found, 0.025), stats.quantile(found, 0.975)
    n = sum(len(rows[0]) for rows in made.values())
    return {"mean": macro(made), "ci95": [max(0.0, min(low, plain[0])), min(1.0, max(high, plain[1]))], "n": n}


def gain(before: Cells, after: Cells, draws: int = DRAWS) -> dict[str, Any]:
    """{gain, ci95, p_value, seeds}: `seeds` are the gains of each seed's pair of models."""
    apart = less(after, before)
    found = crossed(apart, draws)
    below, above = sum(x <= 0 for x in found), sum(x >= 0 for x in found)
    return {
        "gain": macro(apart), "ci95": [stats.quantile(found, 0.025), stats.quantile(found, 0.975)],
        "p_value": min(1.0, 2 * (min(below, above) + 1) / (len(found) + 1)), "seeds": by_seed(apart),
    }  # fmt: skip


def over_base(base: Verdicts, models: Sequence[Verdicts], draws: int = DRAWS) -> dict[str, Any]:
    """As `gain`, of these models (one a seed) over one base that was asked once: the seeds' chance is the models' alone. Beside
    it `families`: {name: {base, mean, gain, ci95}}, and `median` of their gains. No common problem: no key."""
    common = set.intersection(set(base), *(set(m) for m in models))
    if not common or not models:
        return {}
    after = cells([{k: m[k] for k in common} for m in models])
    before = cells([{k: base[k] for k in common}] * len(models))
    families = {}
    for f in sorted(after):
        a, b = {f: before[f]}, {f: after[f]}
        found = gain(a, b, min(draws, 1000))
        families[f] = {"base": macro(a), "mean": macro(b), "gain": found["gain"], "ci95": found["ci95"]}
    return {**gain(before, after, draws), "median": median(r["gain"] for r in families.values()), "families": families}


# child runs


def last_score(folder: Path) -> scoring.Measured | None:
    """The last model of a run that was scored; None where only the base was, or nothing."""
    measured = scoring.read(folder / "verdicts") if (folder / "verdicts").is_dir() else []
    return measured[-1] if measured and measured[-1].model != "base" else None


def verdicts(m: scoring.Measured, benchmark: str, way: tuple[str, str]) -> Verdicts:
    rows = [r for r in m.rows if r["benchmark"] == benchmark and r["prompting"] == way[0]]
    return {(r["family"], r["problem_id"]): float(r[way[1]]) for r in rows}


PLAIN = {scoring.UNSEEN: ("zero-shot", "strict"), scoring.UNTRAINED: ("zero-shot", "lenient")}


def accuracy(folder: Path) -> float | None:
    """Macro accuracy of a run's last model on unseen problems."""
    m = last_score(folder)
    made = cells([verdicts(m, scoring.UNSEEN, PLAIN[scoring.UNSEEN])]) if m else {}
    return macro(made) if made else None


def _run(ablation: Ablation, out: Path, name: str, seed: int, pool: Pool, book: PriceBook) -> dict[str, Any] | None:
    """A child run's row; None where it has not begun. making_usd: of the stages that make the model."""
    folder = out / name
    if not (folder / "run.json").exists() or not (folder / "ledger.jsonl").exists():
        return None
    state = json.loads((folder / "run.json").read_text())
    usages = Ledger.read(folder / "ledger.jsonl").usages
    making = {s["name"] for s in state["stages"] if s["use"] not in NOT_MAKING and s["status"] != "reused"}
    seconds = sum(u.quantity for u in usages if u.unit == "second")
    return {
        "seed": seed, "run": str(folder), "status": state["status"] if state.get("closed") else "unfinished",
        "accuracy": accuracy(folder), "n": len(_unseen(folder)),
        "usd": f"{book.cost(usages):.6f}", "making_usd": f"{book.cost(u for u in usages if u.stage in making):.6f}",
        "minutes": round(seconds / 60, 3),
    }  # fmt: skip


def _unseen(folder: Path) -> Verdicts:
    m = last_score(folder)
    return verdicts(m, scoring.UNSEEN, PLAIN[scoring.UNSEEN]) if m else {}


def collect(
    ablation: Ablation, out: Path, planned: Sequence[Planned], seeds: Sequence[int], pool: Pool, book: PriceBook,
    draws: int = DRAWS,
) -> dict[str, Any]:  # fmt: skip
    """ablation.json: what there is so far. An arm's mean and gain are over the seeds that have a score (of both arms)."""
    arms, scored = [], {}
    by_arm = {p.arm: p for p in planned}
    for arm in ablation.arms:
        rows = [r for s in ablation.seeds if (r := _run(ablation, out, f"{arm.name}-s{s}", s, pool, book))]
        models = {r["seed"]: m for r in rows if r["status"] != "unfinished" and (m := last_score(Path(r["run"])))}
        scored[arm.name] = {s: m for s, m in models.items() if verdicts(m, scoring.UNSEEN, PLAIN[scoring.UNSEEN])}
        p = by_arm.get(arm.name)
        arms.append(
            {
                "name": arm.name, "base": ablation.recipe(arm).base, "seeds": rows,
                "planned": None if p is None else _planned(p), **_means(rows),
                **_level(list(scored[arm.name].values()), draws), "gain": None,
            }
        )  # fmt: skip
    base = _base(ablation, out, arms)
    for row in arms:
        models = [verdicts(m, scoring.UNSEEN, PLAIN[scoring.UNSEEN]) for m in scored[row["name"]].values()]
        told = over_base(base[1], models, draws) if base and models and row["base"] == arms[0]["base"] else {}
        row["over_base"] = told or None
    first = ablation.arms[0].name
    for row in arms[1:]:
        pairs = [s for s in scored[first] if s in scored[row["name"]]]
        if pairs:
            row["gain"] = {"against": first, **_gain(scored[first], scored[row["name"]], pairs, draws), "paired_seeds": pairs}
    shared = _run(ablation, out, SHARED, ablation.seeds[0], pool, book) if ablation.shared else None
    wanted = [f"{a.name}-s{s}" for a in ablation.arms for s in ablation.seeds]
    done = [r for a in arms for r in a["seeds"] if r["status"] != "unfinished"]
    return {
        "name": ablation.name, "status": "finished" if len(done) == len(wanted) else "partial",
        "runs": len(done), "of": len(wanted),
        "budget_usd": str(ablation.budget), "spent_usd": f"{pool.spent():.6f}", "basis": "measured",
        "shared": shared and {"stages": list(ablation.shared)} | {k: shared[k] for k in ("run", "usd", "minutes", "status")},
        "base": base and _base_row(base, arms, draws), "arms": arms, "out_of_domain": other_domains(scored, draws),
        "plan": to_dict(ablation, planned, seeds),
    }  # fmt: skip


def _planned(p: Planned) -> dict[str, Any]:
    return {"usd": p.usd[1], "making_usd": p.making, "minutes": p.minutes[1], "scaled": dict(p.scaled)}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    done = [r for r in rows if r["status"] != "unfinished"]
    if not done:
        return {"usd": None, "making_usd": None, "minutes": None}
    money = {k: f"{sum((Decimal(r[k]) for r in done), Decimal(0)) / len(done):.6f}" for k in ("usd", "making_usd")}
    return money | {"minutes": round(fmean(r["minutes"] for r in done), 3)}


def _level(models: Sequence[scoring.Measured], draws: int) -> dict[str, Any]:
    made = cells([verdicts(m, scoring.UNSEEN, PLAIN[scoring.UNSEEN]) for m in models])
    return level(made, draws) if made else {"mean": None, "ci95": None, "n": 0}


def _gain(
    before: Mapping[int, scoring.Measured], after: Mapping[int, scoring.Measured], pairs: Sequence[int], draws: int
) -> dict[str, Any]:
    """Over the problems that all models of both arms answered."""
    a, b = ([verdicts(arm[s], scoring.UNSEEN, PLAIN[scoring.UNSEEN]) for s in pairs] for arm in (before, after))
    common = set.intersection(*(set(v) for v in (*a, *b)))
    a, b = ([{k: v[k] for k in common} for v in models] for models in (a, b))
    return gain(cells(a), cells(b), draws)


Base = tuple[scoring.Measured, Verdicts, tuple[str, str], Path]


def _base(ablation: Ablation, out: Path, arms: Sequence[Mapping[str, Any]]) -> Base | None:
    """The base model's verdicts, asked in the way that serves it best, where a run asked it."""
    folders = [out / SHARED, *(Path(r["run"]) for a in arms if a["base"] == arms[0]["base"] for r in a["seeds"])]
    for folder in folders:
        for m in scoring.read(folder / "verdicts") if (folder / "verdicts").is_dir() else []:
            if m.model == "base" and any(r["benchmark"] == scoring.UNSEEN for r in m.rows):
                way = scoring.best_way(m)
                return m, verdicts(m, scoring.UNSEEN, way), way, folder
    return None


def _base_row(base: Base, arms: Sequence[Mapping[str, Any]], draws: int) -> dict[str, Any]:
    m, found, way, folder = base
    head = {"model": arms[0]["base"], "run": str(folder), "asked": ", ".join(way)}
    return head | level(cells([found]), draws) | {"others": _domains([m], draws)}


def other_domains(scored: Mapping[str, Mapping[int, scoring.Measured]], draws: int) -> list[dict[str, Any]]:
    """A row an arm: accuracy by family that nothing was trained on, and their macro mean."""
    rows = [{"arm": name, **_domains(list(models.values()), draws)} for name, models in scored.items() if models]
    return [r for r in rows if r["families"]]


def _domains(models: Sequence[scoring.Measured], draws: int) -> dict[str, Any]:
    """{families: {name: {mean, ci95, n}}, mean, ci95, n} of these models, a number at the answer's end read as the answer."""
    made = cells([verdicts(m, scoring.UNTRAINED, PLAIN[scoring.UNTRAINED]) for m in models])
    if not made:
        return {"families": {}, "mean": None, "ci95": None, "n": 0}
    fewer = min(draws, 1000)
    return {"families": {f: level({f: rows}, fewer) for f, rows in sorted(made.items())}, **level(made, draws)}
