"""Rows of a data file, each with the place it stands at: JSON lines, JSON, CSV (each gzipped or not) and parquet."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shoestring.records import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row: `where` is "file:line" ("file:row 7" in parquet); `data` is None where `wrong` says what is wrong."""

    where: str
    data: dict[str, Any] | None
    wrong: str = ""


def kind(path: Path) -> str:
    """The suffix that decides how a file is read, without .gz; JSON lines where it says nothing."""
    name = path.name.lower().removesuffix(".gz")
    return next((s for s in SUFFIXES if name.endswith(s)), ".jsonl")


def rows(path: Path) -> Iterator[Row]:
    """The rows in order, blank lines skipped; a row that cannot be read is handed over with what is wrong.

    Raises UserError (one line) for a file that is not there, cannot be opened, or needs a package that is missing.
    """
    how = kind(path)
    if how == ".parquet":
        return _parquet(path)
    file = _opened(path)
    if how == ".csv":
        return _csv(path, file)
    if how == ".json" and _first(path, file) == b"[":
        with file:
            return _json(path, _guarded(path, file.read))
    return _lines(path, file)


def _opened(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked as they are read: lines are never held all at once."""
    try:
        raw = path.open("rb")
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
    except FileNotFoundError:
        raise _absent(path) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    file: Any = gzip.GzipFile(fileobj=raw, mode="rb") if packed else raw
    _guarded(path, lambda: file.peek(1))
    return file


def _guarded(path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: cannot be read: {reason}") from None


def _first(path: Path, file: Any) -> bytes:
    """The first byte that is no white space, or nothing if there are only 64 KiB of it; the file's place stays."""
    head = _guarded(path, lambda: file.read(65536))
    _guarded(path, lambda: bytes(file.seek(0)))
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]


def _absent(path: Path) -> UserError:
    try:
        siblings = [p.name for p in path.parent.iterdir()]
    except OSError:
        siblings = []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return UserError(f"{path}: no such file{f'; did you mean {near[0]}?' if near else ''}")


def _text(raw: bytes) -> str | int:
    """The text, or the number of the line that is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return raw.count(b"\n", 0, error.start) + 1


def _lines(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """Line by line, so that one line that is no text does not hide the others."""
    with file:
        number = 0
        while line := _guarded(path, file.readline):
            number += 1
            where = f"{path}:{number}"
            text = _text(line)
            if isinstance(text, int):
                yield Row(where, None, "is not UTF-8 text")
            elif text.strip():
                yield _parsed(where, text)


def _parsed(where: str, text: str) -> Row:
    try:
        made = json.loads(text)
    except (ValueError, RecursionError) as error:
        said = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        return Row(where, None, f"is not JSON: {said}")
    return _object(where, made)


def _object(where: str, made: Any) -> Row:
    if not isinstance(made, dict):
        return Row(where, None, f"must be a JSON object, not {type(made).__name__}")
    return Row(where, made)


def _json(path: Path, raw: bytes) -> Iterator[Row]:
    """The objects of one JSON array, each with the line on which it begins."""
    text = _text(raw)
    if isinstance(text, int):
        yield Row(f"{path}:{text}", None, "is not UTF-8 text")
        return
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text):
            yield Row(f"{path}:{line}", None, "the array has no end: a ] is missing")
            return
        if text[at] == "]":
            return
        try:
            made, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            said = f"{error.msg}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            yield Row(f"{path}:{line}", None, f"is not JSON: {said}; what follows was not read")
            return
        yield _object(f"{path}:{line}", made)


def _decoded(path: Path, file: IO[bytes]) -> Iterator[str]:
    """The lines as text. UnicodeDecodeError at the first that is none."""
    first = True
    with file:
        while line := _guarded(path, file.readline):
            yield line.decode("utf-8-sig" if first else "utf-8")
            first = False


def _csv(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """A header line, then records; every value is text. A record stands at the line on which it ends."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_decoded(path, file))
    header: list[str] | None = None
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError:
            yield Row(f"{path}:{reader.line_num + 1}", None, "is not UTF-8 text")
            return
        except csv.Error as error:
            yield Row(f"{path}:{reader.line_num}", None, f"is not CSV: {error}")
            continue
        if not record:
            continue
        where = f"{path}:{reader.line_num}"
        if header is None:
            header = record
        elif len(record) != len(header):
            yield Row(where, None, f"has {len(record)} fields where the header names {len(header)}: quote commas and breaks")
        else:
            yield Row(where, dict(zip(header, record, strict=True)))


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install 'shoestring[data]'") from None
    if not path.exists():
        raise _absent(path)
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())[:160]}") from None
    return _batches(path, file)


def _batches(path: Path, file: Any) -> Iterator[Row]:
    number = 0
    try:
        for batch in file.iter_batches(batch_size=1024):
            for data in batch.to_pylist():
                number += 1
                yield Row(f"{path}:row {number}", data)
    except Exception as error:  # a torn page raises one of many kinds; each means that the rest cannot be read
        yield Row(f"{path}:row {number + 1}", None, f"cannot be read: {' '.join(str(error).split())[:160]}")
