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

from shoestring.records import Artifact, Problem, StepReport, UserError, content_hash
from shoestring.stages.context import Context, Events, Facts, Forecast, write_lines

GIVES = ("auto", "traces", "problems", "pool")
READ_A_SECOND = {True: 500.0, False: 20000.0}  # rows, of the hub and of a file: only the forecast reads these


@dataclass(frozen=True)
class Config:
    """dataset: a file (JSON lines, JSON, CSV, parquet), a hub id, or a problem source ("bundled:lcm", "gym:gcd").

    split, config: of a hub id; format: see data.formats, "auto" goes by the columns; limit: the first rows only (0: all).
    turns: "every" assistant turn of a conversation carries loss, or the "last" one only. give: what is handed over,
    "traces" (conversations; of problems, their worked solutions), "problems" (for distill) or "pool" (for grpo); "auto"
    is traces for conversations and pool for problems.
    """

    dataset: str
    split: str = "train"
    config: str = ""
    format: str = "auto"
    limit: int = 0
    turns: str = "every"
    give: str = "auto"

    def __post_init__(self) -> None:
        from shoestring.data.formats import FORMATS

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

    stated = None if config.limit else sources.count(config.dataset, config.split, config.config)
    if stated is not None:  # of a large stream, what the hub says is enough for the plan
        return _forecast(facts, stated, "traces" if config.give == "auto" else config.give, True)
    rows = read(config)
    what = gives(config)
    return _forecast(facts, len(traces(config)) if what == "traces" else len(rows), what, False)


def _forecast(facts: Facts, n: int, what: str, remote: bool) -> Forecast:
    return Forecast(
        (facts.seconds(2.0 + n / READ_A_SECOND[remote]),), low=0.3, high=3.0, essential=True,
        traces=n if what == "traces" else None, problems=n if what == "problems" else None,
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
