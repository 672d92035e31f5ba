"""Recipes: TOML in, checked tables out. Every complaint names the file, the line and the nearest right word.

A recipe has the top-level keys `name`, `budget`, `machine`, `base`, `seed`, `rate`, `report_to`, those of `terms.py`
(`credits`, `window`, `storage`, `egress`, `worth`) and one `[[stage]]` table a stage.
`use` and `name` belong to the recipe; every other key of a stage table belongs to that stage's `Config` dataclass,
which the caller passes in (`configs["grpo"]`), so this module knows no stage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tomlkit

from shoestring import terms
from shoestring.records import UserError, content_hash
from shoestring.tables import config_keys, convert, located, nearest, parse, positions, text_of, toml_value
from shoestring.terms import BadTerm, Terms, money_text
from shoestring.terms import parse_money as parse_money

TOP_KEYS = ("name", "budget", "machine", "base", "seed", "rate", "report_to", *terms.KEYS, "stage")
MACHINE_KEYS = ("provider", "sku", "count", "region", "market")
MARKETS = ("on-demand", "spot")
_CODE = re.compile(r"(.+\.py):[^\W\d]\w*")  # file.py:function
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class MachineSpec:
    """Where the run happens. `kind` is "this" (the fields below stay empty) or "cloud".

    `count` is a number of machines, not of GPUs; `region` may carry a zone, as in "us-east-1/az4".
    """

    kind: Literal["this", "cloud"] = "this"
    provider: str = ""
    sku: str = ""
    count: int = 1
    region: str = ""
    market: str = "on-demand"


@dataclass(frozen=True)
class StageTable:
    """One `[[stage]]`: the stage module `use`, its unique `name`, its checked `config`, its line in the file."""

    use: str
    name: str
    config: Any
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `budget` is in US dollars, `rate` in US dollars an hour of this machine; `report_to` names the
    trackers that get the curves besides the run's own files; `terms` are the other keys about money. `code` has (file, hash
    of its content) of each `file.py:function` that a stage names, as it was when the recipe was read."""

    name: str
    budget: Decimal
    machine: MachineSpec
    rate: Decimal | None
    base: str
    seed: int
    stages: tuple[StageTable, ...]
    path: str = field(default="", compare=False)
    report_to: tuple[str, ...] = ()
    terms: Terms = Terms()
    code: tuple[tuple[str, str], ...] = ()

    @property
    def hash(self) -> str:
        """Content hash of everything that decides the result. Name, budget, report_to, credits and window are left out, so
        that a run which stopped at its budget can be resumed with a bigger one, or at other hours."""
        tables = [{"use": s.use, "name": s.name, "config": _plain_config(s.config)} for s in self.stages]
        machine = {k: getattr(self.machine, k) for k in ("kind", *MACHINE_KEYS)}
        data = {"machine": machine, "rate": None if self.rate is None else money_text(self.rate),
                "base": self.base, "seed": self.seed, "stages": tables, **self.terms.deciding()}  # fmt: skip
        if self.code:
            data["code"] = self.code
        return content_hash(json.dumps(data, sort_keys=True, default=str))

    def to_toml(self) -> str:
        """The resolved recipe with every default written out; `loads` of it gives an equal recipe."""
        doc = tomlkit.document()
        doc["name"] = self.name
        doc["budget"] = f"{money_text(self.budget)} USD"
        if self.machine.kind == "this":
            doc["machine"] = "this"
        else:
            doc["machine"] = _toml({k: getattr(self.machine, k) for k in MACHINE_KEYS})
        if self.rate is not None:
            doc["rate"] = f"{money_text(self.rate)} USD/hour"
        doc["base"] = self.base
        doc["seed"] = self.seed
        if self.report_to:
            doc["report_to"] = list(self.report_to)
        for key, value in self.terms.plain().items():
            doc[key] = _toml(value)
        tables = tomlkit.aot()
        for stage in self.stages:
            table = tomlkit.table()
            table["use"] = stage.use
            table["name"] = stage.name
            for key, value in _plain_config(stage.config).items():
                if value is not None:  # TOML has no null: an absent key is the default, None
                    table[key] = _toml(value)
            tables.append(table)
        doc["stage"] = tables
        return tomlkit.dumps(doc)


