"""Traces worth learning: a teacher's verified answers (rejection sampling) and worked solutions of the source.

Without a `teacher` the model teaches itself: answers that the curate stage already sampled count as attempts and are not paid
for twice. A teacher is a server, another local model, recorded completions, or "self": the run's newest weights, asked anew
(R1's rejection sampling from the RL checkpoint, docs/r1.md). Only traces whose answer the grader accepts are kept.
docs/distil.md has the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shoestring.estimate.lengths import written
from shoestring.estimate.rates import added
from shoestring.records import Artifact, Problem, Quantity, StepReport, UserError, content_hash
from shoestring.stages import _distill_keep, _distill_teacher, forecasts
from shoestring.stages._distill_teacher import TeacherTable
from shoestring.stages.context import (
    Answer,
    Context,
    Event,
    Events,
    Facts,
    Forecast,
    Journal,
    read_lines,
    write_json,
    write_lines,
)
from shoestring.stages.prompts import from_row, plain

if TYPE_CHECKING:
    from shoestring.generate.teacher import Reply
    from shoestring.models.tokenizer import Tokenizer

VERIFIED, KNOWN = 0.25, 0.05  # expected verified traces a problem and kept one: alone, beside a worked solution
TRAINED = 0.6  # and a problem of a model that was trained on them
CHECKED = 2000.0  # problems a second whose solutions are graded and tokenised; only the forecast reads these
HINTED = (
    "{question}\n\nThe answer is {answer}. Explain step by step how one finds it, as if nobody had said it, "
    "and end with the line\nAnswer: {answer}"
)
BARE = 30  # characters that a rationale must have beside the answer


@dataclass(frozen=True)
class Config:
    """samples: attempts a problem, recorded ones included; keep: sampled traces kept a problem, by `prefer`: the shortest,
    the longest, or those least like one another.

    solutions: also keep the source's worked solution where it has one (checked by the grader like any trace).
    teacher: who is asked, { url, model, key_env, price } or { model } or { recorded, model }; the model itself without it, of
    which "self" counts no answer that was sampled before it was trained. pool: so many problems of the pool are asked beside
    those that curate chose, evenly over families; reinforcement learning may meet them again.
    rationalise: a problem without a right answer is asked once more with the answer given (STaR, Zelikman et al. 2022,
    section 3.3). self_filter: drop traces whose form is wrong (`_distill_keep`). concurrency: requests in flight at a server.
    """

    samples: int = 2
    keep: int = 1
    solutions: bool = True
    max_new: int = 48
    temperature: float = 1.0
    teacher: dict[str, Any] | str | None = None
    pool: int = 0
    prefer: Literal["short", "long", "diverse"] = "short"
    rationalise: bool = False
    self_filter: bool = False
    concurrency: int = 16

    def __post_init__(self) -> None:
        if self.samples < 0 or self.keep < 0 or self.pool < 0:
            raise ValueError("samples, keep and pool cannot be negative")
        if isinstance(self.teacher, str) and self.teacher != "self":
            raise ValueError(f'teacher = {self.teacher!r}: "self" is the run\'s own model, another is a table, {{ model = … }}')
        if self.teacher == "self" and not (self.samples and self.keep):
            raise ValueError('teacher = "self" with samples = 0 or keep = 0 asks nothing: set both')
        if self.concurrency < 1 or self.max_new < 1:
            raise ValueError(f"concurrency = {self.concurrency} and max_new = {self.max_new} must be at least 1")
        table = self.table()
        if self.concurrency != 16 and (table is None or table.kind != "url"):
            raise ValueError("concurrency is for a teacher at a url; nothing else has requests in flight")
        if self.rationalise and not self.keep:
            raise ValueError("rationalise with keep = 0 keeps nothing: leave one of them out")
        if not self.solutions and not (self.samples and self.keep):
            raise ValueError("keep = 0 or samples = 0 without solutions leaves no trace: set one")

    def table(self) -> TeacherTable | None:
        return None if self.teacher is None or isinstance(self.teacher, str) else _distill_teacher.parse(self.teacher)

    @property
    def anew(self) -> bool:
        """Whether the newest weights answer everything, whatever was sampled before."""
        return self.teacher == "self"


def check(config: Config, base: str) -> None:
    """UserError, before anything is spent, for a teacher that cannot be asked. `base` is not asked for anything."""
    table = config.table()
    if table is not None:
        _distill_teacher.check(table)


def forecast(config: Config, facts: Facts) -> Forecast:
    """Answers that curate recorded cost nothing more; what is missing of `samples` is sampled here."""
    sizes, rates = facts.sizes, facts.rates()
    facts = replace(facts, problems=facts.problems + config.pool)
    worked = config.solutions and (sizes.answer > 0 or not facts.sampled)
    share = (1.0 if worked else 0.0) + config.keep * (KNOWN if worked else VERIFIED)
    check = facts.problems / CHECKED + 0.1
    measured = rates.basis == "measured"
    parts = [Quantity((0.5 if measured else 0.25) * check, check, (4 if measured else 8) * check, rates.basis)]
    if config.anew and facts.trained:
        share = (1.0 if worked else 0.0) + config.keep * TRAINED * (KNOWN / VERIFIED if worked else 1.0)
    before = 0 if config.anew else facts.sampled
    missing = max(0, config.samples - before) if config.keep else 0
    again = facts.problems * (1 - VERIFIED) if config.rationalise else 0.0
    table = config.table()
    if table is not None:
        asked = _distill_teacher.forecast(
            table, facts, facts.problems * (config.samples if config.keep else 0) + again, config.max_new, config.concurrency
        )  # fmt: skip
        made = facts.forecast(
            added(*parts, asked.seconds), tokens=round(asked.tokens), flops=asked.flops, parts={"answers": asked.flops},
            traces=max(1, int(facts.problems * share)), essential=True, by_length=True, notes=(asked.note,),
        )  # fmt: skip
        return replace(made, usages=(*made.usages, *asked.usages), amounts=_distill_teacher.AMOUNTS, counted="literature")
    attempts, flops, memory, fits, new = round(facts.problems * missing + again), 0.0, {}, None, 0.0
    if attempts:
        new = written(sizes, config.max_new, facts.trained)
        seconds, flops, memory, fits = forecasts.answering(facts, attempts, new, facts.problems * sizes.own, config.max_new)
        parts += [seconds, rates.load()]
    return facts.forecast(
        added(*parts), tokens=round(attempts * (sizes.prompt + new)), flops=flops, parts={"answers": flops},
        memory_bytes=sum(memory.values()), memory=memory, fits=fits, traces=max(1, int(facts.problems * share)),
        essential=True, by_length=bool(attempts),
    )  # fmt: skip


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring import rewards
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages.workbench import need

    started = context.clock()
    tokenizer = Tokenizer(context.base)
    problems = [from_row(r) for r in read_lines(need(inputs, "problems", context.stage, "curate"))]
    problems += _more(config, inputs, context, {p.id for p in problems})
    table = config.table()
    attempts: dict[str, list[dict[str, Any]]] = {}
    if table is None and not config.anew and "samples-of-base" in inputs:
        for r in read_lines(inputs["samples-of-base"]):
            if "problem_id" in r:
                attempts.setdefault(r["problem_id"], []).append(r)
    short = [p for p in problems if len(attempts.get(p.id, [])) < config.samples]
    journal = Journal(context.folder / "attempts.jsonl")
    stopped, told, steps = False, {}, 1
    yield _took(context, "opening", 1, started)
    started = context.clock()
    if table is None and short and config.keep:
        yield from _attempt(config, context, short, attempts, journal, tokenizer)
        started = context.clock()  # what came before is in the reports of the attempts
        for r in journal.rows():
            attempts.setdefault(r["problem_id"], []).append(r)
        stopped = len(journal.chunks) < len(_chunks(short))
    if config.keep and (table is not None or config.rationalise) and not stopped:
        stopped, told, steps = yield from _teach(config, table, context, problems, attempts, tokenizer)
        started = context.clock()
    by_id = {p.id: p for p in problems}
    looked = config.self_filter or config.anew or table is not None or config.rationalise
    if looked:
        for id, rows_of in attempts.items():
            for r in rows_of:
                p = by_id.get(id)
                found = _distill_keep.fault(r["text"], p.prompt, p.grader == "code") if p else None
                r["fault"] = ("cut off" if r["stop_reason"] == "length" else found) or ""
    rows, verified, worked = [], 0, 0
    for p in problems:
        right = [r for r in attempts.get(p.id, []) if r["score"] == 1.0 and r["stop_reason"] == "stop"]
        if config.self_filter:
            right = [r for r in right if not r["fault"]]
        seen = set()
        for r in _distill_keep.chosen(right, config.keep, config.prefer):
            seen.add(r["text"].strip())
            rows.append(_row(p, r["text"].strip(), r))
            verified += 1
        if config.solutions and p.solution and p.solution not in seen:
            if rewards.get(p.grader).grade(p.solution, p) != 1.0:
                raise UserError(f"distill: the worked solution of problem {p.id} does not end in its answer")
            rows.append(_row(p, p.solution, _recorded(p, tokenizer)))
            worked += 1
    if stopped and not rows:
        return  # stopped before the first verified answer
    if not rows:
        raise UserError("distill: no verified trace; allow solutions or more samples")
    tried = sum(not r.get("unanswered") for p in problems for r in attempts.get(p.id, []))
    meta = {"count": len(rows), "sampled": verified, "worked": worked, "attempts": tried, **told}
    if looked:
        kept = [by_id[r["problem_id"]] for r in rows if r["stop_reason"] != "recorded"]
        texts = [r["messages"][-1]["content"] for r in rows if r["stop_reason"] != "recorded"]
        right_again = [v.score == 1.0 for v in rewards.score_all(texts, kept)]
        every = [r for p in problems for r in attempts.get(p.id, []) if not r.get("unanswered")]
        meta["invalid"] = _distill_keep.invalid(every, right_again)
    yield StepReport(context.stage, steps, steps, context.clock() - started, extra=meta)
    yield Artifact("traces", write_lines(context.run_dir / "traces" / f"{context.stage}.jsonl", rows), meta)
    if looked and config.keep:
        went = _distill_keep.funnel(
            [r for p in problems for r in attempts.get(p.id, [])], verified, config.keep, config.prefer, config.self_filter
        )
        yield Artifact("rejected", write_json(context.folder / "funnel.json", went), {"stage": context.stage})


def _took(context: Context, part: str, step: int, began: float) -> StepReport:
    """Seconds of work beside the asking, so that they count as useful ones."""
    return StepReport(f"{context.stage}.{part}", step, 2, context.clock() - began)


def _more(config: Config, inputs: Mapping[str, Path], context: Context, chosen: set[str]) -> list[Problem]:
    """Problems of the pool beside those that were chosen, evenly over families; a probe's stay unseen."""
    from shoestring.stages import probing
    from shoestring.stages.workbench import need, spread

    if not config.pool:
        return []
    probe = {p.id for p in probing.held_out(inputs, context.stage)} if context.worth is not None else set()
    rows = read_lines(need(inputs, "pool", context.stage, "curate"))
    left = [from_row(r) for r in rows if r["id"] not in chosen and r["id"] not in probe]
    each = -(-config.pool // max(1, len({p.domain for p in left})))
    while len(found := spread(left, each, context.seed)) < min(config.pool, len(left)):
        each *= 2  # some families are small: the others make up for it
    rank, had = [], Counter[str]()
    for p in found:
        rank.append(had[p.domain])
        had[p.domain] += 1
    kept = sorted(range(len(found)), key=lambda i: (rank[i], i))[: config.pool]  # what is too much, of all families alike
    return [found[i] for i in sorted(kept)]


def _teach(
    config: Config, table: TeacherTable | None, context: Context, problems: Sequence[Problem],
    attempts: dict[str, list[dict[str, Any]]], tokenizer: Tokenizer,
) -> Generator[Event, Answer | None, tuple[bool, dict[str, Any], int]]:  # fmt: skip
    """Ask, grade, and ask again with the answer given. (whether it was stopped, facts for the artifact, the next step)"""
    from shoestring.generate.teacher import Cache, Question
    from shoestring.stages import _distill_ask as asking

    began = context.clock()
    till = asking.Till(table.sku if table else "", context.stage, bool(table and context.priced(f"{table.sku}/cached")))
    teacher = _distill_teacher.open_teacher(table, config.concurrency, context, tokenizer, till.put)
    cache = Cache(context.folder / "replies.jsonl")
    same = table is None or _distill_teacher.same_tokens(teacher, tokenizer)
    reasons: Counter[str] = Counter()

    def question(p: Problem, sample: int, messages: Sequence[dict[str, str]]) -> Question:
        seed = asking.seed_of(context.seed, p.id, sample, content_hash)
        return Question(p.id, tuple(messages), sample, config.max_new, config.temperature, seed)

    def put(made: asking.Asking, whom: Sequence[Problem], rationalised: bool) -> None:
        order = sorted(made.replies)
        graded = _graded(tokenizer, [(whom[i], made.replies[i]) for i in order], same, rationalised, reasons)
        for i, row in zip(order, graded, strict=True):
            attempts.setdefault(whom[i].id, []).append(row)

    done, stopped = 0, False
    yield _took(context, "opening", 2, began)
    if table is not None and config.samples:
        whom = [p for p in problems for _ in range(config.samples)]
        asked = [question(p, k, plain(p)) for p in problems for k in range(config.samples)]
        made = yield from asking.asked(teacher, asked, cache, till, context)
        began = context.clock()
        put(made, whom, False)
        yield _took(context, "grading", 1, began)
        done, stopped = len(asked), made.stopped
    if config.rationalise and not stopped:
        whom = [p for p in problems if not any(r["score"] == 1.0 for r in attempts.get(p.id, []))]
        asked = [question(p, 0, [{"role": "user", "content": HINTED.format(question=p.prompt, answer=p.answer)}]) for p in whom]
        made = yield from asking.asked(teacher, asked, cache, till, context, done)
        began = context.clock()
        put(made, whom, True)
        yield _took(context, "grading", 2, began)
        done, stopped = done + len(asked), made.stopped
    return stopped, _distill_teacher.told(table, teacher, till, attempts) | {"verdicts": dict(reasons)}, done + 1


def _graded(
    tokenizer: Tokenizer, pairs: Sequence[tuple[Problem, Reply]], same: bool, rationalised: bool, reasons: Counter[str]
) -> list[dict[str, Any]]:
    """Replies as attempts: graded by each problem's own grader, on the answer alone; what was cut off is not right. The
    verdicts' reasons are counted into `reasons`."""
    from shoestring import rewards

    whole = [i for i, (_, r) in enumerate(pairs) if r.reason == "stop"]
    try:
        verdicts = rewards.score_all([pairs[i][1].text for i in whole], [pairs[i][0] for i in whole])
    except ValueError as e:
        raise UserError(f"distill: a problem cannot be graded: {e}") from None
    reasons.update(rewards.tally(verdicts))
    scores = dict(zip(whole, (v.score for v in verdicts), strict=True))
    out = []
    for i, (p, reply) in enumerate(pairs):
        text = reply.content
        score = scores.get(i, 0.0)
        if rationalised and (_distill_keep.tells_the_hint(text) or len(text) < len(p.answer) + BARE):
            score = 0.0  # no rationale, or one that leans on what the student will not have
        if same and reply.tokens:
            tokens, sampled, logprobs = list(reply.tokens), [True] * len(reply.tokens), [round(x, 6) for x in reply.logprobs]
        else:  # another tokenizer's text in our tokens: nobody sampled these
            tokens = [*tokenizer.encode(text), tokenizer.end]
            sampled, logprobs = [False] * len(tokens), [0.0] * len(tokens)
        out.append(
            {
                "problem_id": p.id, "model": reply.model, "score": score, "stop_reason": reply.reason, "text": text,
                "prompt_tokens": list(tokenizer.chat(plain(p))), "tokens": tokens, "sampled": sampled, "logprobs": logprobs,
                "unanswered": reply.reason == "error" and reply.basis == "recorded",
                "told": {
                    "thinking": reply.thinking, "usage": dict(reply.usage), "usage_basis": reply.basis,
                    "rationalised": rationalised, **{f"teacher_{k}": v for k, v in reply.facts.items()},
                },
            }
        )  # fmt: skip
    return out


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
        **trace.get("told", {}),
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
    started: float | None = context.clock()  # the first chunk's seconds have the opening in them
    model, _ = open_model(context)
    engine, pace = Engine(model, 96), context.first(60.0)
    for i, chunk in enumerate(chunks):
        if f"{i}" in journal.chunks:
            continue
        if (yield context.intent(i, pace.upper(), "sampling")) == "stop":
            return
        began, started = started if started is not None else context.clock(), None
        requests, problems = [], []
        for p in chunk:
            for k in range(len(attempts.get(p.id, [])), config.samples):
                seed = request_seed(context.seed, int(p.id, 16), k)
                stop = tokenizer.ends
                requests.append(Request(tokenizer.chat(plain(p)), config.max_new, config.temperature, seed, stop))
                problems.append(p)
        reasons: Counter[str] = Counter()
        traces = sample(engine, requests, problems, tokenizer, context.model_name, reasons=reasons)
        journal.append(f"{i}", [trace_row(t) for t in traces])
        seconds = context.clock() - began
        pace.add(seconds)
        tokens = sum(len(t.tokens) for t in traces)
        yield StepReport(context.stage, i + 1, len(chunks), seconds, tokens, tokens, extra={"verdicts": dict(reasons)})
