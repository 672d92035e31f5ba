"""Learning curves: loss of the stages that imitate, reward of those that try, and the groups that taught nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from . import charts, money
from .load import RunFolder, objects
from .style import absent, figure, h, section, tag
from .text import figure as number
from .text import num, percent

Series = list[tuple[float, float]]


def learning(run: RunFolder) -> list[str]:
    """Names of the stages whose steps are steps of learning; a chunk of an evaluation is none."""
    sampled = {str(s.get("name")) for s in objects(run.run.get("stages")) if s.get("use") in ("evaluate", "curate", "distill")}
    return [s for s in run.stage_order() if s not in sampled]


def _series(steps: Sequence[dict[str, Any]], read: Callable[[dict[str, Any]], float | None]) -> Series:
    return [(float(s["step"]), v) for s in steps if (v := read(s)) is not None]


def curves(run: RunFolder) -> str:
    title = "Learning curves"
    figures = []
    for stage in learning(run):
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
    def share(s: dict[str, Any]) -> float | None:
        groups, without = num(s.get("groups")), num(s.get("groups_without_variance"))
        return None if not groups or without is None else without / groups

    reward, loss = (_series(steps, lambda s, key=key: num(s.get(key))) for key in ("reward", "loss"))
    out = []

    def add(name: str, data: Series, show: Callable[[float], str], colour: str, zero: bool) -> None:
        caption = f"{stage}: {name}"
        drawn = charts.lines(data, width=290, title=caption, x_label="step", y_show=show, colour=colour, zero=zero)
        out.append(figure(h(caption), drawn))

    if reward:
        add("reward", reward, number, "m2", True)
        if shares := _series(steps, share):
            add("groups without variance", shares, lambda v: percent(v, 0), "m5", True)
    elif loss:
        add("loss, nats a token", loss, number, "m1", False)
    return out


def of_seeds(name: str, runs: Sequence[RunFolder]) -> list[str]:
    """An arm's figures, one a stage that learns: every seed's curve faint, their mean strong as far as all of them went."""
    out = []
    for stage in learning(runs[0]) if runs else ():
        steps = [r.steps(stage) for r in runs]
        for key, said, colour, zero in (("reward", "reward", "m2", True), ("loss", "loss, nats a token", "m1", False)):
            each = [found for s in steps if (found := _series(s, lambda s, key=key: num(s.get(key))))]
            if not each:
                continue
            common = set.intersection(*(set(dict(s)) for s in each))
            mean = [(x, fmean(dict(s)[x] for s in each)) for x in sorted(common)]
            title = f"{name}, {stage}: {said}"
            drawn = charts.lines(
                mean, each=each, width=290, title=title, x_label="step", y_show=number, colour=colour, zero=zero
            )
            out.append(figure(h(title), drawn))
            break
    return out
