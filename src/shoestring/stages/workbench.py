"""Helpers that stages share: open a model, sample and grade. Torch is imported inside the functions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring import rewards
from shoestring.data import sources
from shoestring.records import Problem, Trace, UserError
from shoestring.stages.context import Context

if TYPE_CHECKING:
    from shoestring.generate.engine import Engine, Request
    from shoestring.models.decoder import Decoder
    from shoestring.models.tokenizer import Tokenizer


def gradable(problem: Problem) -> None:
    """ValueError when the problem's own grader could not grade its gold answer."""
    rewards.get(problem.grader).check(problem)


def load_problems(specs: Sequence[str], split: str | None) -> list[Problem]:
    """The problems of several sources in order, every gold answer checked."""
    return [p for spec in specs for p in sources.load(spec, split, gradable)]  # pyright: ignore[reportArgumentType]


def spread(problems: Sequence[Problem], per_family: int, seed: int) -> list[Problem]:
    """At most `per_family` problems of each domain, drawn without order; 0 means all."""
    by: dict[str, list[Problem]] = {}
    for p in problems:
        by.setdefault(p.domain, []).append(p)
    out: list[Problem] = []
    for domain, ps in by.items():
        n = min(per_family, len(ps)) if per_family else len(ps)
        out += random.Random(f"{seed}/{domain}").sample(ps, n)
    return out


def open_model(context: Context) -> tuple[Decoder, dict[str, Any] | None]:
    """The decoder in bf16 with the newest weights, and the fp32 masters (None: the base's own weights)."""
    import torch

    from shoestring.models import folder
    from shoestring.train.checkpoints import read_tensors

    if context.weights is None:
        return folder.load(context.base, torch.bfloat16), None
    masters = {k.removeprefix("master/"): v for k, v in read_tensors(context.weights, "master/").items()}
    model = folder.load(context.base, torch.bfloat16)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(masters[name])
    return model, masters


def open_masters(context: Context, model: Decoder, masters: dict[str, Any] | None) -> dict[str, Any]:
    """fp32 masters: the trained ones, or the base's weights read again at full precision."""
    import torch

    from shoestring.models import folder

    if masters is not None:
        return masters
    wide = folder.load(context.base, torch.float32)
    return {n: p.detach() for n, p in wide.named_parameters()}


def clean(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of a response, without its end token."""
    return tokenizer.decode([t for t in tokens if t != tokenizer.end])


def sample(
    engine: Engine, requests: Sequence[Request], problems: Sequence[Problem], tokenizer: Tokenizer, model: str
) -> list[Trace]:
    """One graded trace a request (problems[i] belongs to requests[i]), by each problem's own grader."""
    traces = []
    for request, problem, done in zip(requests, problems, engine.generate(requests), strict=True):
        text = clean(done.tokens, tokenizer)
        traces.append(
            Trace(
                problem_id=problem.id,
                prompt_tokens=request.prompt,
                tokens=done.tokens,
                sampled=(True,) * len(done.tokens),
                logprobs=done.logprobs,
                stop_reason=done.reason,
                model=model,
                text=text,
                score=rewards.get(problem.grader).grade(text, problem),
            )
        )
    return traces


def trace_row(trace: Trace, **extra: Any) -> dict[str, Any]:
    """A trace as a JSON row; log-probabilities to 6 digits."""
    return {
        "problem_id": trace.problem_id,
        "model": trace.model,
        "score": trace.score,
        "stop_reason": trace.stop_reason,
        "text": trace.text,
        "prompt_tokens": list(trace.prompt_tokens),
        "tokens": list(trace.tokens),
        "sampled": list(trace.sampled),
        "logprobs": [round(x, 6) for x in trace.logprobs],
        **extra,
    }


def need(inputs: Mapping[str, Path], kind: str, stage: str, maker: str) -> Path:
    if kind not in inputs:
        raise UserError(f"stage {stage!r} needs {kind}; put a {maker} stage before it")
    return inputs[kind]
