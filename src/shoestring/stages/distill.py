"""Traces worth learning: the model's own verified answers (rejection sampling) and worked solutions of the source.

Answers that the curate stage already sampled count as attempts and are not paid for twice. Only traces whose answer
the grader accepts are kept; a problem keeps its shortest ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.records import Artifact, Problem, StepReport, UserError
from shoestring.stages.context import Context, Events, Facts, Forecast, Journal, read_lines, write_lines
from shoestring.stages.prompts import from_row, plain

if TYPE_CHECKING:
    from shoestring.models.tokenizer import Tokenizer

NEW = 34


@dataclass(frozen=True)
class Config:
    """samples: attempts a problem, recorded ones included; keep: sampled traces kept a problem, shortest first.

    solutions: also keep the source's worked solution where it has one (checked by the grader like any trace).
    """

    samples: int = 2
    keep: int = 1
    solutions: bool = True
    max_new: int = 48
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.samples < 0 or self.keep < 0:
            raise ValueError("samples and keep cannot be negative")
        if not self.solutions and not (self.samples and self.keep):
            raise ValueError("keep = 0 or samples = 0 without solutions leaves no trace: set one")


def forecast(config: Config, facts: Facts) -> Forecast:
    return Forecast(
        (facts.seconds(2.0),),
        low=0.3,
        high=3.0,
        traces=int(facts.problems * (1.0 + 0.15 * config.keep)),
        essential=True,
    )


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring import rewards
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages.workbench import need

    started = context.clock()
    tokenizer = Tokenizer(context.base)
    problems = [from_row(r) for r in read_lines(need(inputs, "problems", context.stage, "curate"))]
    recorded = (
        [r for r in read_lines(inputs["samples-of-base"]) if "problem_id" in r] if "samples-of-base" in inputs else []
    )
    attempts: dict[str, list[dict[str, Any]]] = {}
    for r in recorded:
        attempts.setdefault(r["problem_id"], []).append(r)
    short = [p for p in problems if len(attempts.get(p.id, [])) < config.samples]
    journal = Journal(context.folder / "attempts.jsonl")
    if short and config.keep:
        yield from _attempt(config, context, short, attempts, journal, tokenizer)
        started = context.clock()  # what came before is in the reports of the attempts
        for r in journal.rows():
            attempts.setdefault(r["problem_id"], []).append(r)
    rows, verified, worked = [], 0, 0
    for p in problems:
        seen = set()
        right = sorted(
            (r for r in attempts.get(p.id, []) if r["score"] == 1.0 and r["stop_reason"] == "stop"), key=_size
        )
        for r in right:
            if len(seen) < config.keep and r["text"].strip() not in seen:
                seen.add(r["text"].strip())
                rows.append(_row(p, r["text"].strip(), r))
                verified += 1
        if config.solutions and p.solution and p.solution not in seen:
            if rewards.get(p.grader).grade(p.solution, p) != 1.0:
                raise UserError(f"distill: the worked solution of problem {p.id} does not end in its answer")
            rows.append(_row(p, p.solution, _recorded(p, tokenizer)))
            worked += 1
    if short and len(journal.chunks) < len(_chunks(short)) and config.keep and not rows:
        return  # stopped before the first verified answer
    if not rows:
        raise UserError("distill: no verified trace; allow solutions or more samples")
    tried = sum(len(attempts.get(p.id, [])) for p in problems)
    meta = {"count": len(rows), "sampled": verified, "worked": worked, "attempts": tried}
    yield StepReport(context.stage, 1, 1, context.clock() - started, extra=meta)
    yield Artifact("traces", write_lines(context.run_dir / "traces" / f"{context.stage}.jsonl", rows), meta)


def _size(row: Mapping[str, Any]) -> tuple[int, str]:
    return len(row["tokens"]), row["text"]


def _chunks(short: list[Problem]) -> list[list[Problem]]:
    return [short[i : i + 48] for i in range(0, len(short), 48)]


def _recorded(problem: Problem, tokenizer: Tokenizer) -> dict[str, Any]:
    """The source's worked solution in a trace's words: nothing of it was sampled."""
    tokens = [*tokenizer.encode(problem.solution or ""), tokenizer.end]
    return {
        "model": f"solver of {problem.source.split(' ')[0] or 'the source'}", "stop_reason": "recorded",
        "prompt_tokens": list(tokenizer.chat(plain(problem))), "tokens": tokens, "sampled": [False] * len(tokens),
        "logprobs": [0.0] * len(tokens),
    }  # fmt: skip


def _row(problem: Problem, text: str, trace: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "problem_id": problem.id,
        "messages": [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": text}],
        **{k: trace[k] for k in ("model", "stop_reason", "prompt_tokens", "tokens", "logprobs")},
        "sampled": [bool(s) for s in trace["sampled"]],
        "text": text,
        "score": 1.0,
        "domain": problem.domain,
        "source": problem.source,
        "licence": problem.licence,
    }


def _attempt(
    config: Config, context: Context, short: list[Problem], attempts: Mapping[str, list[Any]], journal: Journal,
    tokenizer: Tokenizer,
) -> Events:  # fmt: skip
    """Plain sampling for problems with too few recorded attempts."""
    from shoestring.generate.engine import Engine, Request
    from shoestring.generate.sampling import request_seed
    from shoestring.stages.workbench import open_model, sample, trace_row

    chunks = _chunks(short)
    if all(f"{i}" in journal.chunks for i in range(len(chunks))):
        return
    model, _ = open_model(context)
    engine, pace = Engine(model, 96), context.first(60.0)
    for i, chunk in enumerate(chunks):
        if f"{i}" in journal.chunks:
            continue
        if (yield context.intent(i, pace.upper(), "sampling")) == "stop":
            return
        began = context.clock()
        requests, problems = [], []
        for p in chunk:
            for k in range(len(attempts.get(p.id, [])), config.samples):
                seed = request_seed(context.seed, int(p.id, 16), k)
                stop = frozenset([tokenizer.end])
                requests.append(Request(tokenizer.chat(plain(p)), config.max_new, config.temperature, seed, stop))
                problems.append(p)
        traces = sample(engine, requests, problems, tokenizer, context.model_name)
        journal.append(f"{i}", [trace_row(t) for t in traces])
        seconds = context.clock() - began
        pace.add(seconds)
        tokens = sum(len(t.tokens) for t in traces)
        yield StepReport(context.stage, i + 1, len(chunks), seconds, tokens, tokens)
