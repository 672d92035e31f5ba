"""A data set as what the next stage learns from: conversations for sft, problems for grpo and distill.

Rows are read and checked when the plan is made, so that a bad line is found before a dollar is spent. Conversations
are written by the model's own chat template; plain prompt and completion texts are not (TRL's convention: their ids
stand one after the other, and the end-of-sequence token closes the completion).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from shoestring.estimate.lengths import AFTER, BEFORE, Sizes
from shoestring.records import Artifact, Problem, Quantity, StepReport, UserError, content_hash
from shoestring.stages import sizes
from shoestring.stages.context import Context, Events, Facts, Forecast, write_lines

GIVES = ("auto", "traces", "problems", "pool")
SAMPLED = 200  # rows whose lengths are looked at for the plan
READ_A_SECOND = {True: 500.0, False: 20000.0}  # rows, of the hub and of a file: only the forecast reads these


@dataclass(frozen=True)
class Config:
    """dataset: a file (JSON lines, JSON, CSV, parquet), a hub id, or a problem source ("bundled:lcm", "gym:gcd").

    split, config: of a hub id; format: see data.formats, "auto" goes by the columns; limit: the first rows only (0: all).
    turns: "every" assistant turn of a conversation carries loss, or the "last" one only. give: what is handed over,
    "traces" (conversations; of problems, their worked solutions), "problems" (for distill) or "pool" (for grpo); "auto"
    is traces for conversations and pool for problems. expect_rows, expect_tokens: what a plan takes for a hub id that is not
    downloaded yet: its rows, and the tokens of a row, question and answer together (0: the hub is asked, and read);
    expect_longest: tokens of its longest row.
    """

    dataset: str
    split: str = "train"
    config: str = ""
    format: str = "auto"
    limit: int = 0
    turns: str = "every"
    give: str = "auto"
    expect_rows: int = 0
    expect_tokens: int = 0
    expect_longest: int = 0

    def __post_init__(self) -> None:
        from shoestring.data.formats import FORMATS

        for key in ("expect_rows", "expect_tokens", "expect_longest"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} = {getattr(self, key)} cannot be below zero; 0 leaves it to the data set")

        if not self.dataset.strip():
            raise ValueError("dataset is empty: name a file, a hub id or a source such as 'bundled:chain_sum'")
        if self.limit < 0:
            raise ValueError(f"limit = {self.limit} cannot be below zero; 0 reads all rows")
        for key, known in (("format", ("auto", *FORMATS)), ("turns", ("every", "last")), ("give", GIVES)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key} = {getattr(self, key)!r} must be one of {', '.join(known)}")


@lru_cache(maxsize=4)
def read(config: Config) -> tuple[Any, ...]:
    """The rows as `data.validate.Read`, in order. UserError at the first bad one, and where none is left."""
    from shoestring.data import sources, validate
    from shoestring.stages.workbench import gradable

    rows = sources.rows(config.dataset, config.split, config.config)
    out = []
    for made in validate.items(islice(rows, config.limit or None), config.dataset, config.format, gradable):
        if isinstance(made, validate.BadLine):
            raise UserError(f"{made.where}: {made.message}; `shoestring data validate {config.dataset}` lists every bad line")
        out.append(made)
    if not out:
        raise UserError(f"{config.dataset}: no rows in the split {config.split!r}")
    return tuple(out)


def gives(config: Config) -> str:
    """"traces", "problems" or "pool". UserError where the rows are no problems and problems are wanted."""
    problems = isinstance(read(config)[0].item, Problem)
    if not problems and config.give in ("problems", "pool"):
        raise UserError(
            f"{config.dataset}: its rows are conversations, and problems with an answer to check are needed; "
            "give rows with the columns prompt and answer"
        )
    return ("pool" if problems else "traces") if config.give == "auto" else config.give


def forecast(config: Config, facts: Facts) -> Forecast:
    from shoestring.data import sources

    if config.expect_rows and not sources.is_generated(config.dataset) and not Path(config.dataset).expanduser().exists():
        rows = min(config.expect_rows, config.limit or config.expect_rows)
        what = "traces" if config.give == "auto" else config.give
        return _forecast(config, facts, rows, what, True, _expected(config, facts))
    stated = None if config.limit else sources.count(config.dataset, config.split, config.config)
    if stated is not None:  # of a large stream, what the hub says is enough for the plan
        what = "traces" if config.give == "auto" else config.give
        return _forecast(config, facts, stated, what, True, _expected(config, facts))
    rows = read(config)
    what = gives(config)
    if what != "traces":
        problems = [r.item for r in rows[:SAMPLED] if isinstance(r.item, Problem)]
        found = sizes.of_pairs([(p.prompt, p.solution or "") for p in problems])
        return _forecast(config, facts, len(rows), what, False, found)
    made = traces(config)
    step = max(1, len(made) // SAMPLED)
    texts = [("\n".join(m["content"] for m in r["messages"][:-1]), r["text"]) for r in made[::step]]
    return _forecast(config, facts, len(made), what, False, sizes.of_pairs(texts))


def _expected(config: Config, facts: Facts) -> Sizes:
    """Sizes of rows that cannot be read yet: an eighth of a row's tokens, at most 250, is taken for the question."""
    if not config.expect_tokens:
        return facts.sizes
    question = min(250.0, config.expect_tokens / 8)
    return Sizes(
        prompt=BEFORE + question + AFTER, answer=max(1.0, config.expect_tokens - question), shared=0.0,
        longest=float(config.expect_longest), stated=True,
    )  # fmt: skip


