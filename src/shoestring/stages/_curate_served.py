"""What curate asks of servers: pass rates of models that are not here, and the domain of each problem by a label model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from shoestring.estimate.lengths import tokens as about
from shoestring.records import Problem, StepReport, content_hash
from shoestring.stages import _distill_teacher, _served
from shoestring.stages._curate_pool import Pool
from shoestring.stages._served import Served
from shoestring.stages.context import Answer, Context, Event, Facts, write_lines

LABEL_TOKENS = 256  # most of a label with the thought before it, where the table does not say


class Trying(Protocol):
    @property
    def samples(self) -> int: ...
    @property
    def max_new(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def concurrency(self) -> int: ...


def pass_rates(
    served: Served, config: Trying, context: Context, problems: Sequence[Problem], shots: Mapping[str, list[Problem]],
    number: int, at: int, total: int,
) -> Generator[Event, Answer | None, tuple[list[dict[str, Any]], bool]]:  # fmt: skip
    """(a graded row an answer, whether it was stopped). Asked as our engine is: after the same worked examples. number: of
    the model, which names its files; at, total: the stage's steps before, and all.

    What was cut off is graded as far as it came; a request without any reply gives no row.
    """
    from shoestring import rewards
    from shoestring.generate.teacher import Question
    from shoestring.stages._distill_ask import seed_of
    from shoestring.stages.prompts import few_shot

    most = served.max_new or config.max_new
    whom = [p for p in problems for _ in range(config.samples)]
    questions = [
        Question(
            p.id, tuple(few_shot(p, shots.get(p.domain, []))), k, most, config.temperature,
            seed_of(context.seed, p.id, k, content_hash),
        )
        for p in problems
        for k in range(config.samples)
    ]  # fmt: skip
    made, till = yield from _served.ask(served, context, questions, f"replies-{number}", config.concurrency, at, total)
    began = context.clock()
    got = [i for i in sorted(made.replies) if made.replies[i].reason != "error"]
    verdicts = rewards.score_all([made.replies[i].text for i in got], [whom[i] for i in got])
    lenient = rewards.get("lenient")
    rows = [
        {
            "problem_id": whom[i].id, "model": served.model, "score": v.score, "stop_reason": made.replies[i].reason,
            "text": made.replies[i].content, "usage": dict(made.replies[i].usage), "usage_basis": made.replies[i].basis,
            "lenient": lenient.grade(made.replies[i].text, whom[i]),
        }
        for i, v in zip(got, verdicts, strict=True)
    ]  # fmt: skip
    write_lines(context.folder / f"samples-{number}.jsonl", rows)
    missing = len(made.replies) - len(got)
    extra = {"verdicts": dict(rewards.tally(verdicts)), "unanswered": missing, **_served.told(served, till)}
    yield StepReport(f"{context.stage}.grading", number, number, context.clock() - began, extra=extra)
    return rows, made.stopped


def labelled(
    served: Served, context: Context, pool: Pool, concurrency: int, at: int
) -> Generator[Event, Answer | None, None]:
    """Every problem that is left gets the label model's domain. One whose label cannot be read is of `labels.OTHER`; one
    that a stop left unasked keeps its own. All of it is counted in the funnel."""
    from shoestring.data import domains, labels
    from shoestring.generate.teacher import Question

    whole = pool.whole(pool.problems)
    most = served.max_new or LABEL_TOKENS
    questions = [
        Question(p.id, ({"role": "user", "content": labels.asked(p.prompt, served.names)},), 0, most, 0.0, context.seed)
        for p in whole
    ]
    made, till = yield from _served.ask(served, context, questions, "labels", concurrency, at)
    began = context.clock()
    said, counts = [], Counter[str]()
    for i in range(len(whole)):
        reply = made.replies.get(i)
        label = labels.read_label(reply.text, served.names) if reply is not None and reply.reason != "error" else ""
        if reply is None:
            counts["not asked: stopped"] += 1
        elif not label:
            counts["without a reply" if reply.reason == "error" else "unknown label"] += 1
        said.append(label or ("" if reply is None else labels.OTHER))
    given = iter(said)
    problems = domains.by_model(pool.problems, lambda few: [next(given) for _ in few])
    why = f"{len({p.domain for p in problems})} domains by {served.model}"
    why += "".join(f"; {n} {what}" for what, n in sorted(counts.items()))
    pool.step("labels", problems, why)
    extra = {"labels": dict(counts), **_served.told(served, till)}
    yield StepReport(f"{context.stage}.labelling", 1, 1, context.clock() - began, extra=extra)


def forecast_rates(
    served: Served, facts: Facts, config: Trying, candidates: int, prefix: float
) -> _distill_teacher.Asked:  # fmt: skip
    """Every request carries the worked examples (prefix, in tokens)."""
    own = replace(facts, sizes=replace(facts.sizes, prompt=facts.sizes.prompt + prefix))
    return _said(served, own, candidates * config.samples, served.max_new or config.max_new, config.concurrency)


def forecast_labels(served: Served, facts: Facts, problems: int, concurrency: int) -> _distill_teacher.Asked:
    from shoestring.data import labels

    asked = about(labels.asked("", served.names))
    own = replace(facts, sizes=replace(facts.sizes, prompt=facts.sizes.prompt + asked))
    return _said(served, own, problems, served.max_new or LABEL_TOKENS, concurrency)


def _said(served: Served, facts: Facts, requests: int, most: int, concurrency: int) -> _distill_teacher.Asked:
    asked = _distill_teacher.forecast(served.table, facts, requests, most, concurrency)
    return replace(asked, note=f"{served.model}: {requests} requests; {asked.note.replace('the teacher', served.model)}")
