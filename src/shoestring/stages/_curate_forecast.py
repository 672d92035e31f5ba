"""What the plan takes a curate stage to use: seconds of this machine, and tokens of the servers that it asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shoestring.estimate.lengths import TURN, written
from shoestring.estimate.rates import added
from shoestring.records import Quantity, Usage
from shoestring.stages import _curate_measure, _curate_pool, _curate_served, _distill_teacher, forecasts
from shoestring.stages._served import Served
from shoestring.stages.context import Facts, Forecast
from shoestring.stages.sizes import of_sources

if TYPE_CHECKING:
    from shoestring.stages.curate import Config

KEPT = 0.9  # expected share of candidates that are neither too easy nor out of reach
FREE_SECONDS = 2.0  # reading, duplicates, overlap with the evaluation sets
LARGE_SECONDS = 5.0, 0.0002  # starting Daft, and a row made and taken through every free step (60,467 in 21 s, one core)


def forecast(config: Config, facts: Facts) -> Forecast:
    """Answers of the untrained model after worked examples, which are computed once a family and chunk of 96; what servers
    are asked, by the token."""
    sizes = of_sources(tuple(config.sources), "train") or facts.sizes
    facts = replace(facts, sizes=sizes)
    answers = config.candidates * config.samples
    new = written(sizes, config.max_new, facts.trained)
    prefix = config.shots * (sizes.body + sizes.trace() + TURN)
    chunks = -(-answers // forecasts.ROWS)
    rows = config.candidates * sizes.own + chunks * len(config.sources) * prefix if answers else 0
    seconds, flops, memory, fits = forecasts.answering(facts, answers, new, rows, config.max_new)
    rates = facts.rates()
    large = _curate_pool.is_large(tuple(config.sources))
    mid = LARGE_SECONDS[0] + LARGE_SECONDS[1] * _curate_pool.expected(config.sources) if large else FREE_SECONDS
    free = Quantity(0.5 * mid, mid, 3 * mid, "literature")
    here = [m for _, m in config.who() if isinstance(m, str)] if answers else []
    parts = [seconds, rates.load(), free] if config.ask_base and answers else [free]
    notes: tuple[str, ...] = ()
    for model in (m for m in here if m != _curate_measure.BASE):
        again, note = _other(model, facts, seconds)
        parts, notes = [*parts, again, rates.load()], (*notes, note)
    tokens = answers * (sizes.prompt + prefix + new) if here else 0.0
    if not here:
        memory, fits, flops = {}, None, 0.0
    asked = _asked(config, facts, prefix, large)
    parts, tokens = [*parts, *(a.seconds for a in asked)], tokens + sum(a.tokens for a in asked)
    if traced := 0.0 if sizes.answer else _curate_pool.recorded_tokens(tuple(config.sources)):
        sizes = replace(sizes, answer=traced)  # what a recorded teacher will say
    problems = min(config.count, round(KEPT * config.candidates)) if answers and not large else config.count
    made = facts.forecast(
        added(*parts), tokens=round(tokens), flops=flops,
        parts={"answers": flops}, memory_bytes=sum(memory.values()), memory=memory, fits=fits,
        problems=problems, sampled=config.samples if config.ask_base else 0, sizes=sizes, essential=True,
        notes=(*notes, *(a.note for a in asked)),
    )  # fmt: skip
    if not asked:
        return made
    usages: tuple[Usage, ...] = tuple(u for a in asked for u in a.usages)
    return replace(made, usages=(*made.usages, *usages), amounts=_distill_teacher.AMOUNTS, counted="literature")


def _asked(config: Config, facts: Facts, prefix: float, large: bool) -> list[_distill_teacher.Asked]:
    """What each server takes: pass rates of the candidates, labels of as many as may be left by then."""
    servers = [m for _, m in config.who() if isinstance(m, Served)] if config.samples else []
    made = [_curate_served.forecast_rates(m, facts, config, config.candidates, prefix) for m in servers]
    if label := config.label_model():
        rows, rated = _curate_pool.counted(tuple(config.sources))
        left = rated + min(config.candidates, rows - rated) if config.samples else rows
        made.append(_curate_served.forecast_labels(label, facts, left, config.concurrency))
    return made


def _other(model: str, facts: Facts, seconds: Quantity) -> tuple[Quantity, str]:
    """The base's seconds, scaled by the weights that a token passes through."""
    from shoestring.estimate.headers import model_shape

    shape = model_shape(str(_curate_measure.located(model)))
    scale = shape.active_parameters() / max(1, facts.shape.active_parameters())
    around = Quantity(0.4 * scale * seconds.mid, scale * seconds.mid, 2.5 * scale * seconds.mid, "literature")
    return around, f"{Path(model).name} has {scale:.3g} times the base's weights"
