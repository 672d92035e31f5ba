"""Newer catalogues from disk, one module a format: `NAME`, `fits(path, head) -> bool` and `rows(path, ask) -> Taken`.

A new format is a new file. What a catalogue states with $0 or blank, or twice with different prices, is left out and
said; nothing is guessed without a note in the row.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

from shoestring.cost.rows import MachineRow, TeacherRow
from shoestring.records import UserError
from shoestring.tables import nearest


@dataclass(frozen=True)
class Ask:
    """What a file does not say itself: when its prices were read, from where, and (SkyPilot) whose they are."""

    date: str
    source: str
    provider: str = ""


@dataclass
class Taken:
    """The rows of a catalogue, and one line for everything that was left out or mended."""

    rows: list[MachineRow | TeacherRow] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def formats() -> dict[str, ModuleType]:
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    modules = [importlib.import_module(f"{__name__}.{f.stem}") for f in files]
    return {m.NAME: m for m in modules}


def take(path: Path, ask: Ask, format: str = "") -> Taken:
    """Read a catalogue; without `format` it is told by its first 4 KB. Raises UserError."""
    try:
        head = path.read_text(encoding="utf-8")[:4096]
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
    known = formats()
    if format and format not in known:
        raise UserError(f'unknown format "{format}"{nearest(format, known)} (known: {", ".join(known)})')
    fitting = [format] if format else [name for name, module in known.items() if module.fits(path, head)]
    if len(fitting) != 1:
        raise UserError(f"{path}: this is none of the known formats; say --format {'|'.join(known)}")
    taken = known[fitting[0]].rows(path, ask)
    if not taken.rows:
        raise UserError(f"{path}: no price was found in it as {fitting[0]}" + "".join(f"; {s}" for s in taken.said[:3]))
    return taken


def read_json(path: Path) -> Any:
    """JSON with its numbers as exact decimals. Raises UserError with the line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal, parse_int=Decimal)
    except json.JSONDecodeError as e:
        raise UserError(f"{path}:{e.lineno}: this is not JSON: {e.msg}") from None
    except (ValueError, ArithmeticError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read as JSON: {e}") from None


def amount(value: Any, times: int = 1) -> Decimal | None:
    """A catalogue's number as a known price, or None: blank, $0, below zero or no number at all is unknown."""
    try:
        number = Decimal(str(value).strip()) * times
    except ArithmeticError:
        return None
    return number.normalize() if number.is_finite() and Decimal("1e-12") < number < 10**6 else None


def one_price_each(rows: Iterable[Any], key: Callable[[Any], tuple[Any, ...]], taken: Taken) -> None:
    """Keep a row of each key; rows of one key with different prices are all left out, and said."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    for what, group in groups.items():
        if len({_money(r) for r in group}) > 1:
            prices = " and ".join(sorted(" / ".join(_money(r)) for r in group))
            taken.said.append(f"left out, more than one price: {'/'.join(map(str, what))}: {prices}")
        else:
            taken.rows.append(group[0])


def _money(row: Any) -> tuple[str, ...]:
    if isinstance(row, MachineRow):
        return tuple("" if usd is None else f"${usd:f}/h" for usd in (row.ondemand, row.spot))
    return tuple(f"{k} ${v:f}" for k, v in row.usd.items() if v is not None)
