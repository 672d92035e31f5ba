"""The user's own book: prices that go before what ships. TOML (docs/prices.md), or a CSV in the columns of our
instances.csv. Complaints are one line with file and line."""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import date as day
from decimal import Decimal
from pathlib import Path
from typing import Any

from shoestring.cost.price import Price
from shoestring.cost.rows import EgressRow, MachineRow, Row, StorageRow, TeacherRow, ThisRow, told_apart
from shoestring.records import UserError
from shoestring.tables import located, nearest, positions

MOST = Decimal(1_000_000)  # dollars for one of anything priced here; above it a unit was mistaken
TEXT, COUNT, AMOUNT, MONEY = "text", "a whole number", "a number", "dollars"

COMMON = {"source": TEXT, "date": TEXT, "note": TEXT}
TABLES: dict[str, dict[str, str]] = {
    "machine": {
        "provider": TEXT, "instance": TEXT, "region": TEXT, "zone": TEXT, "gpu": TEXT, "gpus": COUNT,
        "gpu_memory_gib": AMOUNT, "vcpus": COUNT, "memory_gib": AMOUNT,
        "on_demand_usd_per_hour": MONEY, "spot_usd_per_hour": MONEY, **COMMON,
    },
    "teacher": {
        "catalogue": TEXT, "model": TEXT, "provider": TEXT, "in_usd_per_mtok": MONEY, "out_usd_per_mtok": MONEY,
        "cached_usd_per_mtok": MONEY, "in_batch_usd_per_mtok": MONEY, "out_batch_usd_per_mtok": MONEY,
        "hours": TEXT, "since": TEXT, **COMMON,
    },
    "storage": {"provider": TEXT, "kind": TEXT, "usd_per_gb_month": MONEY, "at_least_gb": COUNT, **COMMON},
    "egress": {"provider": TEXT, "tiers": "a list of tables", **COMMON},
    "this": {"usd_per_hour": MONEY, **COMMON},
    "book": {"source": TEXT, "date": TEXT},
}  # fmt: skip
NEEDED = {
    "machine": ("provider", "instance"),
    "teacher": ("model",),
    "storage": ("provider", "kind", "usd_per_gb_month"),
    "egress": ("provider", "tiers"),
    "this": ("usd_per_hour",),
}
TOKENS = {k.removesuffix("_usd_per_mtok").replace("_", "-"): k for k in TABLES["teacher"] if k.endswith("_usd_per_mtok")}
_DAY = r"\d{4}-\d\d-\d\d"
_DATE = re.compile(rf"{_DAY}(\.\.{_DAY})?")
_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\dZ-([01]\d|2[0-3]):[0-5]\dZ")

Wrong = Callable[[str, tuple[str | int, ...]], UserError]


