"""A teacher of recorded completions: JSON lines (.gz too), found by the question's id or text and by the model.

A row carries the question (`question`, `prompt` or `problem`), the completion (`response`, `completion` or `text`), and
where known `id`, `model`, `thinking` (or `reasoning_content`, `reasoning`), `usage`, `licence` and `source`. It answers
through the interface of a live teacher; its tokens are counted, with the basis "recorded", and cost nothing: whoever made
the recording has paid.
"""

from __future__ import annotations

import difflib
import gzip
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from shoestring.generate.endpoint_wire import split_thinking
from shoestring.generate.teacher import KINDS, Counter, Question, Reply, Spent, clean
from shoestring.records import UserError

ASKED = ("question", "prompt", "problem")
SAID = ("response", "completion", "text")
THOUGHT = ("thinking", "reasoning_content", "reasoning")
IDS = ("problem_id", "question_id", "id")
BUNDLED, SHIPPED = "bundled:", "_traces.jsonl.gz"


def shipped() -> dict[str, Path]:
    """The recordings that ship with the package, by name (data/recorded/README.md has licence and source)."""
    found = Path(str(resources.files("shoestring") / "data" / "recorded")).glob("*" + SHIPPED)
    return {p.name.removesuffix(".jsonl.gz"): p for p in sorted(found)}


def located(path: str | Path) -> Path:
    """The file of "bundled:NAME", wherever the package lies; any other path as it is. UserError for an unknown name."""
    text = str(path)
    if not text.startswith(BUNDLED):
        return Path(path).expanduser()
    name, known = text.removeprefix(BUNDLED), shipped()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {BUNDLED}{near[0]}?" if near else f"there are {', '.join(BUNDLED + k for k in known)}"
        raise UserError(f"no recorded teacher {name!r} ships with shoestring: {hint}")
    return known[name]


class RecordedTeacher:
    """The k-th sample of a question is the k-th of its recorded completions; temperature and seed change nothing.

    path: a file, or "bundled:NAME" of one that ships. model: only its rows ("" takes every model's, in the file's order). Rows
    without a completion are passed over.
    """

    width, retries = 512, 0

    def __init__(
        self, path: str | Path, model: str, count: Counter, spent: Callable[[Spent], None] = lambda s: None
    ) -> None:  # fmt: skip
        path = located(path)
        self.path, self.model, self.count, self.spent = path, model or f"recorded:{path.name}", count, spent
        self.by_id: dict[str, list[Mapping[str, Any]]] = {}
        self.by_text: dict[str, list[Mapping[str, Any]]] = {}
        self.rows, models = 0, set()
        for at, row in read(path):
            asked, said = _first(row, ASKED), _first(row, SAID)
            if asked is None or not isinstance(said, str):
                raise UserError(
                    f"{path}:{at}: a recorded completion needs a question ({', '.join(ASKED)}) and a text ({', '.join(SAID)})"
                )
            models.add(str(row.get("model", "")))
            if not said.strip() or (model and row.get("model") != model):
                continue
            self.rows += 1
            self.by_text.setdefault(plain(asked), []).append(row)
            for id in {str(row[k]) for k in IDS if row.get(k) not in (None, "")}:
                self.by_id.setdefault(id, []).append(row)
        if not self.rows:
            known = f"; its models: {', '.join(sorted(models))}" if model else ""
            raise UserError(f"{path}: no recorded completion{' of ' + model if model else ''}{known}")

    def known(self, question: Question) -> Sequence[Mapping[str, Any]]:
        return self.by_text.get(plain(question.text)) or self.by_id.get(question.id) or ()

    def once(self, questions: Sequence[Question]) -> Generator[tuple[int, Reply], None, None]:
        for index, question in enumerate(questions):
            rows = self.known(question)
            if question.sample < len(rows):
                yield index, self._reply(question, rows[question.sample])
            else:
                yield index, Reply("", reason="error", error="no recorded completion", model=self.model, basis="recorded")

    def _reply(self, question: Question, row: Mapping[str, Any]) -> Reply:
        said = clean(str(_first(row, SAID)))
        thinking = clean(str(_first(row, THOUGHT) or ""))
        if not thinking:
            thinking, said = split_thinking(said)
        usage = self._usage(question, row.get("usage"), said, thinking)
        spent = Spent(question.key(self.model), 0, usage, "recorded")
        self.spent(spent)
        cut = row.get("finish_reason") == "length" or row.get("stop_reason") == "length"
        facts = {k: str(row[k]) for k in ("licence", "license", "source") if row.get(k)}
        return Reply(
            said, thinking, "length" if cut else "stop", usage, (spent,), model=str(row.get("model") or self.model),
            basis="recorded", facts=facts,
        )  # fmt: skip

    def _usage(self, question: Question, usage: Any, text: str, thinking: str) -> dict[str, int]:
        """As the row states it (in our words or OpenAI's), else counted by our tokenizer."""
        told = usage if isinstance(usage, Mapping) else {}
        read = told.get("in", told.get("prompt_tokens"))
        wrote = told.get("out", told.get("completion_tokens"))
        thought = self.count(thinking) if thinking else 0
        if not isinstance(read, int) or not isinstance(wrote, int):
            read, wrote = self.count(question.text), thought + self.count(text)
        return dict(zip(KINDS, (read, 0, wrote, min(thought, wrote)), strict=True))


def plain(text: str) -> str:
    """The question's text as it is compared: without the accidents of white space."""
    return " ".join(text.split())


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((row[k] for k in keys if row.get(k) is not None), None)


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row). UserError names the file and the line that is wrong."""
    try:
        opener: Any = gzip.open if path.name.endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8") as f:
            for at, line in enumerate(f, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    raise UserError(f"{path}:{at}: not a line of JSON") from None
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{at}: a row must be a JSON object")
                yield at, row
    except (OSError, EOFError, UnicodeDecodeError) as e:
        said = getattr(e, "strerror", None) or str(e)
        raise UserError(f"{path}: cannot read the recorded completions: {said.lower()}") from None
