"""Benchmarks, one small TOML file each: how a file of problems is read, asked and graded. No problem's text ships.

    bench = get("gsm8k")                     # a shipped name, a path to a .toml, or any problem source ("gym:chain_sum", FILE)
    found = load(bench, "test.jsonl")        # its problems, and a warning where their number is not the expected one

A new benchmark is one more file in this folder (README.md there lists the keys).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

from shoestring import tables
from shoestring.data import sources
from shoestring.records import Problem, UserError, content_hash

SHIPPED = Path(__file__).parent
PROMPT = "{prompt}"
COLUMNS = ("prompt", "answer", "id", "solution", "options")  # keys that one name may stand for
Check = Callable[[Problem], None]


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark's file says.

    problems: how many there are (0: not known, as of generated ones). prompt, answer, id: columns, of which a row's first
    that is there counts; "Body+Question" joins two. after: what of the answer counts, the text behind the last such mark;
    boxed: the content of its last \\boxed{}. options: columns of wrong answers, for multiple choice: the letters are dealt by
    the problem's id. template: the question as it is put, {prompt} (and {options}) replaced. source, licence, hub, hub_config,
    split: where the data is to be had. spec: a problem source in place of all of this.
    """

    name: str
    title: str = ""
    problems: int = 0
    prompt: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    id: list[str] = field(default_factory=list)
    solution: list[str] = field(default_factory=list)
    after: str = ""
    boxed: bool = False
    options: list[str] = field(default_factory=list)
    grader: str = "exact"
    grader_args: dict[str, Any] = field(default_factory=dict)
    template: str = PROMPT
    source: str = ""
    licence: str = ""
    hub: str = ""
    hub_config: str = ""
    split: Literal["train", "test", "validation"] = "test"
    spec: str = ""

    def __post_init__(self) -> None:
        if not self.spec and not (self.prompt and self.answer):
            raise ValueError("prompt and answer must name at least one column each")
        if PROMPT not in self.template:
            raise ValueError(f"template must hold {PROMPT}, where the question goes")
        if bool(self.options) != ("{options}" in self.template):
            raise ValueError("options (columns of wrong answers) and {options} in the template go together: give both or none")
        if self.problems < 0:
            raise ValueError("problems must be 0 (not known) or more")


@dataclass(frozen=True)
class Loaded:
    """The problems as they are asked (the template is in `prompt`), every id once; count: rows of the data before
    `most` was applied; warning: one line, "" where the count is the expected one."""

    benchmark: Benchmark
    problems: tuple[Problem, ...]
    count: int
    warning: str = ""


def names() -> list[str]:
    return sorted(p.stem for p in SHIPPED.glob("*.toml"))


@lru_cache(maxsize=64)
def get(name: str) -> Benchmark:
    """A shipped benchmark by its name, one's own by the path of its .toml, or any problem source. UserError, one line."""
    if name.endswith(".toml"):
        return _read(Path(name).expanduser())
    if name in names():
        return _read(SHIPPED / f"{name}.toml")
    if sources.is_generated(name) or Path(name.partition("?")[0]).expanduser().exists():
        return Benchmark(name, title=name, spec=name)
    near = tables.nearest(name, names()) or f"; there are {', '.join(names())}"
    raise UserError(f"unknown benchmark {name!r}{near}; or give a .toml of your own, a file of problems, or gym:FAMILY")


def _read(path: Path) -> Benchmark:
    text = tables.text_of(path, "the benchmark")
    data = tables.parse(text, path)
    lines = tables.positions(text)
    known = tables.config_keys(Benchmark)
    hints = get_type_hints(Benchmark)
    values: dict[str, Any] = {"name": path.stem}
    for key, value in data.items():
        where = f"{path}:{lines.get((key,), 1)}"
        if key not in known or key == "spec":
            raise UserError(f'{where}: unknown key "{key}"{tables.nearest(key, known)}')
        try:
            values[key] = tables.convert([value] if isinstance(value, str) and key in COLUMNS else value, hints[key])
        except ValueError as e:
            raise UserError(f"{where}: {key} {e}") from None
    try:
        return Benchmark(**values)
    except ValueError as e:
        raise UserError(f"{path}: {e}") from None


def load(bench: Benchmark, data: str = "", check: Check | None = None, most: int = 0) -> Loaded:
    """The problems of a benchmark.

    data: a file (JSON lines, JSON, CSV, parquet, gzipped or not) or a hub id; without it the benchmark's own hub id.
    check: ValueError for an answer that cannot be graded; of a benchmark's own data such a problem is left out and the
    warning says so (a handful of OlympiadBench's), of any other source it is refused. most: so many of them at most, drawn
    without order but always the same ones (0: all). UserError, one line, for whatever cannot be read.
    """
    refused: list[str] = []
    problems = _from_source(bench, data, check) if bench.spec else _from_rows(bench, data, check, refused)
    count = len(problems) + len(refused)
    said = []
    if bench.problems and count != bench.problems:
        said.append(f"{bench.title or bench.name} has {bench.problems:,} problems, {data or bench.hub} holds {count:,}")
    if refused:
        said.append(f"{len(refused):,} of them are left out, the first is {refused[0]}")
    if most and most < len(problems):
        kept = sorted(random.Random(0).sample(range(len(problems)), most))
        problems = [problems[i] for i in kept]
    return Loaded(bench, tuple(problems), count, "; ".join(said))


