"""Problems from a file (JSON lines, JSON, CSV, parquet) or a hub id. Every mistake is reported with file and line."""

from __future__ import annotations

import difflib
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shoestring import answers
from shoestring.data.sources import _files, _hub
from shoestring.records import Problem, UserError

PREFIX = ""  # no prefix: a path

FIELDS = ("prompt", "answer", "solution", "domain", "source", "licence", "split", "grader", "grader_args")
REQUIRED = ("prompt", "answer")


EXTRAS = ("pass_rate", "tokens", "cluster", "rates")  # what a row may carry of earlier measurements
Made = tuple[Problem, dict[str, Any]] | str  # a problem and its extras, or what is wrong with the row


def parsed(rest: str) -> tuple[str, dict[str, str]]:
    """"path?prompt=question" as the path and the columns' names. UserError for a query that is none."""
    path, mark, query = rest.partition("?")
    if mark and Path(rest).exists():
        path, query = rest, ""
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise UserError(f"{rest}: what follows '?' must read field=column&field=column") from None
    return path, dict(pairs)


def stream(rest: str, split: str | None = None) -> Iterator[Made]:
    """The rows of a file or hub id one by one, each as a problem with its EXTRAS, or as what is wrong with it.

    Memory stays that of a row (a JSON array is the exception). Raises UserError where nothing can be read at all.
    """
    path, columns = parsed(rest)
    if _hub.is_id(path):
        found = _hub.rows(path, columns.pop("split", split or "train"), columns.pop("config", ""))
    else:
        found = _files.rows(Path(path))
    for name in columns:
        if name not in (*FIELDS, *EXTRAS):
            raise UserError(f"{path}: unknown field {name!r}{_nearest(name, (*FIELDS, *EXTRAS))}")
    return _stream(found, path, columns, split)


def _stream(found: Iterable[_files.Row], path: str, columns: Mapping[str, str], split: str | None) -> Iterator[Made]:
    fields = {k: v for k, v in columns.items() if k in FIELDS}
    for row in found:
        if row.data is None:
            yield f"{row.where}: {row.wrong}"
            continue
        try:
            problem, row_split = problem_of(row.where, row.data, fields, {}, path)
            extras = {name: row.data.get(columns.get(name, name)) for name in EXTRAS}
            measured = {name: _measured(row.where, name, value) for name, value in extras.items() if value not in (None, "")}
        except UserError as error:
            yield str(error)
            continue
        if split is None or row_split in (None, split):
            yield problem, measured


def _measured(where: str, name: str, value: Any) -> Any:
    """A number where one is meant: CSV knows only text."""
    if name not in ("pass_rate", "tokens"):
        return value
    try:
        made = float(value)
        if not (0 <= made <= 1 if name == "pass_rate" else 0 <= made < 2**53):
            raise ValueError
    except (TypeError, ValueError):
        most = "from 0 to 1" if name == "pass_rate" else "of tokens"
        raise UserError(f"{where}: the {name} must be a number {most}, not {value!r}") from None
    return made if name == "pass_rate" else int(made)


def load(rest: str, split: str | None = None, check: Callable[[Problem], None] | None = None) -> list[Problem]:
    """The problems of "path" or "path?prompt=question&answer=target" (our field = the file's column).

    A hub id ("org/name") stands for a path; there `config` chooses the data set's configuration and `split` its split.
    """
    path, columns = parsed(rest)
    if _hub.is_id(path):
        found = _hub.rows(path, columns.pop("split", split or "train"), columns.pop("config", ""))
        return _collect(found, path, columns, split, check)
    return load_file(Path(path), columns, split, check)


def load_file(
    path: Path,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    check: Callable[[Problem], None] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """Read a file; blank lines are skipped.

    columns: our field -> the file's column, for those that differ; a mapped column may be nested ("meta.answer").
    split: keep rows whose "split" says so; rows without one belong to every split. defaults: fields that rows lack.
    Raises UserError with "file:line" for bad JSON, a missing column (the nearest is named), a wrong type, and an answer
    that cannot be graded; and for a file that cannot be read or holds no problem.
    """
    return _collect(_files.rows(path), str(path), columns, split, check, defaults)


def _collect(
    found: Iterable[_files.Row],
    path: str,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    check: Callable[[Problem], None] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[Problem]:
    columns, defaults = dict(columns or {}), dict(defaults or {})
    for name in columns:
        if name not in FIELDS:
            raise UserError(f"{path}: unknown field {name!r}{_nearest(name, FIELDS)}")
    problems: list[Problem] = []
    rows = 0
    for line in found:
        if line.data is None:
            raise UserError(f"{line.where}: {line.wrong}")
        rows += 1
        problem, row_split = problem_of(line.where, line.data, columns, defaults, path)
        if split is not None and row_split not in (None, split):
            continue
        try:
            (check or _gradable)(problem)
        except ValueError as error:
            raise UserError(f"{line.where}: the answer cannot be graded: {error}") from None
        problems.append(problem)
    if not problems:
        said = f"none of its {rows} problems is in the split {split!r}" if rows else "it holds no problem"
        raise UserError(f"{path}: {said}")
    return problems


def _gradable(problem: Problem) -> None:
    answers.equal(None, problem.answer)


def _nearest(name: str, known: Any) -> str:
    known = [str(k) for k in known]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(known[:12])}" if known else ""


def _value(
    where: str, row: Mapping[str, Any], name: str, columns: Mapping[str, str], defaults: Mapping[str, Any]
) -> Any:
    column = columns.get(name, name)
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            break
        value = value[part]
    else:
        return value
    if name in defaults:
        return defaults[name]
    if name in REQUIRED or name in columns:
        hint = _nearest(column, row)
        how = "" if name in columns else f" (or name the right one: ?{name}=COLUMN)"
        raise UserError(f"{where}: no column {column!r} for the {name}{hint}{how}")
    return None


def _text(where: str, name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{where}: the {name} must be text or a number, not {type(value).__name__}")
    return str(value)


def problem_of(
    where: str, row: Mapping[str, Any], columns: Mapping[str, str], defaults: Mapping[str, Any], source: str
) -> tuple[Problem, str | None]:
    """A row as a problem, and the split that it states. Raises UserError with `where` for whatever is wrong with it."""
    got = {name: _value(where, row, name, columns, defaults) for name in FIELDS}
    texts = {name: _text(where, name, got[name]) for name in FIELDS[:-1] if got[name] is not None}
    arguments = got["grader_args"] or {}
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: grader_args must be an object, not {type(arguments).__name__}")
    for name in REQUIRED:
        if name not in texts:
            raise UserError(f"{where}: the {name} is null")
    prompt, answer = texts["prompt"].strip(), texts["answer"].strip()
    if not prompt:
        raise UserError(f"{where}: the prompt is empty")
    row_split = texts.get("split")
    if row_split not in (None, "train", "test"):
        raise UserError(f"{where}: the split must be 'train' or 'test', not {row_split!r}")
    problem = Problem.make(
        prompt,
        answer,
        solution=texts.get("solution"),
        grader=texts.get("grader", "exact"),
        grader_args=arguments,
        source=texts.get("source", source),
        licence=texts.get("licence", ""),
        domain=texts.get("domain", ""),
    )
    return problem, row_split