def _forecast(config: Config, facts: Facts, n: int, what: str, remote: bool, found: Sizes | None) -> Forecast:
    seconds = 2.0 + n / READ_A_SECOND[remote]
    return facts.forecast(
        Quantity(0.3 * seconds, seconds, 3 * seconds, "literature"), by_length=False, essential=True, sizes=found,
        traces=n if what == "traces" else None, problems=n if what == "problems" else None,
        notes=(f"{n} rows as the recipe expects them",) if remote and config.expect_rows else (),
    )  # fmt: skip


def traces(config: Config) -> list[dict[str, Any]]:
    """A row for each answer that carries loss: `messages` ends in it. `plain` rows have no chat template."""
    out = []
    for made in read(config):
        if isinstance(made.item, Problem):
            if not made.item.solution:
                raise UserError(
                    f"{made.where}: a problem without a worked solution teaches sft nothing; add a solution, "
                    "or let a distill stage make the traces"
                )
            turns: tuple[dict[str, str], ...] = (
                {"role": "user", "content": made.item.prompt}, {"role": "assistant", "content": made.item.solution},
            )  # fmt: skip
            plain = False
        else:
            turns, plain = made.item.messages, made.item.plain
        answers = [i for i, m in enumerate(turns) if m["role"] == "assistant"]
        for i in answers if config.turns == "every" else answers[-1:]:
            messages = list(turns[: i + 1])
            out.append(
                {
                    "problem_id": content_hash(*(f"{m['role']}:{m['content']}" for m in messages)), "messages": messages,
                    "text": messages[-1]["content"], "plain": plain, "stop_reason": "recorded",
                    "source": made.source, "licence": made.licence,
                }
            )  # fmt: skip
    return out


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring.stages.prompts import to_row

    began = context.clock()
    what = gives(config)
    if what == "traces":
        rows = traces(config)
        if any(r["plain"] for r in rows):
            _tokenise(rows, context.base)
    else:
        rows = [to_row(r.item) | {"source": r.source, "licence": r.licence} for r in read(config)]
        rows = list({r["id"]: r for r in rows}.values())  # the same question twice is drawn twice as often
    meta = {"count": len(rows), "rows": len(read(config))}
    yield StepReport(context.stage, 1, 1, context.clock() - began, extra=meta)
    yield Artifact(what, write_lines(context.folder / f"{what}.jsonl", rows), meta)
    seen = Counter((r["source"], r["licence"]) for r in rows)
    listed = [{"source": s, "licence": li, "rows": n} for (s, li), n in sorted(seen.items())]
    yield Artifact("sources", write_lines(context.folder / "sources.jsonl", listed))


def _tokenise(rows: list[dict[str, Any]], base: Path) -> None:
    """Ids of a plain row's prompt, with what the tokenizer itself puts before a text (such as a beginning-of-text id)."""
    from shoestring.models.tokenizer import Tokenizer

    tokenizer = Tokenizer(base)
    for r in rows:
        if r["plain"]:
            ids = list(tokenizer.inner.encode(r["messages"][0]["content"]))
            r["prompt_tokens"] = ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.end else ids
