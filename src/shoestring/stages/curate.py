"""From a pool to a few hundred problems: quality, difficulty, diversity (s1, Muennighoff et al. 2025, section 2.2).

Free steps first (format, duplicates, overlap with the evaluation sets, commonest-answer traps), then the one that
costs: the base model's pass rate on a draw of candidates, after which problems that are too easy or families out of
reach leave, and the choice is made uniformly over families.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shoestring.estimate.flops import generation_flops
from shoestring.estimate.memory import decoding_bytes
from shoestring.records import Artifact, Problem, StepReport, UserError
from shoestring.stages.context import Context, Events, Facts, Forecast, Journal, write_json, write_lines

PROMPT = 95  # expected tokens of a plain prompt, and of one with worked examples: only the forecast reads these
SHOT_PROMPT = 420
NEW = 34  # expected tokens of an answer


@dataclass(frozen=True)
class Config:
    """sources: where problems come from; against: sources whose test problems must stay unseen.

    count: problems to choose; candidates: problems whose pass rate is measured; samples: answers each, after `shots`
    worked examples, kindly read (the last number counts). A problem answered right more often than `too_easy` leaves;
    a family whose mean pass rate is outside [family_low, family_high] leaves whole. within: how a family's problems
    are drawn (see data.select).
    """

    sources: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    count: int = 400
    candidates: int = 480
    samples: int = 2
    shots: int = 4
    max_new: int = 48
    temperature: float = 1.0
    too_easy: float = 0.99
    family_low: float = 0.0
    family_high: float = 0.9
    within: str = "uniform"

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty: name at least one, such as 'bundled:chain_sum'")
        if self.count < 1 or self.candidates < self.count:
            raise ValueError(
                f"candidates = {self.candidates} must be at least count = {self.count}, and count positive"
            )
        if self.samples < 1:
            raise ValueError(f"samples = {self.samples}: a pass rate needs at least one")
        if self.within not in ("uniform", "length"):
            raise ValueError(f"within = {self.within!r} must be 'uniform' or 'length'")
        if not 0 <= self.family_low < self.family_high <= 1:
            raise ValueError("family_low and family_high must satisfy 0 <= family_low < family_high <= 1")


def forecast(config: Config, facts: Facts) -> Forecast:
    answers = config.candidates * config.samples
    rate = facts.profile.tokens_for(facts.profile.decode_tokens, facts.shape.parameters()).mid
    prompt_rate = facts.profile.tokens_for(facts.profile.prefill_tokens, facts.shape.parameters()).mid
    rows = config.candidates * 70 + SHOT_PROMPT * 8  # worked examples are computed once a family
    seconds = answers * NEW / rate + rows / prompt_rate + 6
    return Forecast(
        (facts.seconds(seconds),),
        tokens=answers * NEW + rows,
        flops=config.candidates * generation_flops(facts.shape, 70, NEW, config.samples),
        memory_bytes=sum(decoding_bytes(facts.shape, 96, SHOT_PROMPT + config.max_new).values()),
        problems=config.count,
        essential=True,
    )


def reads(config: Config, trained: bool) -> list[tuple[str, str]]:
    """(source, split) of everything that will be read, so that a wrong file is found before a dollar is spent."""
    return [(s, "train") for s in config.sources] + [(s, "test") for s in config.against]


def free_steps(config: Config, seed: int) -> tuple[list[Problem], list[dict], list[dict]]:
    """(problems left, funnel rows, trap rows) of everything that costs nothing."""
    from shoestring.data import decontaminate, dedupe, funnel, quality, traps
    from shoestring.stages.workbench import load_problems

    pool = load_problems(config.sources, "train")
    unseen = load_problems(config.against, "test") if config.against else []
    steps = funnel.Funnel()
    steps.start(len(pool), "problems with an answer that can be checked")
    kept, why = quality.filter_problems(pool)
    steps.add("quality", len(pool), len(kept), funnel.Funnel.reasons(why))
    distinct = dedupe.exact(kept)
    steps.add("duplicates", len(kept), len(distinct), "the same question twice")
    clean = decontaminate.decontaminate(distinct, unseen)
    steps.add(
        "decontamination", len(distinct), len(clean.kept), f"shares operands or text with {len(unseen)} unseen problems"
    )
    found = traps.inspect(clean.kept)
    refused = {t.family for t in found if t.verdict == "refuse"}
    honest = [p for p in clean.kept if p.domain not in refused]
    note = f"families where one answer is right too often: {', '.join(sorted(refused))}" if refused else "no trap found"
    steps.add("traps", len(clean.kept), len(honest), note)
    if not honest:
        raise UserError(f"curate: every family is a trap ({', '.join(sorted(refused))}); name other sources")
    rows = [
        {"family": t.family, "commonest_answer": t.answer, "share": round(t.share, 4), "verdict": t.verdict}
        for t in found
    ]
    return honest, [dict(r) for r in steps.rows()], rows


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring.data import select
    from shoestring.stages.workbench import spread

    honest, funnel, traps = free_steps(config, context.seed)
    yield Artifact("traps", write_json(context.run_dir / "traps.json", traps))
    families = sorted({p.domain for p in honest})
    drawn = spread(honest, -(-config.candidates // len(families)), context.seed)[: config.candidates]
    funnel.append(
        {
            "step": "candidates", "before": len(honest), "after": len(drawn),
            "why": "drawn evenly over families: a pass rate costs money",
        }
    )  # fmt: skip
    journal = Journal(context.folder / "samples.jsonl")
    yield from _measure(config, context, drawn, honest, journal)
    hits: dict[str, list[float]] = {}
    for row in journal.rows():
        hits.setdefault(row["problem_id"], []).append(row["lenient"])
    if not hits:
        return  # stopped before the first answer
    drawn = [p for p in drawn if p.id in hits]  # a budget stop leaves some unmeasured
    rates = {p.id: sum(hits[p.id]) / len(hits[p.id]) for p in drawn}
    reachable = _families_in_band(config, drawn, rates)
    inside = [p for p in drawn if p.domain in reachable]
    funnel.append(
        {
            "step": "families in reach", "before": len(drawn), "after": len(inside),
            "why": f"mean pass rate of the base model in [{config.family_low:g}, {config.family_high:g}]",
        }
    )  # fmt: skip
    hard = [p for p in inside if rates[p.id] <= config.too_easy]
    funnel.append(
        {
            "step": "difficulty", "before": len(inside), "after": len(hard),
            "why": f"right in more than {config.too_easy:.0%} of {config.samples} samples: nothing to learn",
        }
    )  # fmt: skip
    lengths = {p.id: len(p.solution or "") for p in hard}
    chosen = select.select(hard, rates, lengths, config.count, context.seed, config.within)  # pyright: ignore[reportArgumentType]
    counts = Counter(p.domain for p in chosen)
    funnel.append(
        {
            "step": "diversity", "before": len(hard), "after": len(chosen),
            "why": "uniform over families: " + ", ".join(f"{d} {n}" for d, n in sorted(counts.items())),
        }
    )  # fmt: skip
    if not chosen:
        raise UserError("curate: no problem is left after the filters; the report's funnel says where they went")
    rows = [{**asdict(p), "pass_rate": rates[p.id]} for p in chosen]
    yield Artifact("problems", write_lines(context.run_dir / "problems.jsonl", rows), {"count": len(rows)})
    rest = [{**asdict(p), "pass_rate": rates.get(p.id)} for p in honest if p.domain in reachable]
    yield Artifact("pool", write_lines(context.folder / "pool.jsonl", rest), {"count": len(rest)})
    yield Artifact("funnel", write_json(context.run_dir / "funnel.json", funnel))
    yield Artifact("samples-of-base", journal.path, {"count": len(journal.rows())})


def _families_in_band(config: Config, problems: list[Problem], rates: Mapping[str, float]) -> set[str]:
    by: dict[str, list[float]] = {}
    for p in problems:
        by.setdefault(p.domain, []).append(rates[p.id])
    return {d for d, r in by.items() if config.family_low <= sum(r) / len(r) <= config.family_high}


def _measure(config: Config, context: Context, drawn: list[Problem], pool: list[Problem], journal: Journal) -> Events:
    """Sample the base model on every candidate, a chunk at a time; done chunks are read back on resume."""
    from shoestring.stages.prompts import choose_shots, few_shot

    size = 96
    mixed = random.Random(context.seed).sample(drawn, len(drawn))  # a budget stop leaves every family measured alike
    chunks = [mixed[i : i + size // config.samples or 1] for i in range(0, len(mixed), size // config.samples or 1)]
    if all(f"{i}" in journal.chunks for i in range(len(chunks))):
        return
    from shoestring import rewards
    from shoestring.generate.engine import Engine, Request
    from shoestring.generate.sampling import request_seed
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages.workbench import open_model, sample, trace_row

    chosen = {p.id for p in drawn}
    shots = choose_shots([p for p in pool if p.id not in chosen and p.solution], config.shots, context.seed)
    started = context.clock()
    tokenizer = Tokenizer(context.base)
    model, _ = open_model(context)
    engine = Engine(model, size)
    pace = context.first(60.0)
    for i, chunk in enumerate(chunks):
        if f"{i}" in journal.chunks:
            continue
        if (yield context.intent(i, pace.upper(), "pass rates")) == "stop":
            return
        began = started if i == 0 else context.clock()
        requests, problems = [], []
        for p in chunk:
            prompt = tokenizer.chat(few_shot(p, shots.get(p.domain, [])))
            for k in range(config.samples):
                seed = request_seed(context.seed, int(p.id, 16), k)
                stop = frozenset([tokenizer.end])
                requests.append(Request(prompt, config.max_new, config.temperature, seed, stop))
                problems.append(p)
        traces = sample(engine, requests, problems, tokenizer, "base")
        lenient = rewards.get("lenient")
        journal.append(
            f"{i}", [trace_row(t, lenient=lenient.grade(t.text, p)) for t, p in zip(traces, problems, strict=True)]
        )
        seconds = context.clock() - began
        pace.add(seconds)
        tokens = sum(len(t.tokens) for t in traces)
        yield StepReport(
            context.stage, i + 1, len(chunks), seconds, tokens, tokens,
            reward=sum(t.score or 0.0 for t in traces) / len(traces),
        )  # fmt: skip