def read(path: Path) -> dict[str, Price]:
    """The prices of a user's book, by sku. Raises UserError: file, line, what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as e:
        raise UserError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
    return read_csv(text, path) if path.suffix.lower() == ".csv" else read_toml(text, path)


def read_toml(text: str, path: Path) -> dict[str, Price]:
    try:
        data = tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, ValueError, ArithmeticError, RecursionError) as e:
        at = re.search(r" \(at line (\d+), column \d+\)", str(e))
        said = str(e).replace(at[0], "") if at else str(e)
        raise located(f"{path}:{at[1] if at else 1}", f"this is not TOML: {said}") from None

    def wrong(message: str, where: tuple[str | int, ...]) -> UserError:
        places = positions(text)  # a walk over the text, only for a complaint
        line = next((places[where[:n]] for n in range(len(where), 0, -1) if where[:n] in places), 1)
        return located(f"{path}:{line}", message)

    for name, value in data.items():
        if name not in TABLES:
            raise wrong(f'unknown table "{name}"{nearest(name, TABLES)} (known: {", ".join(TABLES)})', (name,))
        single = name in ("this", "book")
        if not isinstance(value, dict if single else list) or not (single or all(isinstance(t, dict) for t in value)):
            raise wrong(f"{name} must be written as {f'[{name}]' if single else f'[[{name}]]'}", (name,))
    book = data.get("book", {})
    _check(book, "book", ("book",), wrong)
    rows: list[tuple[Row, tuple[str | int, ...]]] = []
    for name in ("this", "machine", "teacher", "storage", "egress"):
        tables = data.get(name, [])
        for n, table in enumerate(tables if isinstance(tables, list) else [tables]):
            where = (name, n) if isinstance(tables, list) else (name,)
            _check(table, name, where, wrong)
            rows.append((_row(name, table, {**book, **table}, where, path, wrong), where))
    return _prices(rows, wrong)


def read_csv(text: str, path: Path) -> dict[str, Price]:
    from shoestring.cost.sources.instances import machine

    def wrong(message: str, where: tuple[str | int, ...]) -> UserError:
        return located(f"{path}:{where[-1]}", message)

    rows: list[tuple[Row, tuple[str | int, ...]]] = []
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        for line in reader:
            rows.append((_named(machine(line), path), (reader.line_num,)))
    except KeyError as e:
        raise wrong(f"the column {e} is missing; a book in CSV has the columns of instances.csv", (1,)) from None
    except (ValueError, ArithmeticError, TypeError, AttributeError, csv.Error) as e:
        raise wrong(f"this row cannot be read: {e}", (reader.line_num,)) from None
    return _prices(rows, wrong)


def _prices(rows: Iterable[tuple[Row, tuple[str | int, ...]]], wrong: Wrong) -> dict[str, Price]:
    """Sku → price. Two rows for one sku are a complaint: the user has to say which one holds."""
    rows = list(rows)
    places = {id(row): where for row, where in rows}
    teachers = [row for row, _ in rows if isinstance(row, TeacherRow)]
    seen: dict[tuple[str, ...], tuple[str | int, ...]] = {}
    for row in teachers:
        where = places[id(row)]
        if (key := (row.catalogue, row.model, row.hours, row.since)) in seen:
            raise wrong(f'a second price for the teacher "{row.catalogue}/{row.model}"; keep one', where)
        seen[key] = where
    made: dict[str, Price] = {}
    for row, where in rows:
        if isinstance(row, TeacherRow):
            continue
        for sku, price in row.prices():
            if sku in made:
                raise wrong(f'a second price for "{sku}"; keep one', where)
            made[sku] = price
    for row in told_apart(teachers, day.today().isoformat()):
        made |= dict(row.prices())
    return made


def _check(table: Mapping[str, Any], name: str, where: tuple[str | int, ...], wrong: Wrong) -> None:
    known = TABLES[name]
    for key, value in table.items():
        if key not in known:
            raise wrong(f'unknown key "{key}" in {name}{nearest(key, known)}', (*where, key))
        want = known[key]
        if want == TEXT and not isinstance(value, (str, day)):
            raise wrong(f"{key} must be text, not {value!r}", (*where, key))
        if want == COUNT and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**9):
            raise wrong(f"{key} must be a whole number at or above zero, not {value!r}", (*where, key))
        if want in (AMOUNT, MONEY):
            number = _number(value)
            if number is None or number > MOST or number < 0:
                raise wrong(f"{key} must be a number up to {MOST:,}, not {value!r}", (*where, key))
            if want == MONEY and not number:
                raise wrong(f"{key} = 0 is not a price: leave an unknown one out, and name credits as credits", (*where, key))
    for key in NEEDED.get(name, ()):
        if table.get(key) in (None, "", []):
            raise wrong(f"{name} needs {key}", where)


def _row(
    name: str, table: Mapping[str, Any], filled: Mapping[str, Any], where: tuple[str | int, ...], path: Path, wrong: Wrong
) -> Row:
    """`filled` is the table with the book's source and date where it has none of its own."""
    source, date, note = (str(filled.get(k, "")) for k in ("source", "date", "note"))
    if not source.strip():
        raise wrong(f'{name} has no source: say where the price is from, here or in [book], such as source = "our contract"',
                    where)  # fmt: skip
    if not is_date(date):
        key = (*where, "date") if "date" in table else ("book", "date") if date else where
        raise wrong(f'date must be a day or an interval such as "2026-11-01" or "2026-10-01..2026-11-01", not {date!r}', key)
    since, hours = str(table.get("since", "")), table.get("hours", "")
    if since and not is_date(since):
        raise wrong(f"since must be a day, not {since!r}", (*where, "since"))
    if hours and not is_hours(hours):
        raise wrong(f'hours must be written in UTC such as "00:30Z-16:30Z", not {hours!r}', (*where, "hours"))
    get = table.get
    if name == "machine":
        row = MachineRow(
            provider=get("provider", ""), instance=get("instance", ""), source=source, date=date, region=get("region", ""),
            zone=get("zone", ""), gpu=get("gpu", ""), gpus=get("gpus", 0), gpu_memory_gib=float(get("gpu_memory_gib", 0)),
            vcpus=get("vcpus", 0), memory_gib=float(get("memory_gib", 0)), note=note,
            ondemand=_number(get("on_demand_usd_per_hour")), spot=_number(get("spot_usd_per_hour")),
        )  # fmt: skip
        if bool(row.gpu) != bool(row.gpus):
            raise wrong("give gpu and gpus together, or neither for a machine without", where)
        if row.ondemand is None and row.spot is None:
            raise wrong("machine needs on_demand_usd_per_hour or spot_usd_per_hour", where)
    elif name == "teacher":
        usd = {kind: _number(get(key)) for kind, key in TOKENS.items()}
        if not any(usd.values()):
            raise wrong(f"teacher needs a price: {', '.join(TOKENS.values())}", where)
        row = TeacherRow(get("catalogue", "own"), get("model", ""), source, date, usd, get("provider", ""), hours, since,
                         note=note)  # fmt: skip
    elif name == "storage":
        row = StorageRow(get("provider", ""), get("kind", ""), _dollars(table, "usd_per_gb_month"), source, date,
                         get("at_least_gb", 0), note)  # fmt: skip
    elif name == "egress":
        row = EgressRow(get("provider", ""), _tiers(table["tiers"], (*where, "tiers"), wrong), source, date, note)
    else:
        row = ThisRow(_dollars(table, "usd_per_hour"), source, date, note)
    return _named(row, path)


