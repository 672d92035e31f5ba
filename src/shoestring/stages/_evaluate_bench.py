"""Asking benchmarks: by our engine or at a server, graded a chunk at once, each chunk kept whole or not at all.

A killed stage reads back the chunks that were graded. The model of the run is asked first, then the one it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring import answers, rewards
from shoestring.records import Artifact, Problem, StepReport, UserError
from shoestring.stages import _evaluate_asks as asks
from shoestring.stages import _evaluate_results as results
from shoestring.stages import _evaluate_window
from shoestring.stages.context import Answer, Context, Event, Events, Journal, Overrun, Pace, write_json, write_lines
from shoestring.stages.prompts import plain
from shoestring.stages.teachers import folder_of

if TYPE_CHECKING:
    from shoestring.data.benchmarks import Loaded
    from shoestring.generate.teacher import Reply
    from shoestring.stages.evaluate import Config

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Said:
    """One answer before it is graded. thinking, waits: tokens of the thinking and ends that were taken back."""

    text: str
    tokens: int
    thinking: int = 0
    waits: int = 0
    reason: str = "stop"


def run(config: Config, context: Context) -> Generator[Event, Answer | None, bool]:
    """Everything that is asked, then what it comes to. Returns whether it was stopped before its end."""
    from shoestring.stages.workbench import gradable

    found = asks.loaded(config, gradable)
    journal = Journal(context.folder / "answers.jsonl")
    subjects = [(context.model_name, "")]
    if other := _evaluate_window.other(config):
        subjects.append((_other_name(other, context.model_name), other))
    everything = [(name, which, asks.chunks(config, found, name)) for name, which in subjects]
    _same_problems(context, journal, [c for _, _, chunks in everything for c in chunks])
    if _evaluate_window.known(config):
        for name, which in subjects:
            _evaluate_window.refuse(config, folder_of(which) if which else context.base, name, found)
    total = sum(len(chunks) for _, _, chunks in everything)
    pace, stopped = context.first(60.0), False
    for name, which, chunks in everything:
        waiting = [c for c in chunks if c.name not in journal.chunks]
        if not waiting or stopped:
            continue
        chats = [c for c in waiting if config.endpoint and c.setting.role != "thinking"]
        ids = [c for c in waiting if c not in chats]
        if ids:
            stopped = yield from _by_engine(config, context, ids, journal, name, which, total, pace)
        if chats and not stopped:
            stopped = yield from _at_endpoint(config, context, chats, journal, name)
    rows = journal.rows()
    if not rows:
        return stopped
    kept = context.run_dir / asks.FOLDER / f"{context.position:02d}-{context.stage}.jsonl"
    head = {"evaluated": context.stage, "models": [n for n, _ in subjects], "stopped": stopped, "usd": context.accrued()}
    write_lines(kept, [head | {"settings": [s.facts() for s in asks.settings(config)]}, *rows])
    yield from _told(config, context, rows, found, stopped)
    return stopped


def _same_problems(context: Context, journal: Journal, chunks: Sequence[asks.Chunk]) -> None:
    """UserError where the data has changed since a killed stage graded some of it: its answers are to other questions."""
    now = {c.name: {p.id for p in c.problems} for c in chunks}
    for name, rows in journal.chunks.items():
        if {r["problem_id"] for r in rows} != now.get(name):
            said = "the benchmark's data has changed since this evaluation began; evaluate it in another folder"
            raise UserError(f"stage {context.stage!r}: {name.split('/', 1)[1].rsplit('/', 2)[0]}: {said}")


def _other_name(model: str, own: str) -> str:
    name = Path(model).name or model
    return name if name != own else f"{name}, compared"


def _told(config: Config, context: Context, rows: Rows, found: Sequence[Loaded], stopped: bool) -> Events:
    """eval.json, and scaling.json where there were thinking budgets."""
    made = results.summary(config, context.stage, rows, found, stopped)
    if other := asks.compared_run(config.compare):
        made["comparisons"] += results.against_run(config, rows, other, stopped)
    write_json(context.run_dir / asks.FOLDER / f"{context.position:02d}-{context.stage}.json", made)
    yield Artifact("evaluation", write_json(context.run_dir / "eval.json", made))
    for i, curve in enumerate(results.curves(config, rows)):
        name = "scaling.json" if i == 0 else f"scaling-{i + 1}.json"
        yield Artifact("scaling" if i == 0 else f"scaling-{i + 1}", write_json(context.run_dir / name, curve))


def graded(chunk: asks.Chunk, subject: str, said: Sequence[Said], usd: float, counters: Mapping[str, int]) -> Rows:
    """The rows of a chunk; said: every sample of the first problem, then of the next. usd: dollars of the whole chunk, which
    its rows share by their tokens. counters: of the engine, kept once a chunk (in its first row)."""
    asked: list[tuple[Problem, int]] = [(p, k) for p in chunk.problems for k in range(chunk.setting.samples)]
    texts, problems = [s.text for s in said], [p for p, _ in asked]
    verdicts = rewards.score_all(texts, problems, lengths=[s.tokens for s in said])
    lenient, s, all_tokens = rewards.get("lenient"), chunk.setting, sum(x.tokens for x in said)
    rows: Rows = []
    for (problem, k), one, verdict in zip(asked, said, verdicts, strict=True):
        stated = answers.extract(one.text)
        rows.append(
            {
                "model": subject, "benchmark": chunk.bench.benchmark.name, "role": s.role, "budget": s.budget, "waits": s.waits,
                "problem_id": problem.id, "sample": k, "prompt": problem.prompt, "answer": problem.answer, "text": one.text,
                "strict": int(verdict.score == 1.0), "lenient": _lenient(lenient, one.text, problem), "why": verdict.reason,
                "said": answers.normalise(stated) or None if stated else None, "tokens": one.tokens,
                "thinking_tokens": one.thinking, "waits_used": one.waits, "reason": one.reason,
                "usd": usd * (one.tokens / all_tokens if all_tokens else 1 / len(said)),  # no count: what was paid is not lost
            }
        )  # fmt: skip
    if rows:
        rows[0] |= counters
    return rows


def _lenient(reward: rewards.Reward, text: str, problem: Problem) -> int:
    try:
        return int(reward.grade(text, problem) == 1.0)
    except ValueError:  # a gold that is nothing but marks once normalised
        return 0


def _by_engine(
    config: Config, context: Context, waiting: Sequence[asks.Chunk], journal: Journal, subject: str, which: str, total: int,
    pace: Pace,
) -> Generator[Event, Answer | None, bool]:  # fmt: skip
    """Chunk by chunk, in token ids; which: another model than the run's own, "" for that. Returns whether it was stopped.

    With an endpoint (whose thinking is forced from here, round by round) it takes the engine's place.
    """
    opened: Any = None
    for chunk in waiting:
        number = len(journal.chunks) + 1
        if (yield context.intent(number, pace.upper(), "evaluation")) == "stop":
            return True
        began = context.clock()
        try:
            opened = opened or _open(config, context, which)
            asked = context.clock()  # loading is no cost of the answers that happen to come first
            said, counters = _generate(config, context, chunk, *opened)
        except Overrun:  # the chunk is lost, what was graded is the score
            return True
        rows = graded(chunk, subject, said, context.usd(context.clock() - asked), counters)
        journal.append(chunk.name, rows)
        seconds = context.clock() - began
        pace.add(seconds)
        tokens = sum(s.tokens for s in said)
        yield StepReport(
            context.stage, number, total, seconds, tokens, tokens, reward=sum(r["strict"] for r in rows) / len(rows),
            extra={"benchmark": chunk.bench.benchmark.name, "model": subject, "setting": chunk.setting.family, **counters},
        )  # fmt: skip
    return False


def _open(config: Config, context: Context, which: str) -> tuple[Any, Any]:
    """(engine, tokenizer) of the run's model, or of another one on this machine; or (endpoint, tokenizer)."""
    from shoestring.models.tokenizer import Tokenizer

    if config.endpoint:
        from shoestring.generate.endpoint import Endpoint, Server

        tokenizer = Tokenizer(context.base)
        server = Server(config.endpoint, config.endpoint_model, config.endpoint_key_env, config.concurrency)
        return Endpoint(server), tokenizer
    from shoestring.generate.engine import Engine
    from shoestring.stages.workbench import open_model

    if not which:
        return Engine(open_model(context)[0], asks.SLOTS), Tokenizer(context.base)
    import torch

    from shoestring.models import device, folder

    path = folder_of(which)
    return Engine(folder.load(path, torch.bfloat16, device.choose()), asks.SLOTS), Tokenizer(path)


