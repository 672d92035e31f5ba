"""Pass rates: the base model, and other models that are named, answer every candidate; done chunks are read back on resume."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shoestring.records import Problem, StepReport
from shoestring.stages.context import Context, Events, Journal

if TYPE_CHECKING:
    from shoestring.generate.engine import Engine
    from shoestring.models.tokenizer import Tokenizer

SIZE = 96  # sequences decoded at once
BASE = "base"


class Sampling(Protocol):
    @property
    def samples(self) -> int: ...
    @property
    def shots(self) -> int: ...
    @property
    def max_new(self) -> int: ...
    @property
    def temperature(self) -> float: ...


def chunks_of(config: Sampling, drawn: list[Problem], seed: int) -> list[list[Problem]]:
    """A budget stop leaves every family measured alike."""
    mixed = random.Random(seed).sample(drawn, len(drawn))
    return [mixed[i : i + SIZE // config.samples or 1] for i in range(0, len(mixed), SIZE // config.samples or 1)]


def measure(
    config: Sampling, context: Context, drawn: list[Problem], shots: Mapping[str, list[Problem]], journal: Journal,
    model: str = BASE, at: int = 0, total: int = 0,
) -> Events:  # fmt: skip
    """Answers of one model after worked examples, a journal's row an answer (with `lenient`, its kindly read score).

    model: "base", or a folder, file or id of another; at: steps that came before this model's; total: of all models.
    """
    chunks = chunks_of(config, drawn, context.seed)
    total = total or len(chunks)
    if all(f"{i}" in journal.chunks for i in range(len(chunks))):
        return
    from shoestring import rewards
    from shoestring.generate.engine import Request
    from shoestring.generate.sampling import request_seed
    from shoestring.stages.prompts import few_shot
    from shoestring.stages.workbench import sample, trace_row

    started: float | None = context.clock()  # the first chunk's seconds have the opening in them
    engine, tokenizer = _opened(model, context)
    pace = context.first(60.0)
    for i, chunk in enumerate(chunks):
        if f"{i}" in journal.chunks:
            continue
        if (yield context.intent(at + i, pace.upper(), "pass rates")) == "stop":
            return
        began, started = started if started is not None else context.clock(), None
        requests, problems = [], []
        for p in chunk:
            prompt = tokenizer.chat(few_shot(p, shots.get(p.domain, [])))
            for k in range(config.samples):
                seed = request_seed(context.seed, int(p.id, 16), k)
                stop = tokenizer.ends
                requests.append(Request(prompt, config.max_new, config.temperature, seed, stop))
                problems.append(p)
        reasons: Counter[str] = Counter()
        traces = sample(engine, requests, problems, tokenizer, model, reasons=reasons)
        lenient = rewards.get("lenient")
        journal.append(
            f"{i}", [trace_row(t, lenient=lenient.grade(t.text, p)) for t, p in zip(traces, problems, strict=True)]
        )
        seconds = context.clock() - began
        pace.add(seconds)
        tokens = sum(len(t.tokens) for t in traces)
        yield StepReport(
            context.stage, at + i + 1, total, seconds, tokens, tokens,
            reward=sum(t.score or 0.0 for t in traces) / len(traces), extra={"verdicts": dict(reasons)},
        )  # fmt: skip


def _opened(model: str, context: Context) -> tuple[Engine, Tokenizer]:
    from shoestring.generate.engine import Engine
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages.workbench import open_model

    if model == BASE:
        tokenizer = Tokenizer(context.base)
        opened, _ = open_model(context)
        return Engine(opened, SIZE), tokenizer
    import torch

    from shoestring.models import device, folder

    path = located(model)
    if path.is_file():
        from shoestring.models.gguf import cached_folder

        path = cached_folder(path)
    return Engine(folder.load(path, torch.bfloat16, device.choose()), SIZE), Tokenizer(path)


def located(model: str) -> Path:
    from shoestring.estimate.locate import locate
    from shoestring.records import UserError

    try:
        return locate(model)
    except UserError as e:
        raise UserError(f"curate: models: {e}") from None


def rates_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean lenient score of each problem that was answered."""
    hits: dict[str, list[float]] = {}
    for row in rows:
        hits.setdefault(row["problem_id"], []).append(row["lenient"])
    return {id: sum(h) / len(h) for id, h in hits.items()}