def _dollars(table: Mapping[str, Any], key: str) -> Decimal:
    number = _number(table[key])
    assert number is not None, key  # _check saw it
    return number


def _tiers(tiers: Any, where: tuple[str | int, ...], wrong: Wrong) -> list[tuple[int | None, Decimal | None]]:
    example = "tiers = [{ up_to_gb = 10240, usd_per_gb = 0.09 }, { usd_per_gb = 0.05 }]"
    if not isinstance(tiers, list) or not all(isinstance(t, dict) and set(t) <= {"up_to_gb", "usd_per_gb"} for t in tiers):
        raise wrong(f"egress tiers are written as {example}", where)
    made, last = [], 0
    for n, tier in enumerate(tiers):
        end, usd = tier.get("up_to_gb"), _number(tier.get("usd_per_gb"))
        if usd is None or not 0 < usd <= MOST:
            raise wrong("each tier needs usd_per_gb above zero", where)
        is_last = n == len(tiers) - 1
        if (end is None) != is_last and not (is_last and isinstance(end, int)):
            raise wrong(f"every tier but the last needs up_to_gb, as in {example}", where)
        if end is not None and (not isinstance(end, int) or isinstance(end, bool) or end <= last):
            raise wrong("up_to_gb must be whole numbers that grow from tier to tier", where)
        made.append((end, usd))
        last = end or last
    return made


def _named(row: Any, path: Path) -> Any:
    return replace(row, source=f"own book {path.name}: {row.source}")


def is_date(text: str) -> bool:
    """A day or an interval of two, in order, that the calendar has."""
    if not _DATE.fullmatch(text):
        return False
    try:
        days = [day.fromisoformat(d) for d in text.split("..")]
    except ValueError:
        return False
    return days == sorted(days)


def is_hours(text: str) -> bool:
    """Such as "00:30Z-16:30Z"."""
    return bool(_HOURS.fullmatch(text))


def _number(value: Any) -> Decimal | None:
    """A TOML number, or a number written as text, exactly; None for anything else and for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal, str)):
        return None
    try:
        number = Decimal(value)
    except ArithmeticError:
        return None
    return number if number.is_finite() and number.adjusted() > -30 else None
