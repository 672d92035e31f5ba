"""The test-time scaling curve: accuracy against the tokens of an answer when the thinking is forced to a budget, with
majority voting and rejection sampling at equal tokens beside it (Muennighoff et al. 2025, s1, figures 1 and 4).

Read from scaling.json, scaling-2.json and so on, one a model and benchmark; without such a file there is no section.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import charts
from .charts import Mark
from .load import RunFolder, mapping, objects
from .style import figure, h, legend, section, table, tag
from .text import DASH, interval, money, num, percent
from .text import figure as number

REACH = 2.0  # votes that take more than so many times the tokens of the longest budget stand in the table only
KINDS = (("points", "m2", "budget"), ("majority", "m1", "vote of"), ("rejection", "m3", "resampled"))


def curves(run: RunFolder) -> list[Mapping[str, Any]]:
    """The curves of a run folder in their order; a file that cannot be read is passed over."""

    def place(path: Path) -> int:
        return int((re.findall(r"\d+", path.stem) or ["1"])[0])

    found = []
    for path in sorted(run.path.glob("scaling*.json"), key=place):
        try:
            value = json.loads(path.read_bytes().decode("utf-8", errors="replace"))
        except (OSError, ValueError, RecursionError):
            continue
        if objects(mapping(value).get("points")):
            found.append(mapping(value))
    return found


def tokens_of(point: Mapping[str, Any]) -> float | None:
    """Tokens an answer: all that were generated, or the thinking where no more is known."""
    return next((x for k in ("tokens", "mean_tokens", "mean_thinking_tokens") if (x := num(point.get(k))) is not None), None)


def marks(curve: Mapping[str, Any]) -> list[Mark]:
    """A mark each budget (joined), each vote and each rejection budget that the picture has room for."""
    most = max((tokens_of(p) or 0.0 for p in objects(curve.get("points"))), default=0.0)
    out = []
    for key, colour, word in KINDS:
        for p in objects(curve.get(key)):
            x, y, ends = tokens_of(p), num(p.get("accuracy")), interval(p.get("ci95"))
            if x is None or y is None or (key == "majority" and x > REACH * most):
                continue
            setting = number(p.get("samples") if key == "majority" else p.get("budget"), 9)
            low, high = ends or (None, None)
            label = {"points": "", "majority": "×", "rejection": "≤"}[key] + setting
            note = f"{word} {setting}: {percent(y)} at {number(x, 4)} tokens an answer"
            joined = key == "points"
            out.append(Mark(label, y, low, high, colour, x, not joined, joined, note))
    return out


def metrics(curve: Mapping[str, Any]) -> str:
    """s1's three numbers in words."""
    m = mapping(curve.get("metrics"))
    slope = num(m.get("scaling"))
    risen = DASH if slope is None else f"{100_000 * slope:+.1f}".replace("-", "−")
    return (
        f"Control {percent(m.get('control'), 0)}: the share of answers that thought no longer than asked. "
        f"Scaling {risen} percentage points a thousand thinking tokens, the mean slope over all pairs of budgets. "
        f"Performance {percent(m.get('performance'))}, the best of the budgets."
    )


HEAD = (
    ("way", "nw"), ("setting", "r"), ("thinking tokens", "r"), ("tokens an answer", "r"), ("accuracy", "r"), ("dollars", "r"),
)  # fmt: skip


def _rows(curve: Mapping[str, Any], currency: str) -> list[list[str]]:
    ways = {"points": "budget forcing", "majority": "majority vote", "rejection": "rejection sampling"}
    rows = []
    for key, *_ in KINDS:
        for p in objects(curve.get(key)):
            ends, waits = interval(p.get("ci95")), num(p.get("waits"))
            setting = number(p.get("samples") if key == "majority" else p.get("budget"), 9)
            setting += (
                (" samples" if num(p.get("samples")) != 1 else " sample")
                if key == "majority"
                else f", {number(waits)} × “Wait”"
                if waits
                else ""
            )
            ci = f'<span class="ci">{100 * ends[0]:.0f}–{100 * ends[1]:.0f}</span>' if ends else ""
            thought = num(p.get("mean_thinking_tokens"))
            usd = DASH if p.get("usd") is None else h(money(p.get("usd"), currency))
            cells = [ways[key], h(setting, 60), DASH if thought is None else h(number(thought, 4))]
            rows.append([*cells, h(number(tokens_of(p), 4)), percent(p.get("accuracy")) + ci, usd])
    return rows


LEAD = (
    "The same questions with the thinking forced to one budget after another: at the cap its end is forced, an early end is "
    "taken back and replaced by “Wait”. Forcing changes the asking only, not the model. "
)


def of_run(run: RunFolder) -> str:
    """The section of a run's page; "" where no thinking budgets were evaluated."""
    found = curves(run)
    if not found:
        return ""
    body = ""
    for curve in found:
        name = f"{h(curve.get('model') or 'model', 80)} on {h(curve.get('benchmark') or 'a benchmark', 80)}"
        drawn = marks(curve)

        def draw(width: int, drawn: list[Mark] = drawn) -> str:
            return charts.points(
                drawn, width=width, title="Accuracy against tokens an answer", x_label="tokens an answer",
                x_show=lambda v: number(v, 4), y_show=lambda v: percent(v, 0), y_tick=lambda v: percent(v, 0),
            )  # fmt: skip

        keys = legend([("thinking budget", "m2"), ("majority vote of so many samples", "m1"), ("sampled until within", "m3")])
        body += figure(name, charts.both(draw), keys, "with 95% intervals") if drawn else f"<p>{name}: nothing was scored.</p>"
        body += f"<p>{metrics(curve)}</p>" + table(HEAD, _rows(curve, run.currency), label="test-time scaling")
    return section("Test-time scaling: what longer thinking buys", LEAD + tag("measured"), body)