def _generate(
    config: Config, context: Context, chunk: asks.Chunk, engine: Any, tokenizer: Any
) -> tuple[list[Said], dict[str, int]]:
    """The samples of a chunk, and how many prompt tokens they had against how many rows of prompts were computed."""
    from shoestring.generate.engine import Request
    from shoestring.stages.workbench import clean

    s, stop = chunk.setting, tokenizer.ends
    thinking = None
    if s.role == "thinking":
        from shoestring.generate.thinking import thinking_of

        thinking = thinking_of(tokenizer, s.budget, s.waits, answer=s.answer)
    counted = getattr(engine, "counters", None)  # a server's are its own
    before = (counted.prompt_tokens, counted.prompt_rows) if counted else (0, 0)
    requests = [
        Request(
            tokenizer.chat(plain(p)), s.max_new, s.temperature, asks.seed_of(context.seed, p, s, k), stop, s.top_p,
            logprobs=False, thinking=thinking,
        )
        for p in chunk.problems
        for k in range(s.samples)
    ]  # fmt: skip
    done = engine.generate(requests)
    for r, d in zip(requests, done, strict=True):
        if d.reason == "error":
            raise UserError(f"stage {context.stage!r}: a prompt of {len(r.prompt)} tokens: {d.error}")
    counters = {}
    if counted:
        counters = {"prompt_tokens": counted.prompt_tokens - before[0], "prompt_rows": counted.prompt_rows - before[1]}
    said = [Said(clean(d.tokens, tokenizer), len(d.tokens), d.thinking, d.waits, d.reason) for d in done]
    return said, counters


