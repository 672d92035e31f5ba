"""More problems in other words: a server rewrites each question and answers what it wrote; kept is what it answers as before.

The gold answer stays as it is. A paraphrase is kept if it has the same numbers and every one of `checks` answers to it is
right by the problem's own grader, so one that changed the task goes, and so does one that the server cannot solve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shoestring.estimate.lengths import tokens as about
from shoestring.estimate.rates import added
from shoestring.records import Artifact, Problem, Quantity, StepReport, UserError, content_hash
from shoestring.stages import _distill_teacher, _served
from shoestring.stages.context import Answer, Context, Event, Events, Facts, Forecast, read_lines, write_json, write_lines
from shoestring.stages.prompts import from_row, plain, to_row
from shoestring.stages.sizes import of_sources

if TYPE_CHECKING:
    from shoestring.generate.teacher import Reply

FREE_SECONDS = 1.0  # reading and grading; only the forecast reads these
KEPT = 0.5  # expected share of paraphrases that are kept: nobody knows before the server is asked


@dataclass(frozen=True)
class Config:
    """sources: problems to rewrite; without any, those of the stage before. split: of rows that state one.

    teacher: the server, { url, model, key_env, price }. checks: answers to each paraphrase, all of which must be right.
    max_new: tokens of a reply, thought included; temperature: of the rewriting and of the answers. limit: the first
    problems only (0: all). concurrency: requests in flight.
    """

    sources: list[str] = field(default_factory=list)
    split: Literal["train", "test"] = "train"
    teacher: dict[str, Any] = field(default_factory=dict)
    checks: int = 2
    max_new: int = 1024
    temperature: float = 0.7
    limit: int = 0
    concurrency: int = 16

    def __post_init__(self) -> None:
        self.server()
        if self.checks < 1:
            raise ValueError(f"checks = {self.checks}: a paraphrase is answered at least once")
        if self.max_new < 1 or self.concurrency < 1 or self.limit < 0:
            raise ValueError("max_new and concurrency must be at least 1, limit at least 0 (all)")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature = {self.temperature:g} must be from 0 to 2")

    def server(self) -> _served.Served:
        """ValueError names `teacher`."""
        return _served.parse("teacher", self.teacher, ())


def check(config: Config, base: str) -> None:
    """UserError, before anything is spent, for a server that cannot be asked. `base` is asked for nothing."""
    _served.check(config.server())


def reads(config: Config, trained: bool) -> list[tuple[str, str]]:
    return [(s, config.split) for s in config.sources]


def forecast(config: Config, facts: Facts) -> Forecast:
    from shoestring.data import augment
    from shoestring.stages.workbench import load_problems

    count = len(load_problems(config.sources, config.split, [])) if config.sources else facts.problems
    count = min(count, config.limit or count)
    sizes = (of_sources(tuple(config.sources), config.split) if config.sources else None) or facts.sizes
    more = about(augment.REWRITE)
    asked = [
        _distill_teacher.forecast(
            config.server().table, replace(facts, sizes=replace(sizes, prompt=sizes.prompt + extra)), count * n,
            config.max_new, config.concurrency,
        )
        for n, extra in ((1, more), (config.checks, 0.0))
    ]  # fmt: skip
    free = Quantity(0.3 * FREE_SECONDS, FREE_SECONDS, 4 * FREE_SECONDS, "literature")
    requests = count * (1 + config.checks)
    made = facts.forecast(
        added(free, *(a.seconds for a in asked)), tokens=round(sum(a.tokens for a in asked)),
        problems=count + round(KEPT * count), sizes=sizes, essential=True,
        notes=(f"at most {requests} requests; {asked[0].note}",),
    )  # fmt: skip
    usages = tuple(u for a in asked for u in a.usages)
    return replace(made, usages=(*made.usages, *usages), amounts=_distill_teacher.AMOUNTS, counted="literature")


def _given(config: Config, inputs: Mapping[str, Path], stage: str) -> list[Problem]:
    from shoestring.stages.workbench import load_problems, need

    if config.sources:
        found = load_problems(config.sources, config.split)
    else:
        found = [from_row(r) for r in read_lines(need(inputs, "problems", stage, "curate"))]
    return found[: config.limit or None]


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring.data import augment

    began = context.clock()
    server, left_out = config.server(), Counter[str]()
    given = _given(config, inputs, context.stage)
    yield StepReport(f"{context.stage}.reading", 1, 1, context.clock() - began)
    total = len(given) * (1 + config.checks)
    asked = [[{"role": "user", "content": augment.REWRITE.format(prompt=p.prompt)}] for p in given]
    said, stopped = yield from _ask(config, context, given, asked, 1, "rewritten", 0, total)
    texts = [r.text if r is not None and r.reason == "stop" else None for r in said]
    began = context.clock()
    if stopped:
        left_out["not asked: stopped"] = sum(r is None for r in said)
        kept = [i for i, r in enumerate(said) if r is not None]
        new = augment.drafts([given[i] for i in kept], [texts[i] for i in kept], left_out)
        right: list[list[bool]] = [[] for _ in new]
    else:
        new = augment.drafts(given, texts, left_out)
        whom = [p for p in new for _ in range(config.checks)]
        answered, stopped = yield from _ask(
            config, context, new, [plain(p) for p in new], config.checks, "answers", len(given), total
        )
        began = context.clock()
        right = _right(whom, answered, config.checks)
    made = augment.agreed(new, right, left_out)
    meta = {
        "given": len(given), "made": len(made), "left_out": dict(left_out.most_common()), "teacher": server.model,
        "stopped": stopped,
    }  # fmt: skip
    write_json(context.folder / "told.json", meta)
    if not made and not stopped:
        why = ", ".join(f"{n} {w}" for w, n in left_out.most_common())
        raise UserError(f"{context.stage}: not one paraphrase is kept ({why})")
    yield Artifact("paraphrases", write_lines(context.run_dir / "paraphrases.jsonl", map(to_row, made)), meta)
    every = write_lines(context.folder / "problems.jsonl", map(to_row, [*given, *made]))
    yield Artifact("problems", every, {"count": len(given) + len(made)})
    yield StepReport(f"{context.stage}.choice", 1, 1, context.clock() - began, extra=meta)


def _ask(
    config: Config, context: Context, problems: Sequence[Problem], messages: Sequence[list[dict[str, str]]], samples: int,
    name: str, done: int, total: int,
) -> Generator[Event, Answer | None, tuple[list[Reply | None], bool]]:  # fmt: skip
    """A reply a message and sample, in order, None where it was not asked; whether a stop ended it."""
    from shoestring.generate.teacher import Question
    from shoestring.stages._distill_ask import seed_of

    questions = [
        Question(
            p.id, tuple(m), k, config.max_new, config.temperature, seed_of(context.seed, p.id + name, k, content_hash)
        )
        for p, m in zip(problems, messages, strict=True)
        for k in range(samples)
    ]  # fmt: skip
    made, till = yield from _served.ask(config.server(), context, questions, name, config.concurrency, done, total)
    yield StepReport(f"{context.stage}.{name}", 1, 1, 0.0, extra=_served.told(config.server(), till))
    return [made.replies.get(i) for i in range(len(questions))], made.stopped


def _right(whom: Sequence[Problem], said: Sequence[Reply | None], checks: int) -> list[list[bool]]:
    """The verdicts of each draft's answers; none where one of them was not asked or came to nothing. One that was cut off is
    not right."""
    from shoestring import rewards

    whole = [i for i, r in enumerate(said) if r is not None and r.reason == "stop"]
    replies = {i: r for i, r in enumerate(said) if r is not None and r.reason != "error"}
    verdicts = rewards.score_all([replies[i].text for i in whole], [whom[i] for i in whole])
    scores = {i: v.score == 1.0 for i, v in zip(whole, verdicts, strict=True)}
    rows = [range(at, at + checks) for at in range(0, len(whom), checks)]
    return [[scores.get(i, False) for i in row] if all(i in replies for i in row) else [] for row in rows]
