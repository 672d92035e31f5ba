"""Score a model on unseen problems, on families it was not trained on, and on plain text; and on named benchmarks.

The base model is asked twice, plainly and after worked examples, and each answer is read twice (see `scoring`).
Chunks that were graded are read back on resume. Where the money ends in the middle, what was graded is the score.
Benchmarks (`benchmarks`: `_evaluate_bench`) may be sampled several times, given thinking budgets, asked at a server, and
compared with another model or run; docs/eval.md has the whole.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from shoestring.data import benchmarks
from shoestring.estimate.lengths import TURN, written
from shoestring.estimate.rates import added
from shoestring.records import Artifact, Problem, StepReport, UserError
from shoestring.stages import _evaluate_asks as asking
from shoestring.stages import _evaluate_results as results
from shoestring.stages import _evaluate_window, forecasts, scoring
from shoestring.stages.context import Context, Events, Facts, Forecast, Journal, Overrun, write_json, write_lines
from shoestring.stages.prompts import QUESTION, Ask, ask_tokens, check_ask, choose_shots, few_shot, plain
from shoestring.stages.sizes import drawn, of_sources

HELDOUT = 1500  # tokens of the plain text that ships


@dataclass(frozen=True)
class Config:
    """sources: unseen test problems, `per_family` each; untrained: families for the forgetting check.

    ask: what the user says, with {question} where the problem's text goes, or turns that end in it; worked examples are
    asked plainly.
    shots: worked examples for the base model's second asking (0: ask once); only an untrained model is asked twice.
    heldout: also measure the loss on the plain text that ships.

    benchmarks: names of data/benchmarks, .toml files of one's own, or problem sources; data: name → file or hub id.
    max_problems: so many of each at most (0: all). samples: answers a problem, at temperature and top_p (0: greedy); pass_at:
    the k of pass@k and majority@k (none: 1 and samples). thinking: budgets of thinking tokens, each with `waits` ends taken
    back and `answer` tokens for the answer; parallel: free samples beside them for majority votes and rejection sampling.
    endpoint: ask this server (endpoint_model, endpoint_key_env; endpoint_price: catalogue/model, or "machine" for a server on
    this machine), `concurrency` requests in flight. compare: another model, which is asked too, or a run's folder.
    """

    sources: list[str] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)
    per_family: int = 50
    untrained_per_family: int = 24
    ask: Ask = QUESTION
    shots: int = 4
    max_new: int = 64
    heldout: bool = True
    benchmarks: list[str] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    max_problems: int = 0
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    pass_at: list[int] = field(default_factory=list)
    thinking: list[int] = field(default_factory=list)
    waits: int = 0
    answer: int = 64
    parallel: int = 8
    endpoint: str = ""
    endpoint_model: str = ""
    endpoint_key_env: str = ""
    endpoint_price: str = ""
    concurrency: int = 16
    compare: str = ""

    def __post_init__(self) -> None:
        if not self.sources and not self.benchmarks:
            raise ValueError("sources is empty: name at least one, such as 'bundled:chain_sum', or benchmarks")
        check_ask(self.ask)
        if self.ask != QUESTION and not self.sources:
            raise ValueError("ask is for sources; a benchmark says itself how it is asked")
        if self.per_family < 1 or self.max_new < 1 or self.shots < 0:
            raise ValueError("per_family and max_new must be above zero, shots not below")
        if not self.benchmarks:
            given = [f.name for f in fields(self) if f.name in OF_BENCHMARKS and getattr(self, f.name) != _default(f)]
            if given:
                raise ValueError(f"{given[0]} is for benchmarks, and none is named")
            return
        self._check_sampling()
        self._check_thinking()
        if self.untrained and not self.sources:
            raise ValueError("untrained is read beside sources: name the families among the benchmarks")
        if unknown := sorted(set(self.data) - set(self.benchmarks)):
            raise ValueError(f"data names {unknown[0]!r}, which is not among the benchmarks")
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise ValueError("benchmarks names one twice")
        try:
            for name in self.benchmarks:
                if re.fullmatch(r"[\w-]+", name):  # a path is looked for when the plan is made
                    benchmarks.get(name)
        except UserError as e:
            raise ValueError(f"benchmarks: {e}") from None

    def _check_sampling(self) -> None:
        if self.samples < 1 or self.max_problems < 0 or self.concurrency < 1:
            raise ValueError("samples and concurrency must be at least 1, max_problems not below 0")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature = {self.temperature} must be 0 or more, top_p = {self.top_p} in (0, 1]")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"samples = {self.samples} at temperature 0 are all the same: set a temperature, such as 0.7")
        if self.top_p < 1 and not self.temperature and not (self.thinking and self.parallel):
            raise ValueError(f"top_p = {self.top_p} at temperature 0 changes nothing: set a temperature, such as 0.7")
        if any(not 1 <= k <= self.samples for k in self.pass_at):
            raise ValueError(f"pass_at = {self.pass_at}: each must be from 1 to samples = {self.samples}")

    def _check_thinking(self) -> None:
        if any(b < 1 for b in self.thinking) or sorted(set(self.thinking)) != self.thinking:
            raise ValueError(f"thinking = {self.thinking} must be budgets above zero, each larger than the one before")
        if self.waits < 0 or self.answer < 1 or self.parallel < 0:
            raise ValueError("waits and parallel must not be below 0, answer at least 1")
        given = [f.name for f in fields(self) if f.name in OF_THINKING and getattr(self, f.name) != _default(f)]
        if given and not self.thinking:
            raise ValueError(f"{given[0]} is for thinking under a budget: set thinking too")
        if not self.endpoint:
            if self.concurrency != type(self).concurrency:
                raise ValueError("concurrency is of requests to an endpoint: our engine decodes all at once")
            if self.endpoint_model or self.endpoint_key_env or self.endpoint_price:
                raise ValueError("endpoint_model, endpoint_key_env and endpoint_price belong to an endpoint")
            return
        table = asking.endpoint_table(self)
        if self.thinking and table is not None and table.sku:
            raise ValueError("thinking at an endpoint is forced in rounds that each pay for the prompt: only a server on this "
                             'machine (endpoint_price = "machine") is asked so')  # fmt: skip
        if self.compare and asking.compared_run(self.compare) is None:
            raise ValueError("compare with an endpoint takes a run's folder; a second model is evaluated by a run of its own")


OF_BENCHMARKS = {
    "data", "max_problems", "samples", "temperature", "top_p", "pass_at", "thinking", "waits", "answer", "parallel", "endpoint",
    "endpoint_model", "endpoint_key_env", "endpoint_price", "concurrency", "compare",
}  # fmt: skip

OF_THINKING = {"waits", "answer", "parallel"}


def _default(f: Field[Any]) -> Any:
    return f.default if f.default is not MISSING else f.default_factory()  # pyright: ignore[reportCallIssue]


def check(config: Config, base: str) -> None:
    """UserError, before anything is spent, for benchmarks that cannot be asked, or not within the window of `base`."""
    if config.benchmarks:
        from shoestring.stages.workbench import gradable

        asking.check(config)
        _evaluate_window.check(config, base, asking.loaded(config, gradable))


def _count(config: Config, trained: bool) -> tuple[int, int]:
    """(questions in all, families of the sources): a file may hold many families, or fewer problems than are asked for."""
    unseen, families = drawn(config.sources, "test", config.per_family)
    others, _ = drawn(config.untrained, "test", config.untrained_per_family)
    return unseen * (1 if trained or not config.shots else 2) + others, families


def forecast(config: Config, facts: Facts) -> Forecast:
    """Greedy answers, 96 at a time; worked examples are computed once a family and chunk, what neighbours share once."""
    if not config.benchmarks:
        return _of_sources(config, facts)
    made = asking.stage_forecast(config, facts)
    return asking.together(_of_sources(config, facts), made) if config.sources else made


def _of_sources(config: Config, facts: Facts) -> Forecast:
    found = of_sources(tuple(config.sources), "test")
    sizes = replace(found, answer=found.answer or facts.sizes.answer) if found else facts.sizes
    facts = replace(facts, sizes=sizes)
    n, families = _count(config, facts.trained)
    new = written(sizes, config.max_new, facts.trained)
    rows = n * (sizes.own + ask_tokens(config.ask))
    few = n // 2 if config.shots and not facts.trained else 0
    if few:
        chunks = -(-few // forecasts.ROWS)
        rows += chunks * families * config.shots * (sizes.body + sizes.trace() + TURN)
    seconds, flops, memory, fits = forecasts.answering(facts, n, new, rows, config.max_new)
    rates = facts.rates()
    parts = [seconds, rates.load()]
    if config.heldout:
        parts.append(rates.prefill(2 * HELDOUT, 512))  # once more for the logits of every token
    return facts.forecast(
        added(*parts), tokens=round(n * (sizes.prompt + new)), flops=flops, memory_bytes=sum(memory.values()), memory=memory,
        fits=fits, parts={"answers": flops}, essential=True, sizes=sizes if found and not facts.sizes.answer else None,
    )  # fmt: skip


def reads(config: Config, trained: bool) -> list[tuple[str, str]]:
    """(source, split) of everything that will be read, so that a wrong file is found before a dollar is spent."""
    shots = [(s, "train") for s in config.sources] if config.shots and not trained else []
    return [(s, "test") for s in (*config.sources, *config.untrained)] + shots


@dataclass(frozen=True)
class _Ask:
    problem: Problem
    benchmark: str
    prompting: str
    messages: list[dict[str, str]]


def questions(config: Config, seed: int, base: bool) -> list[_Ask]:
    """Everything that is asked, in a fixed order."""
    from shoestring.stages.workbench import load_problems, spread

    unseen = spread(load_problems(config.sources, "test"), config.per_family, 0)  # one unseen set for every seed
    asks = [_Ask(p, scoring.UNSEEN, "zero-shot", plain(p, config.ask)) for p in unseen]
    if base and config.shots:
        shots = choose_shots([p for p in load_problems(config.sources, "train") if p.solution], config.shots, seed)
        asks += [_Ask(p, scoring.UNSEEN, "few-shot", few_shot(p, shots.get(p.domain, []))) for p in unseen]
    if config.untrained:
        others = spread(load_problems(config.untrained, "test"), config.untrained_per_family, 0)
        asks += [_Ask(p, scoring.UNTRAINED, "zero-shot", plain(p, config.ask)) for p in others]
    return asks


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    if config.sources:
        yield from _unseen(config, context)
    if config.benchmarks:
        from shoestring.stages import _evaluate_bench

        yield from _evaluate_bench.run(config, context)
        folder = context.run_dir / "verdicts"
        if (context.run_dir / asking.FOLDER).is_dir():
            yield from _tables(context, scoring.read(folder) if folder.is_dir() else [])


def _tables(context: Context, measured: list[scoring.Measured]) -> Events:
    """scores.json, gains.json and samples.json, of everything that was measured so far."""
    rows, gains = results.scores(context.run_dir / asking.FOLDER)
    tables = {
        "scores": scoring.scores(measured) + rows, "gains": scoring.gains(measured) + gains,
        "samples": scoring.samples(measured),
    }  # fmt: skip
    for kind, made in tables.items():
        yield Artifact(kind, write_json(context.run_dir / f"{kind}.json", made))


def _unseen(config: Config, context: Context) -> Events:
    from shoestring import rewards
    from shoestring.generate.engine import Engine, Request
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages.workbench import clean, open_model

    started = context.clock()
    asks = questions(config, context.seed, context.model_name == "base")
    if not asks:
        raise UserError(f"stage {context.stage!r}: no test problems in {', '.join(config.sources)}")
    journal = Journal(context.folder / "verdicts.jsonl")
    size = 96
    # every chunk holds every family, so that a stop leaves a smaller sample and not fewer families; longer prompts last
    mixed = random.Random(0).sample(range(len(asks)), len(asks))
    order = sorted(mixed, key=lambda i: asks[i].prompting == "few-shot")
    chunks = [order[i : i + size] for i in range(0, len(order), size)]
    tokenizer = Tokenizer(context.base)
    for way, keys in (("zero-shot", "max_new"), ("few-shot", "shots or max_new")):
        chats = [a.messages for a in asks if a.prompting == way]
        _evaluate_window.refuse_sources(chats, tokenizer, context.base, config.max_new, context.stage, keys)
    model, _ = open_model(context)
    engine, pace = Engine(model, size), context.first(60.0)
    lenient = rewards.get("lenient")
    stopped = False
    for i, chunk in enumerate(chunks):
        if f"{i}" in journal.chunks:
            continue
        if (yield context.intent(i, pace.upper(), "evaluation")) == "stop":
            stopped = True
            break
        began = started if i == 0 else context.clock()
        stop = tokenizer.ends
        try:
            done = engine.generate(
                [Request(tokenizer.chat(asks[k].messages), config.max_new, stop=stop, logprobs=False) for k in chunk]
            )
        except Overrun:  # the chunk is lost, what was graded is the score
            stopped = True
            break
        if fault := next((answer.error for answer in done if answer.reason == "error"), ""):
            raise UserError(f"stage {context.stage!r}: {fault}")  # what was not asked is not wrong
        rows: list[dict[str, Any]] = []
        texts, asked = [clean(answer.tokens, tokenizer) for answer in done], [asks[k].problem for k in chunk]
        graded = rewards.score_all(texts, asked, lengths=[len(answer.tokens) for answer in done])
        for k, answer, text, verdict in zip(chunk, done, texts, graded, strict=True):
            ask = asks[k]
            rows.append(
                {
                    "at": k, "benchmark": ask.benchmark, "family": ask.problem.domain, "problem_id": ask.problem.id,
                    "prompting": ask.prompting, "prompt": ask.problem.prompt, "answer": ask.problem.answer,
                    "text": text, "tokens": len(answer.tokens),
                    "strict": int(verdict.score == 1.0),
                    "lenient": int(lenient.grade(text, ask.problem) == 1.0),
                }
            )  # fmt: skip
        journal.append(f"{i}", rows)
        seconds = context.clock() - began
        pace.add(seconds)
        tokens = sum(r["tokens"] for r in rows)
        right = sum(r["strict"] for r in rows) / len(rows)
        extra = {"verdicts": rewards.tally(graded)}
        yield StepReport(context.stage, i + 1, len(chunks), seconds, tokens, tokens, reward=right, extra=extra)
    if not any(r["benchmark"] == scoring.UNSEEN for r in journal.rows()):
        return
    head: dict[str, Any] = {"measured": context.model_name, "usd": context.accrued()}
    upper = min(20.0, context.planned_seconds)
    # without money for it the score stands without the loss
    if config.heldout and not stopped and (yield context.intent(len(chunks) + 1, upper, "loss on plain text")) != "stop":
        began = context.clock()
        with contextlib.suppress(Overrun):
            head["loss"], head["loss_tokens"] = plain_text_loss(model, tokenizer)
        if n := head.get("loss_tokens"):
            yield StepReport(context.stage, len(chunks) + 1, len(chunks) + 1, context.clock() - began, n, n)
    verdicts = context.run_dir / "verdicts"
    ordered = sorted(journal.rows(), key=lambda r: r["at"])
    place = context.position
    write_lines(verdicts / f"{place:02d}-{context.model_name}.jsonl", [head, *ordered])
    yield from _tables(context, scoring.read(verdicts))


def plain_text_loss(model: Any, tokenizer: Any, window: int = 512) -> tuple[float, int]:
    """Mean loss (nats a token) on the held-out text that ships, in windows, and the number of tokens predicted."""
    import torch

    from shoestring.data.sources.bundled import heldout_text
    from shoestring.records import Document
    from shoestring.train.losses import linear_logprobs

    ids, device = tokenizer.encode(heldout_text()), model.output_weight.device
    total, count = 0.0, 0
    with torch.no_grad():
        for at in range(0, len(ids) - 1, window):
            part = torch.tensor(ids[at : at + window + 1], device=device)
            hidden = model.hidden(part[:-1], torch.arange(len(part) - 1, device=device), [Document(0, len(part) - 1)])
            logprob, _ = linear_logprobs(hidden, model.output_weight, part[1:])
            total -= float(logprob.sum())
            count += len(part) - 1
    return total / count, count
