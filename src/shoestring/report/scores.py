"""Which rows of scores.json answer which question. Shared by the page and the terminal's headline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .load import RunFolder
from .text import interval, num

Row = dict[str, Any]


def is_base(row: Row) -> bool:
    model = str(row.get("model"))
    return model == "base" or model.startswith("base-")


def label(row: Row) -> str:
    """The model, and the extraction where it is not the strict one."""
    name = str(row.get("model"))
    return f"{name} (lenient)" if row.get("extraction") == "lenient" else name


def rows_of(run: RunFolder, benchmark: str) -> list[Row]:
    return [r for r in run.scores if str(r.get("benchmark")) == benchmark]


def shown(rows: Sequence[Row]) -> list[Row]:
    """One row a model and family: the strict one where there is one."""
    out: dict[tuple[str, str], Row] = {}
    named = any(r.get("model") == "base" for r in rows)
    for r in rows:
        if named and str(r.get("model")).startswith("base-"):
            continue  # another way of asking the base model; "base" is the best of them
        key = (str(r.get("model")), str(r.get("family")))
        if key not in out or (out[key].get("extraction") == "lenient" and r.get("extraction") != "lenient"):
            out[key] = r
    return list(out.values())


def macro(run: RunFolder) -> list[Row]:
    """The macro row of each model on unseen problems."""
    return [r for r in shown(rows_of(run, "unseen")) if str(r.get("family")) == "macro"]


def base_rows(run: RunFolder) -> list[Row]:
    """Every macro score of the base model: zero-shot and few-shot, strict and lenient."""
    found = (r for r in rows_of(run, "unseen") if str(r.get("family")) == "macro" and is_base(r))
    return [r for r in found if num(r.get("accuracy")) is not None]


def start(run: RunFolder) -> Row | None:
    """What the gain is counted over: the best of the base model's scores."""
    return max(base_rows(run), key=lambda r: num(r.get("accuracy")) or 0.0, default=None)


def final(run: RunFolder) -> Row | None:
    """The last trained model's macro row."""
    return next((r for r in reversed(macro(run)) if not is_base(r) and num(r.get("accuracy")) is not None), None)


def overall_gain(run: RunFolder, first: Row, best: Row) -> tuple[float | None, tuple[float, float] | None]:
    """The difference of two macro rows, with the interval that gains.json gives for this very difference."""
    a, b = num(first.get("accuracy")), num(best.get("accuracy"))
    if a is None or b is None:
        return None, None
    fits = []
    for g in run.gains:
        gain, source = num(g.get("gain")), str(g.get("from"))
        if gain is None or str(g.get("to")) != str(best.get("model")) or not source.startswith("base"):
            continue
        if str(g.get("benchmark")) == "unseen" and abs(gain - (b - a)) < 0.0051:
            fits.append((source != str(first.get("model")), interval(g.get("ci95"))))
    return b - a, min(fits, key=lambda f: f[0])[1] if fits else None


def strict_and_lenient(run: RunFolder) -> list[tuple[str, Row | None, Row | None]]:
    """(model and prompting, strict macro row, lenient macro row), where any was scored both ways."""
    out: dict[str, list[Row | None]] = {}
    for r in rows_of(run, "unseen"):
        if str(r.get("family")) == "macro":
            name = str(r.get("model"))
            if name.startswith("base-") and r.get("prompting"):
                name = f"base, {r['prompting']}"
            elif name == "base":
                continue
            out.setdefault(name, [None, None])[r.get("extraction") == "lenient"] = r
    return [(m, a, b) for m, (a, b) in out.items()] if any(a and b for a, b in out.values()) else []


def colours(run: RunFolder) -> dict[str, str]:
    """A colour variable for each model: greys for the base model, the palette in order for what was trained."""
    out: dict[str, str] = {}
    trained = 0
    for r in run.scores:
        model = str(r.get("model"))
        if model in out:
            continue
        if is_base(r):
            out[model] = "base" if model == "base" else "shot"
        else:
            trained += 1
            out[model] = f"m{min(trained, 5)}"
    return out