def load(path: str | Path, configs: Mapping[str, type], overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Read a recipe file. `configs` maps a stage module's name to its Config dataclass; `overrides` are the values of
    `--set`; `seed`, where given, wins over both. Raises UserError (one line) for anything wrong with the input."""
    text = text_of(path, "the recipe")
    return loads(text, configs, overrides, seed, origin=str(path))


def loads(
    text: str, configs: Mapping[str, type], overrides: Sequence[str] = (), seed: int | None = None,
    origin: str = "recipe.toml", places: Mapping[tuple[str | int, ...], str] | None = None,
) -> Recipe:  # fmt: skip
    """Like `load`, from text; `origin` is the file name that complaints carry. places: what a complaint about a value
    names in place of file and line, such as {("stage", 0, "lr"): "--learning_rate"}."""
    reader = _Reader(text, configs, origin)
    reader.set.update(places or {})
    for override in overrides:
        reader.override(override)
    return reader.recipe(seed)


class _Reader:
    """One recipe being read: the raw tables, and where each value stands ("file:line" or "--set …")."""

    def __init__(self, text: str, configs: Mapping[str, type], origin: str) -> None:
        self.configs, self.origin = configs, origin
        self.top = parse(text, origin)
        self.lines = positions(text)
        self.set: dict[tuple[str | int, ...], str] = {}
        stages = self.top.get("stage", [])
        if not isinstance(stages, list) or not all(isinstance(s, dict) for s in stages):
            raise self.wrong("a stage is a table that begins with [[stage]]", "stage")
        self.stages: list[dict[str, Any]] = stages
        self.check_keys(self.top, TOP_KEYS, (), "")
        self.names = [self.stage_head(i) for i in range(len(stages))]
        self.check_unique()

    def line(self, *path: str | int) -> int:
        """The line of the value at `path`, or of the nearest table around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def wrong(self, message: str, *path: str | int) -> UserError:
        where = self.set.get(path) or f"{self.origin}:{self.line(*path)}"
        return located(where, message)

    def check_keys(self, table: Mapping[str, Any], known: Iterable[str], path: tuple[str | int, ...], where: str) -> None:
        known = list(known)
        for key in table:
            if key not in known:
                raise self.wrong(f'unknown key "{key}"{where}{nearest(key, known)}', *path, key)

    def stage_head(self, i: int) -> tuple[str, str]:
        table = self.stages[i]
        if "use" not in table:
            raise self.wrong(f'this stage lacks "use"; stages: {", ".join(sorted(self.configs))}', "stage", i)
        use = table["use"]
        if not isinstance(use, str) or use not in self.configs:
            near = nearest(str(use), self.configs)
            known = ", ".join(sorted(self.configs))
            raise self.wrong(f'unknown stage "{use}"{near or ";"} {"(" if near else ""}stages: {known}'
                             + (")" if near else ""), "stage", i, "use")  # fmt: skip
        name = table.get("name", use)
        if not isinstance(name, str) or not _SLUG.fullmatch(name):
            raise self.wrong(f"stage name {name!r} must be made of letters, digits, - and _", "stage", i, "name")
        return use, name

    def check_unique(self) -> None:
        seen: dict[str, int] = {}
        for i, (_, name) in enumerate(self.names):
            if name in seen:
                first = self.line("stage", seen[name])
                raise self.wrong(f'the stage name "{name}" is already used at line {first}; '
                                 f'give one of the two another, as in name = "{name}-2"', "stage", i, "name")  # fmt: skip
            seen[name] = i

    def override(self, text: str) -> None:
        """Apply one `--set key=value`. A value that is no TOML is taken as a string, so that quotes are not needed."""
        where = f"--set {text}"
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise located(where, "write it as stage.key=value, as in grpo.steps=50")
        value = toml_value(raw.strip())
        stage, dot, inner = key.partition(".")
        if not dot:
            known = [k for k in TOP_KEYS if k != "stage"]
            if key not in known:
                raise located(where, f'unknown key "{key}"{nearest(key, known)}')
            self.top[key] = value
            self.set = {p: w for p, w in self.set.items() if p[0] != key} | {(key,): where}
            return
        names = [n for _, n in self.names]
        if stage not in names:
            near = nearest(stage, names) or f"; stages: {', '.join(names)}"
            raise located(where, f'unknown stage "{stage}"{near}')
        i = names.index(stage)
        known = config_keys(self.configs[self.names[i][0]])
        if inner not in known:
            raise located(where, f'unknown key "{inner}" in stage "{stage}"{nearest(inner, known)}')
        self.stages[i][inner] = value
        self.set["stage", i, inner] = where

    def recipe(self, seed: int | None) -> Recipe:
        for key in ("name", "budget", "base"):
            if key not in self.top:
                raise UserError(f'{self.origin}: missing key "{key}"')
        name, base = self.top["name"], self.top["base"]
        if not isinstance(name, str) or not _SLUG.fullmatch(name):
            raise self.wrong(f"name {name!r} must be made of letters, digits, - and _ (at most 64)", "name")
        if not isinstance(base, str) or not base.strip():
            raise self.wrong("base must be a model's name, folder or hub id", "base")
        budget = self.money("budget", "")
        assert budget is not None
        machine, rate = self.machine(), self.money("rate", "/hour")
        if rate is not None and machine.kind != "this":
            raise self.wrong('rate prices machine = "this" only; a rented machine is priced by the price book', "rate")
        if seed is None:
            seed = self.top.get("seed", 0)
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
                raise self.wrong(f"seed must be a whole number from 0, not {seed!r}", "seed")
        if not self.stages:
            raise UserError(f"{self.origin}: no stages; add a [[stage]] table with use = one of "
                            + ", ".join(sorted(self.configs)))  # fmt: skip
        stages = tuple(self.stage(i) for i in range(len(self.stages)))
        code = tuple(sorted({named for s in stages for named in _code(_plain_config(s.config))}))
        return Recipe(name, budget, machine, rate, base, int(seed), stages, self.origin, self.report_to(), self.terms(), code)

    def terms(self) -> Terms:
        try:
            return terms.read(self.top)
        except BadTerm as e:
            raise self.wrong(e.message, *e.path) from None

    def report_to(self) -> tuple[str, ...]:
        """["wandb", "tensorboard"], or "wandb,tensorboard"; "none" is none."""
        value = self.top.get("report_to", [])
        listed = [p.strip() for p in value.split(",")] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(v, str) for v in listed):
            raise self.wrong(f'report_to must be a list of names such as ["tensorboard"], not {value!r}', "report_to")
        return tuple(dict.fromkeys(v for v in listed if v and v != "none"))

    def money(self, key: str, per: str) -> Decimal | None:
        if key not in self.top:
            return None
        try:
            return parse_money(self.top[key], key, per)
        except ValueError as e:
            raise self.wrong(str(e), key) from None

    def machine(self) -> MachineSpec:
        value = self.top.get("machine", "this")
        if value == "this":
            return MachineSpec()
        if not isinstance(value, dict):
            raise self.wrong(f'machine must be "this" or a table {{ provider = "…", sku = "…" }}, not {value!r}', "machine")
        self.check_keys(value, MACHINE_KEYS, ("machine",), " in machine")
        for key in ("provider", "sku"):
            if not value.get(key):
                raise self.wrong(f'machine lacks "{key}"', "machine")
        for key in ("provider", "sku", "region", "market"):
            if not isinstance(text := value.get(key, ""), str) or not text.isprintable():
                raise self.wrong(f"machine.{key} must be text, not {text!r}", "machine", key)
        count = value.get("count", 1)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise self.wrong(f"machine.count must be a whole number from 1, not {count!r}", "machine", "count")
        market = value.get("market", "on-demand")
        if market not in MARKETS:
            near = nearest(market, MARKETS) or f"; markets: {', '.join(MARKETS)}"
            raise self.wrong(f'unknown market "{market}"{near}', "machine", "market")
        return MachineSpec("cloud", value["provider"], value["sku"], count, value.get("region", ""), market)

    def stage(self, i: int) -> StageTable:
        use, name = self.names[i]
        config_type = self.configs[use]
        given = {k: v for k, v in self.stages[i].items() if k not in ("use", "name")}
        self.check_keys(given, config_keys(config_type), ("stage", i), f' in stage "{name}"')
        hints = get_type_hints(config_type)
        values: dict[str, Any] = {}
        for f in fields(config_type):
            if f.name in given:
                try:
                    values[f.name] = convert(given[f.name], hints[f.name])
                except ValueError as e:
                    raise self.wrong(f'{f.name} in stage "{name}" {e}', "stage", i, f.name) from None
            elif f.init and f.default is MISSING and f.default_factory is MISSING:
                raise self.wrong(f'missing key "{f.name}" in stage "{name}"', "stage", i)
        try:
            config = config_type(**values)
        except ValueError as e:  # the Config's own check: point at the key that it names, else at the table
            named = [k for k in values if re.search(rf"\b{re.escape(k)}\b", str(e))]
            raise self.wrong(f'stage "{name}": {e}', "stage", i, *named[:1]) from None
        return StageTable(use, name, config, self.line("stage", i))


def _code(value: Any) -> Iterable[tuple[str, str]]:
    """(file, hash of its content) of every `file.py:function` inside plain data. A file that cannot be read is left out: the
    stage that names it says so."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for part in value:
            yield from _code(part)
    elif isinstance(value, str) and (named := _CODE.fullmatch(value)):
        try:
            yield named[1], content_hash(Path(named[1]).read_bytes().decode("latin-1"))
        except (OSError, ValueError):
            return


def _plain_config(config: Any) -> dict[str, Any]:
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config) if f.init}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _toml(value: Any) -> Any:
    """Plain data as a tomlkit item; tables inside stages are inline, so that one stage stays one block."""
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        for k, v in value.items():
            table[k] = _toml(v)
        return table
    if isinstance(value, list):
        array = tomlkit.array()
        for v in value:
            array.append(_toml(v))
        return array
    return value

