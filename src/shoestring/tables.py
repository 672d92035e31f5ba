"""TOML tables as typed values: conversion by a dataclass's hints, the line of every key, and complaints of one line."""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import tomlkit
from tomlkit.exceptions import ParseError

from shoestring.records import UserError


def text_of(path: str | Path, what: str) -> str:
    """The text of a file that a user wrote; what: "the recipe", for the complaint. Raises UserError, of one line."""
    try:
        raw = Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot read {what}: {(e.strerror or str(e)).lower()}") from None
    except ValueError:  # a NUL byte in the name
        raise UserError(f"{str(path)!r} is not a file name") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 (byte 0x{raw[e.start]:02x})") from None


def parse(text: str, origin: str | Path) -> dict[str, Any]:
    """The tables of a TOML text, as plain values. Raises UserError with the file, the line and what is wrong there."""
    try:
        return tomlkit.parse(text).unwrap()
    except ParseError as e:
        said = re.sub(r" at line \d+ col \d+$", "", str(e))
        raise UserError(f"{origin}:{e.line}:{e.col}: not TOML: {one_line(said)}") from None
    except Exception as e:
        said = "nested too deeply" if isinstance(e, RecursionError) else one_line(str(e))
        raise UserError(f"{origin}:1: not TOML: {said or type(e).__name__}") from None


def config_keys(config_type: type) -> list[str]:
    return [f.name for f in fields(config_type) if f.init]


def convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint` says, or ValueError("must be …, not …")."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        raise ValueError(f"must be one of {', '.join(map(str, args))}, not {value!r}{nearest(str(value), map(str, args))}")
    if origin in (Union, types.UnionType):
        wants: list[str] = []
        for arm in (a for a in args if a is not type(None)):
            try:
                return convert(value, arm)
            except ValueError as e:
                wants.append(str(e))
        raise ValueError(wants[0])
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) < 1e300 or isinstance(value, float) and math.isinf(value):
            return float(value)
        raise ValueError(f"must be a number, not {value!r}")  # nan, or too large to mean anything
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if (hint in (dict, Mapping) or origin in (dict, Mapping)) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if isinstance(value, dict):
            return {k: convert(v, args[1]) for k, v in value.items()} if len(args) == 2 else value
        raise ValueError(f"must be a table, not {value!r}")
    kind = origin or hint
    if kind in (list, tuple, Sequence):
        if not isinstance(value, list):
            raise ValueError(f"must be a list, not {value!r}")
        if kind is tuple and args and args[-1] is not Ellipsis:
            if len(value) != len(args):
                raise ValueError(f"must be a list of {len(args)} values, not {len(value)}")
            return tuple(convert(v, a) for v, a in zip(value, args, strict=True))
        made = [convert(v, args[0] if args else Any) for v in value]
        return made if kind is list else tuple(made)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    raise ValueError(f"must be {names.get(hint, str(hint))}, not {value!r}")


def positions(text: str) -> dict[tuple[str | int, ...], int]:
    """Line of every table header and key of a *valid* TOML text: ("stage", 0, "steps") → 12.

    tomlkit keeps the text but not the line numbers. The walk only has to tell statements apart, because the text
    has been parsed already; keys written with escapes fall back to the line of their table.
    """
    lines: dict[tuple[str | int, ...], int] = {}
    counts: dict[tuple[str | int, ...], int] = {}
    prefix: tuple[str | int, ...] = ()
    statement = re.compile(r"""(?:\s|\#[^\n]*(?:\n|\Z))*(\[\[?)?[ \t]*((?:"(?:\\.|[^"\\])*"|'[^']*'|[A-Za-z0-9_-]+|[. \t])+)""")
    value = re.compile(
        r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|\#[^\n]*|[\[{]|[\]}]|\n', re.DOTALL
    )
    at = 0
    while match := statement.match(text, at):
        bracket, raw = match.groups()
        parts = re.findall(r""""(?:\\.|[^"\\])*"|'[^']*'|[A-Za-z0-9_-]+""", raw)
        keys = tuple(p[1:-1] if p[0] in "\"'" else p for p in parts)
        line = text.count("\n", 0, match.start(2)) + 1
        path: tuple[str | int, ...] = () if bracket else prefix
        for n, key in enumerate(keys):
            path = (*path, key)
            if path in counts and not (bracket == "[[" and n == len(keys) - 1):
                path = (*path, counts[path] - 1)  # inside the last table of that array
        if bracket == "[[":
            lines.setdefault(path, line)
            counts[path] = counts.get(path, 0) + 1
            path = (*path, counts[path] - 1)
        for end in range(len(prefix) + 1, len(path) + 1):  # a dotted key also places the tables around it
            lines.setdefault(path[:end], line)
        lines.setdefault(path, line)
        if bracket:
            prefix = path
        at, depth = match.end(), 0
        for token in value.finditer(text, at):
            at = token.end()
            depth += (token[0] in "[{") - (token[0] in "]}")
            if token[0] == "\n" and depth <= 0 or token[0][0] == "#" and depth <= 0:
                break
        else:
            break
    return lines


def toml_value(raw: str) -> Any:
    try:
        made = tomlkit.parse(f"value = {raw}").unwrap()
    except Exception:
        return raw
    return made["value"] if set(made) == {"value"} else raw


def nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


def located(where: str, message: str) -> UserError:
    return UserError(one_line(f"{where}: {message}"))


def one_line(text: str) -> str:
    return " ".join(text.split())