def _from_source(bench: Benchmark, data: str, check: Check | None) -> list[Problem]:
    if data:
        raise UserError(f"benchmark {bench.name!r} names its problems itself; leave the data away")
    return _once(sources.load(bench.spec, "test", check))


def _from_rows(bench: Benchmark, data: str, check: Check | None, refused: list[str]) -> list[Problem]:
    """refused: takes what is wrong with each row whose answer cannot be graded."""
    if not data and not bench.hub:
        raise UserError(f"benchmark {bench.name!r}: give its data, a file ({bench.source or 'see its source'})")
    try:
        found = sources.rows(data or bench.hub, "test" if data else bench.split, "" if data else bench.hub_config)
    except UserError as e:
        if data:
            raise
        said = f"benchmark {bench.name!r}: {e}; or give --data FILE (from {bench.source})"
        raise UserError(said) from None
    out: list[Problem] = []
    for row in found:
        if row.data is None:
            raise UserError(f"{row.where}: {row.wrong}")
        problem = _problem(bench, row.where, row.data)
        try:
            if check is not None:
                check(problem)
        except ValueError as e:
            refused.append(f"{row.where}: the answer cannot be graded: {e}")
            continue
        out.append(problem)
    if not out:
        raise UserError(refused[0] if refused else f"{data or bench.hub}: it holds no problem")
    return _once(out)


def _problem(bench: Benchmark, where: str, row: Mapping[str, Any]) -> Problem:
    question = _column(bench, where, row, "prompt")
    gold = _answer(bench, _column(bench, where, row, "answer"))
    if not gold:
        raise UserError(f"{where}: the answer is empty")
    said = _first(row, bench.id)
    prompt = bench.template.replace(PROMPT, question)
    if bench.options:
        prompt, gold = _choices(bench, where, row, prompt, gold, said or question)
    solution = _first(row, bench.solution)
    made = Problem.make(
        prompt, gold, solution=solution, grader=bench.grader, grader_args=bench.grader_args, source=bench.source,
        licence=bench.licence, domain=bench.name,
    )  # fmt: skip
    return replace(made, id=content_hash(bench.name, said)) if said else made


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """The text of the first column that is there and not empty; lists by their members, joined by commas."""
    for column in columns:
        parts = [row.get(c) for c in column.split("+")]
        if all(p not in (None, "", []) for p in parts):
            return " ".join(_text(p) for p in parts).strip()
    return None


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return str(value)


def _column(bench: Benchmark, where: str, row: Mapping[str, Any], name: Literal["prompt", "answer"]) -> str:
    columns: list[str] = getattr(bench, name)
    found = _first(row, columns)
    if found is None:
        near = tables.nearest(columns[0], list(row)) or f"; there are {', '.join(map(str, list(row)[:12]))}"
        raise UserError(f"{where}: no {name} in {' or '.join(columns)}{near}")
    return found


def _answer(bench: Benchmark, text: str) -> str:
    if bench.after and bench.after in text:
        text = text.rpartition(bench.after)[2]
    if bench.boxed and "\\boxed" in text:
        from shoestring import answers

        text = answers.extract(re.sub(r"(?i)answer\s*:", "", text)) or text
    return text.strip()


def _choices(
    bench: Benchmark, where: str, row: Mapping[str, Any], prompt: str, gold: str, said: str
) -> tuple[str, str]:  # fmt: skip
    """The question with its lettered options, and the right letter. The order is the problem's own, the same in every run."""
    wrong = [_first(row, [c]) for c in bench.options]
    if any(w is None for w in wrong):
        raise UserError(f"{where}: no wrong answer in {bench.options[wrong.index(None)]}")
    dealt = [gold, *(str(w) for w in wrong)]
    order = random.Random(content_hash(bench.name, said)).sample(range(len(dealt)), len(dealt))
    lines = "\n".join(f"({chr(65 + k)}) {dealt[i]}" for k, i in enumerate(order))
    return prompt.replace("{options}", lines), chr(65 + order.index(0))


def _once(problems: list[Problem]) -> list[Problem]:
    """Every id once: a row that stands in the data twice is two problems."""
    seen: dict[str, int] = {}
    out = []
    for p in problems:
        seen[p.id] = seen.get(p.id, 0) + 1
        out.append(p if seen[p.id] == 1 else replace(p, id=f"{p.id}-{seen[p.id]}"))
    return out
