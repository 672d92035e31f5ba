"""Helpers that stages share: open a model, sample and grade. Torch is imported inside the functions."""

from __future__ import annotations

import random
from collections import Counter
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
    from shoestring.models.lora import LoraConfig
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages.trainer import TrainerConfig

MASTER, ADAPTER = "master/", "adapter/"  # kinds of tensors in a checkpoint: every weight in fp32; the LoRA's own


def gradable(problem: Problem) -> None:
    """ValueError when the problem's own grader could not grade its gold answer."""
    rewards.get(problem.grader).check(problem)


def load_problems(specs: Sequence[str], split: str | None, lost: list[str] | None = None) -> list[Problem]:
    """The problems of several sources in order, every gold answer checked; `lost` gets what is wrong with those left out."""
    return [p for spec in specs for p in sources.load(spec, split, gradable, lost)]  # pyright: ignore[reportArgumentType]


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

    from shoestring.models import device, folder
    from shoestring.train.checkpoints import read_tensors

    model = folder.load(context.base, torch.bfloat16, device.choose())
    if context.weights is None:
        return model, None
    masters = {k.removeprefix(MASTER): v for k, v in read_tensors(context.weights, MASTER).items()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(masters[name])
    return model, masters


def open_trainable(
    context: Context, adapter: LoraConfig | None = None, quantised: bool = False
) -> tuple[Decoder, dict[str, Any]]:
    """The decoder in bf16 and its fp32 masters: the trained ones, or the base's weights, read once at full precision.

    With an adapter the weights are frozen (`quantised`: the blocks' matrices in NF4) and there are no masters yet: the
    optimiser makes them of what trains.
    """
    import torch

    from shoestring.models import device, folder

    if adapter is not None:
        from shoestring.models import lora, nf4

        model, _ = open_model(context)
        if quantised:
            nf4.quantise_model(model)
        lora.attach(model, adapter, context.seed)
        return model, {}
    if context.weights is not None:
        model, masters = open_model(context)
        assert masters is not None
        return model, masters
    model = folder.load(context.base, torch.float32, device.choose())
    if context.random:
        reinitialise(model, context.seed)
    masters = {n: p.detach() for n, p in model.named_parameters()}
    return model.to(torch.bfloat16), masters  # the cast gives the model new tensors; the masters keep the wide ones


def reinitialise(model: Decoder, seed: int) -> None:
    """Draw every matrix anew, as a model is before its training: normal with deviation 0.02 (GPT-2's and Llama's), gains of
    norms 1, biases 0."""
    import torch

    model.randomise(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0 if name.endswith("norm") else 0.0)


def adapter_config(config: TrainerConfig) -> LoraConfig | None:
    if not config.lora:
        return None
    from shoestring.models.lora import LoraConfig

    return LoraConfig(config.lora, config.lora_alpha, config.targets(), config.rslora)


def adapter_facts(config: TrainerConfig) -> dict[str, Any]:
    """What a checkpoint's manifest says of its adapter, so that the export can write it (export.adapter_of)."""
    return {
        "lora": {"rank": config.lora, "alpha": config.lora_alpha, "targets": list(config.targets()), "rslora": config.rslora},
        "quantise": config.quantise,
    }


def adapter_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The optimiser's tensors under a checkpoint's names: its masters are the adapter's, not the model's."""
    return {ADAPTER + k.removeprefix(MASTER) if k.startswith(MASTER) else k: v for k, v in tensors.items()}


def resumable(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inverse: a checkpoint's tensors as the optimiser reads them. Merged weights beside an adapter are left out."""
    if not any(k.startswith(ADAPTER) for k in tensors):
        return tensors
    own = {k: v for k, v in tensors.items() if not k.startswith(MASTER)}
    return {MASTER + k.removeprefix(ADAPTER) if k.startswith(ADAPTER) else k: v for k, v in own.items()}


def merged(context: Context, model: Decoder, adapter: Mapping[str, Any], wide: bool) -> dict[str, Any]:
    """Every weight of the plain decoder in fp32, the adapter's masters added, under a checkpoint's names.

    wide: onto the frozen weights at full precision, read again for it; else onto what the model holds (a quantised matrix
    is what the adapter was trained against).
    """
    import torch

    from shoestring.models import folder, lora
    from shoestring.train.checkpoints import read_tensors

    base: dict[str, Any] | None = None
    if wide and context.weights is not None:
        base = {k.removeprefix(MASTER): v for k, v in read_tensors(context.weights, MASTER).items()}
    elif wide:
        base = {n: p.detach() for n, p in folder.load(context.base, torch.float32).named_parameters()}
    return {MASTER + n: t for n, t in lora.merged(model, adapter, base, overwrite=True).items()}


def clean(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of a response, without the token that ended it."""
    return tokenizer.decode([t for t in tokens if t not in tokenizer.ends])


def sample(
    engine: Engine, requests: Sequence[Request], problems: Sequence[Problem], tokenizer: Tokenizer, model: str,
    reward: rewards.Reward | None = None, reasons: Counter[str] | None = None,
) -> list[Trace]:  # fmt: skip
    """One graded trace a request (problems[i] belongs to requests[i]), all graded at once.

    reward: what is paid, in place of each problem's own grader. reasons: the verdicts are counted into it by their reason.
    """
    done = engine.generate(requests)
    for problem, d in zip(problems, done, strict=True):
        if d.reason == "error":
            raise UserError(f"stage {model!r}: problem {problem.id}: {d.error}")
    texts = [clean(d.tokens, tokenizer) for d in done]
    lengths = [len(d.tokens) for d in done]
    if reward is None:
        verdicts = rewards.score_all(texts, problems, lengths=lengths)
    else:
        verdicts = rewards.score(reward, texts, problems, lengths=lengths)
    if reasons is not None:
        reasons.update(rewards.tally(verdicts))
    return [
        Trace(
            problem_id=problem.id, prompt_tokens=request.prompt, tokens=d.tokens, sampled=d.sampled or (True,) * len(d.tokens),
            logprobs=tuple(x * s for x, s in zip(d.logprobs, d.sampled, strict=True)) if d.sampled else d.logprobs,
            stop_reason="length" if d.reason == "length" else "stop", model=model, text=text, score=verdict.score,
        )
        for request, problem, d, text, verdict in zip(requests, problems, done, texts, verdicts, strict=True)
    ]  # fmt: skip


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
