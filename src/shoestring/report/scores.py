"""Which rows of scores.json answer which question. Shared by the page and the terminal's headline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .load import RunFolder
from .style import h, section, table, tag
from .text import DASH, figure, interval, money, num, percent

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


OWN = ("unseen", "untrained", "heldout-text")  # what a recipe scores without naming a benchmark


def of_benchmarks(rows: Sequence[Row]) -> list[Row]:
    """The rows of named benchmarks (`benchmarks` of an evaluate stage), in their order."""
    return [r for r in rows if str(r.get("benchmark")) not in OWN and num(r.get("accuracy")) is not None]


def at_k(row: Row, key: str) -> str:
    """ "1: 40.0%, 4: 61.2% (48–74)" of pass_at_k or majority_at_k; intervals where there is room for them: of the last."""
    found = row.get(key)
    if not isinstance(found, dict) or not found:
        return DASH
    parts = [f"{k}: {percent(v.get('value'))}" for k, v in found.items() if isinstance(v, dict)]
    last = list(found.values())[-1]
    ends = interval(last.get("ci95")) if isinstance(last, dict) else None
    return ", ".join(parts) + (f" ({100 * ends[0]:.0f}–{100 * ends[1]:.0f})" if ends and len(parts) > 1 else "")


def short(row: Row) -> str:
    """A benchmark's name; of a problem source without its configuration."""
    name, mark, _ = str(row.get("benchmark")).partition("?")
    return name + ("?…" if mark else "")


def setting(row: Row) -> str:
    """How it was asked: "plain", or the thinking budget."""
    family = str(row.get("family"))
    samples = num(row.get("samples")) or 1
    return ("plain" if family == "macro" else family) + (f", n = {samples:.0f}" if samples > 1 else "")


def warnings(rows: Sequence[Row]) -> list[str]:
    """What one must know of the figures: a number of problems that is not the expected one, right answers without a mark."""
    said = [f"warning: {r['warning']}" for r in rows if r.get("warning")]
    for r in rows:
        strict, lenient = num(r.get("accuracy")), num(r.get("lenient_accuracy"))
        if strict is not None and lenient is not None and lenient > strict + 0.05:
            said.append(
                f"{r.get('model')}, {short(r)}, {setting(r)}: {percent(lenient)} where the last number counts too: "
                "right answers that no mark states; does the prompt ask for one?"
            )
    return list(dict.fromkeys(said))


COLUMNS = (
    ("model", "l"), ("benchmark", "l"), ("asked", "l"), ("n", "r"), ("accuracy", "r"), ("tokens/right", "r"), ("$/right", "r"),
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row as COLUMNS say. Tokens and dollars a right answer are of all answers, over those that were right."""
    ends = interval(row.get("ci95"))
    bounds = f" ({100 * ends[0]:.0f}–{100 * ends[1]:.0f})" if ends else ""
    tokens, dollars = num(row.get("tokens_per_correct")), num(row.get("usd_per_correct"))
    return [
        str(row.get("model")), short(row), setting(row), figure(row.get("n"), 6),
        percent(row.get("accuracy")) + bounds, DASH if tokens is None else f"{tokens:,.0f}",
        DASH if dollars is None else money(dollars),
    ]  # fmt: skip


def of_samples(rows: Sequence[Row]) -> list[str]:
    """A line for each row with several samples a problem: pass@k and majority@k."""
    return [
        f"{r.get('model')}, {short(r)}, {setting(r)}: pass@k {at_k(r, 'pass_at_k')}"
        + (f"; majority@k {at_k(r, 'majority_at_k')}" if r.get("majority_at_k") else "")
        for r in rows
        if (num(r.get("samples")) or 1) > 1
    ]


def print_benchmarks(rows: Sequence[Row], console: Any) -> None:
    """The table of the terminal; nothing where no benchmark was named."""
    from .terminal import _row, _say, _table

    found = of_benchmarks(rows)
    if not found:
        return
    several = len({r.get("model") for r in found}) > 1
    kept = [i for i in range(len(COLUMNS)) if several or i]
    made = _table(*(COLUMNS[i] for i in kept), title="Benchmarks: accuracy and 95% interval over problems")
    for r in found:
        row = cells(r)
        _row(made, *(row[i] for i in kept))
    console.print(made)
    console.print()
    for line in (*of_samples(found), *warnings(found)):
        _say(console, line)


def benchmarks(run: RunFolder) -> str:
    """The section of the page; "" where no benchmark was named."""
    found = of_benchmarks(run.scores)
    if not found:
        return ""
    head = [(h(name), "nw" if side == "l" else "r") for name, side in COLUMNS]
    said = "Accuracy is the mean over problems, with 95% intervals by bootstrap over problems; pass@k is unbiased, a majority "
    said += "vote takes each of tied answers with equal chance. Tokens and dollars a right answer are those of all answers. "
    body = table(head, ([h(c, 120) for c in cells(r)] for r in found), label="Benchmarks")
    notes = "".join(f"<p class='small'>{h(w, 300)}</p>" for w in (*of_samples(found), *warnings(found)))
    return section("Benchmarks", said + tag("measured"), body + notes)
