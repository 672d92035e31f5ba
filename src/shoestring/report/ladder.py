"""What each stage of a run added and what it cost: one line a scored model, from the base to the last.

A rung's dollars are those of the stages that lead from the model before it to this one (data, sampling, training), by the bill;
scoring is a line of its own. Gains are paired, over the same problems.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import scores
from .load import RunFolder, load, objects
from .style import h, section, table, tag
from .text import DASH, interval, num, percent, points
from .text import figure as number
from .text import money as dollars

TITLE = "What each stage added, and its price"


@dataclass(frozen=True)
class Rung:
    """stages: what was paid for since the model before; gain in shares, None for the first. usd: None where it is unknown."""

    model: str
    stages: tuple[str, ...]
    accuracy: float
    ends: tuple[float, float] | None
    gain: float | None = None
    gain_ends: tuple[float, float] | None = None
    usd: float | None = None

    @property
    def usd_a_point(self) -> float | None:
        """None where the interval of the gain holds zero: no gain is shown, and nothing has a price."""
        if self.usd is None or self.gain is None or self.gain_ends is None or self.gain_ends[0] <= 0:
            return None
        return self.usd / (100 * self.gain)


def rungs(run: RunFolder) -> list[Rung]:
    """The scored models in their order; empty where fewer than two were scored."""
    rows = {str(r.get("model")): r for r in scores.macro(run) if num(r.get("accuracy")) is not None}
    stages = [(str(s.get("name")), str(s.get("use"))) for s in objects(run.run.get("stages"))]
    paired = {(str(g.get("from")), str(g.get("to"))): g for g in run.gains if str(g.get("benchmark")) == "unseen"}
    out: list[Rung] = []
    since: list[str] = []
    for model in (["base"] if "base" in rows else []) + [name for name, _ in stages]:
        use = next((u for n, u in stages if n == model), "")
        if model != "base" and use != "evaluate":
            since.append(model)
        if model not in rows:
            continue
        row = rows[model]
        amounts = [a for s in since if (a := run.stage_amount(s)) is not None]
        known = bool(since) and len(amounts) == len(since)
        found = paired.get((out[-1].model, model), {}) if out else {}
        out.append(
            Rung(
                model, tuple(since), num(row.get("accuracy")) or 0.0, interval(row.get("ci95")), num(found.get("gain")),
                interval(found.get("ci95")), sum(amounts) if known else None,
            )
        )  # fmt: skip
        since = []
    return out if len(out) > 1 else []


def scoring(run: RunFolder) -> float | None:
    """Dollars of all evaluations."""
    names = [str(s.get("name")) for s in objects(run.run.get("stages")) if s.get("use") == "evaluate"]
    amounts = [a for n in names if (a := run.stage_amount(n)) is not None]
    return sum(amounts) if amounts else None


HEAD = ("model", "beside it", "accuracy", "gain", "dollars", "$ a point")


def _cells(r: Rung, currency: str) -> list[str]:
    ends = f" {100 * r.ends[0]:.0f}–{100 * r.ends[1]:.0f}" if r.ends else ""
    gain = DASH
    if r.gain is not None:
        gain = points(r.gain) + (f" ({points(r.gain_ends[0], 0)} to {points(r.gain_ends[1], 0)})" if r.gain_ends else "")
    price = r.usd_a_point
    shown = dollars(price, currency) if price is not None else "no gain shown" if r.gain is not None and r.gain_ends else DASH
    beside = ", ".join(s for s in r.stages if s != r.model)
    usd = DASH if r.usd is None else dollars(r.usd, currency)
    return [r.model, beside, percent(r.accuracy) + ends, gain, usd, shown]


def of_run(run: RunFolder) -> str:
    """The section of the page; "" where fewer than two models were scored."""
    found = rungs(run)
    if not found:
        return ""
    rows = [[h(c, 160) for c in _cells(r, run.currency)] for r in found]
    last = None
    if (usd := scoring(run)) is not None:
        last = ["all evaluations", "", "", "", dollars(usd, run.currency), ""]
    head = [(name, "nw" if i == 0 else "text" if i == 1 else "r") for i, name in enumerate(HEAD)]
    said = "Macro accuracy on unseen problems and the paired gain over the model before, with 95% intervals; dollars are the "
    said += f"bill's, of the stages that led from one to the next, the stage itself and those beside it. {tag('measured')}"
    return section(TITLE, said, table(head, rows, last, TITLE))


def print_ladder(run_dir: Path, console: Any) -> None:
    """The same on a terminal; nothing where fewer than three models were scored (the gains say as much)."""
    from .terminal import _row, _table

    run = load(run_dir)
    found = rungs(run)
    if len(found) < 3:
        return
    kept = [i for i in range(len(HEAD)) if i != 1 or console.width >= 110]  # what was beside a stage: where there is room
    made = _table(*((HEAD[i], "lwrrrr"[i]) for i in kept), title=TITLE)
    for r in found:
        cells = _cells(r, run.currency)
        _row(made, *(cells[i] for i in kept))
    console.print(made)
    console.print()


def rejected(run: RunFolder) -> str:
    """Where the answers went that a stage sampled of its own model or a teacher; "" where no stage did."""
    body = ""
    for path in sorted(run.path.glob("stages/*/funnel.json")):
        try:
            steps = objects(json.loads(path.read_text("utf-8", errors="replace")))
        except (OSError, ValueError):
            continue
        body += _steps(path.parent.name, steps)
    if not body:
        return ""
    said = f"Answers that were sampled for training, and the first reason why one was not kept. {tag('measured')}"
    return section("Rejection sampling", said, body)


def _steps(stage: str, steps: Sequence[dict[str, Any]]) -> str:
    rows = []
    for s in steps:
        before, after = num(s.get("before")), num(s.get("after"))
        lost = number(before - after, 9) if before is not None and after is not None else DASH
        rows.append([h(s.get("step"), 60), number(after, 9), lost, h(s.get("why"), 200)])
    head = [("step", "nw"), ("left", "r"), ("dropped", "r"), ("why", "text")]
    return f"<h3>{h(stage, 60)}</h3>" + table(head, rows, label=f"answers of {stage}") if rows else ""


def watched(run: RunFolder) -> str:
    """What the watch over the reward has found, by stage; "" where nothing was."""
    from shoestring.stages._grpo_watch import SIGNS

    rows = []
    for stage in run.stage_order():
        found: dict[str, list[tuple[float, list[Any]]]] = {}
        for s in run.steps(stage):
            signs = s.get("watch")
            for sign, values in signs.items() if isinstance(signs, dict) else ():
                found.setdefault(str(sign), []).append((num(s.get("step")) or 0, values if isinstance(values, list) else []))
        for sign, at in found.items():
            first, last = at[0], at[-1]
            between = " → ".join(number(v) for v in last[1])
            rows.append([h(stage, 60), h(SIGNS.get(sign, sign), 120), number(first[0], 6), number(last[0], 6), h(between, 60)])
    if not rows:
        return ""
    head = [("stage", "nw"), ("sign", "text"), ("first step", "r"), ("last step", "r"), ("start → then", "r")]
    said = "Signs that the reward was earned without what it is for, each against the stage's own first steps "
    said += f"(docs/r1.md has the limits). {tag('measured')}"
    return section("Watch the reward", said, table(head, rows, label="watch"))