def _at_endpoint(
    config: Config, context: Context, waiting: Sequence[asks.Chunk], journal: Journal, subject: str
) -> Generator[Event, Answer | None, bool]:
    """The same questions as chats at a server: every reply is cached and paid before it is graded."""
    from shoestring.generate.teacher import Question
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages._distill_ask import Till, asked
    from shoestring.stages._evaluate_paid import Paid

    table = asks.endpoint_table(config)
    assert table is not None
    till = Till(table.sku, context.stage, context.priced(f"{table.sku}/cached"))
    paid = Paid(context, till)
    make = _teachers(config, context, Tokenizer(context.base), till.put)
    many = sum(len(c.problems) * c.setting.samples for c in waiting)
    done = 0
    for chunk in waiting:
        s = chunk.setting
        paid.begin(chunk.name)
        questions = [
            Question(p.id, tuple(plain(p)), k, s.max_new, s.temperature, asks.seed_of(context.seed, p, s, k))
            for p in chunk.problems
            for k in range(s.samples)
        ]  # fmt: skip
        got = yield from paid.asked(asked(make(s), questions, paid.cache, till, context, done, many))
        done += len(got.replies)
        if got.stopped or len(got.replies) < len(questions):
            return True
        replies = [got.replies[i] for i in range(len(questions))]
        for reply in replies:
            if reply.reason == "error":
                raise UserError(f"stage {context.stage!r}: {config.endpoint}: {reply.error}")
        said = [_reply(r, s) for r in replies]
        journal.append(chunk.name, graded(chunk, subject, said, paid.usd(), {}))
    return False


def _reply(reply: Reply, setting: asks.Setting) -> Said:
    out, thinking = reply.usage.get("out", 0), reply.usage.get("thinking", 0)
    text = reply.content if reply.thinking.strip() else reply.text  # with nothing to join, as the engine's answer reads
    return Said(text, out, thinking, 0, reply.reason)


def _teachers(config: Config, context: Context, tokenizer: Any, spent: Callable[[Any], None]) -> Callable[[asks.Setting], Any]:
    """Setting → who is asked: the server, told the setting's own fields."""
    table = asks.endpoint_table(config)

    def make(setting: asks.Setting) -> Any:
        from shoestring.stages._distill_teacher import open_teacher

        teacher: Any = open_teacher(table, config.concurrency, context, tokenizer, spent)
        teacher.top_p = setting.top_p
        return teacher

    return make
