"""Learning curves: loss of the stages that imitate, reward of those that try, and the groups that taught nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import charts, money
from .load import RunFolder, objects
from .style import absent, figure, h, section, tag
from .text import figure as number
from .text import num, percent


def curves(run: RunFolder) -> str:
    title = "Learning curves"
    figures = []
    sampled = {str(s.get("name")) for s in objects(run.run.get("stages")) if s.get("use") in ("evaluate", "curate", "distill")}
    for stage in run.stage_order():
        if stage not in sampled:  # a chunk of an evaluation is no step of learning
            figures += _stage_curves(stage, run.steps(stage))
    if not figures:
        return absent(title, run.why_absent("metrics.jsonl") or "no step was recorded")
    waste = money.without_variance(run)
    return section(
        title,
        f"Each step faint, the moving mean strong. {tag('measured')}",
        f'<div class="grid-figs">{"".join(figures)}</div>{waste}',
    )


def _stage_curves(stage: str, steps: Sequence[dict[str, Any]]) -> list[str]:
    def series(read: Callable[[dict[str, Any]], float | None]) -> list[tuple[float, float]]:
        return [(s["step"], v) for s in steps if (v := read(s)) is not None and num(s["step"]) is not None]

    def share(s: dict[str, Any]) -> float | None:
        groups, without = num(s.get("groups")), num(s.get("groups_without_variance"))
        return None if not groups or without is None else without / groups

    reward, loss = series(lambda s: num(s.get("reward"))), series(lambda s: num(s.get("loss")))
    out = []

    def add(name: str, data: list[tuple[float, float]], show: Callable[[float], str], colour: str, zero: bool) -> None:
        data = [(float(x), y) for x, y in data]
        caption = f"{stage}: {name}"
        drawn = charts.lines(data, width=290, title=caption, x_label="step", y_show=show, colour=colour, zero=zero)
        out.append(figure(h(caption), drawn))

    if reward:
        add("reward", reward, number, "m2", True)
        if shares := series(share):
            add("groups without variance", shares, lambda v: percent(v, 0), "m5", True)
    elif loss:
        add("loss, nats a token", loss, number, "m1", False)
    return out
