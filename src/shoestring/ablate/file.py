"""An ablation's file: TOML in, arms out. Every complaint names the file and the line.

    name, budget, recipe (a path beside the file, or a table), seeds, shared, evaluate, and one [[arm]] table an arm with
    name, set, recipe, base, stages, usd

docs/ablate.md says what each key means.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import tomlkit

from shoestring import recipe as recipes
from shoestring.recipe import Recipe, StageTable
from shoestring.records import UserError
from shoestring.tables import located, nearest, one_line, parse, positions, text_of
from shoestring.terms import parse_money

KEYS = ("name", "budget", "recipe", "seeds", "shared", "evaluate", "arm")
ARM_KEYS = ("name", "set", "recipe", "base", "stages", "usd")
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,29}")
SHARED = "shared"  # the folder of the run whose stages the arms share; no arm may be called so
Places = Mapping[tuple[str | int, ...], str]


@dataclass(frozen=True)
class Source:
    """A recipe as text: a file of its own, or a table of the ablation's file with the line of each of its values."""

    text: str
    origin: str
    places: Places = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """changes: (what `--set` takes, where it stands). stages: names kept of the recipe (all without it). usd: what is spent on
    making the model, by the plan; None leaves the recipe's steps as they are."""

    name: str
    changes: tuple[tuple[str, str], ...]
    source: Source
    base: str
    stages: tuple[str, ...]
    usd: Decimal | None
    where: str


@dataclass(frozen=True)
class Ablation:
    """budget: US dollars of all child runs together. shared: stages that run once, for all arms and seeds. evaluate: problem
    sources of other domains. configs: the stages' Config classes."""

    name: str
    budget: Decimal
    seeds: tuple[int, ...]
    shared: tuple[str, ...]
    evaluate: tuple[str, ...]
    arms: tuple[Arm, ...]
    path: str
    configs: Mapping[str, type]
    rate: str = ""

    def arm(self, name: str) -> Arm:
        found = next((a for a in self.arms if a.name == name), None)
        if found is None:
            names = [a.name for a in self.arms]
            raise UserError(f'{self.path}: no arm "{name}"{nearest(name, names) or "; arms: " + ", ".join(names)}')
        return found

    def recipe(self, arm: Arm, seed: int = 0, budget: Decimal | None = None, scaled: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of one child run. scaled: {"stage.key": value} of an arm of equal dollars, over what the file says."""
        where = {f"--set {text}": at for text, at in arm.changes}
        top = [f'name = "{self.name}-{arm.name}"', f'budget = "{budget or self.budget} USD"']
        top += [f'rate = "{self.rate}"'] if self.rate else []
        top += [f"base = {_literal(arm.base)}"] if arm.base else []
        source = arm.source
        try:
            made = recipes.loads(
                source.text, self.configs, [*top, *(text for text, _ in arm.changes)], seed, source.origin, source.places
            )
        except UserError as e:
            raise _placed(str(e), where) from None
        stages = self._with_evaluate(_kept(made.stages, arm), arm)
        stages = tuple(_scaled(t, scaled or {}) for t in stages)
        return dataclasses.replace(made, stages=stages)

    def shared_recipe(self, budget: Decimal | None = None) -> Recipe:
        """The shared stages alone, under the first seed, as the first arm has them."""
        made = self.recipe(self.arms[0], self.seeds[0], budget)
        kept = tuple(t for t in made.stages if t.name in self.shared)
        return dataclasses.replace(made, name=f"{self.name}-{SHARED}", stages=kept)

    def reused(self, made: Recipe) -> tuple[str, ...]:
        """Names of this recipe's stages that the shared run has done."""
        return tuple(t.name for t in made.stages if t.name in self.shared)

    def _with_evaluate(self, stages: Sequence[StageTable], arm: Arm) -> tuple[StageTable, ...]:
        """The families of other domains, asked by the first and the last score: of the base, and of what came of it."""
        scores = [i for i, t in enumerate(stages) if t.use == "evaluate"]
        if not scores:
            raise located(arm.where, f'arm "{arm.name}" has no evaluate stage: without a score there is nothing to compare')
        out = list(stages)
        for i in {scores[0], scores[-1]} if self.evaluate else ():
            try:
                out[i] = dataclasses.replace(out[i], config=dataclasses.replace(out[i].config, untrained=list(self.evaluate)))
            except ValueError as e:
                raise located(self.path, f"evaluate: {e}") from None
        return tuple(out)


def _kept(stages: tuple[StageTable, ...], arm: Arm) -> tuple[StageTable, ...]:
    if not arm.stages:
        return stages
    names = [t.name for t in stages]
    for name in arm.stages:
        if name not in names:
            raise located(arm.where, f'arm "{arm.name}": the recipe has no stage "{name}"'
                          f'{nearest(name, names) or "; stages: " + ", ".join(names)}')  # fmt: skip
    return tuple(t for t in stages if t.name in arm.stages)


def _scaled(table: StageTable, scaled: Mapping[str, Any]) -> StageTable:
    own = {k.partition(".")[2]: v for k, v in scaled.items() if k.partition(".")[0] == table.name}
    return dataclasses.replace(table, config=dataclasses.replace(table.config, **own)) if own else table


def _placed(message: str, where: Mapping[str, str]) -> UserError:
    """A complaint about one of an arm's changes, at its place in the ablation's file."""
    for said, at in sorted(where.items(), key=lambda x: -len(x[0])):
        if message.startswith(f"{one_line(said)}: "):
            return located(at, message[len(one_line(said)) + 2 :])
    return UserError(message)


def load(path: Path, configs: Mapping[str, type], rate: str = "") -> Ablation:
    """Read and check an ablation's file, every arm's recipe included. Raises UserError (one line, with file and line)."""
    text = text_of(path, "the ablation")
    top = parse(text, path)
    made = _File(path, top, positions(text)).ablation(configs, rate)
    check(made)
    return made


class _File:
    """One file being read: its tables and the line of each value."""

    def __init__(self, path: Path, top: dict[str, Any], lines: Mapping[tuple[str | int, ...], int]) -> None:
        self.path, self.top, self.lines = path, top, lines

    def at(self, *path: str | int) -> str:
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.path}:{self.lines.get(path, 1)}"

    def wrong(self, message: str, *path: str | int) -> UserError:
        return located(self.at(*path), message)

    def known(self, table: Mapping[str, Any], keys: Sequence[str], *path: str | int) -> None:
        for key in table:
            if key not in keys:
                raise self.wrong(f'unknown key "{key}"{nearest(key, keys) or "; keys: " + ", ".join(keys)}', *path, key)

    def ablation(self, configs: Mapping[str, type], rate: str) -> Ablation:
        self.known(self.top, KEYS)
        for key in ("name", "budget", "arm"):
            if key not in self.top:
                raise UserError(f'{self.path}: missing key "{key}"')
        name, tables = self.top["name"], self.top["arm"]
        if not isinstance(name, str) or not SLUG.fullmatch(name):
            raise self.wrong(f"name {name!r} must be made of letters, digits, - and _ (at most 30)", "name")
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables) or not tables:
            raise self.wrong("an arm is a table that begins with [[arm]]", "arm")
        seeds = self.top.get("seeds", [0, 1, 2])
        if not isinstance(seeds, list) or not seeds or not all(type(s) is int and s >= 0 for s in seeds):
            raise self.wrong(f"seeds must be a list of whole numbers from 0, not {seeds!r}", "seeds")
        if len(set(seeds)) < len(seeds):
            raise self.wrong("seeds names one twice", "seeds")
        source = self.source(self.top["recipe"], "recipe") if "recipe" in self.top else None
        arms = tuple(self.arm(i, t, source) for i, t in enumerate(tables))
        names = [a.name for a in arms]
        for i, n in enumerate(names):
            if names.index(n) < i:
                raise self.wrong(f'two arms are called "{n}"', "arm", i, "name")
        try:
            budget = parse_money(self.top["budget"], "budget", "")
        except ValueError as e:
            raise self.wrong(str(e), "budget") from None
        return Ablation(
            name, budget, tuple(seeds), self.texts(self.top, "shared"), self.texts(self.top, "evaluate"), arms, str(self.path),
            configs, rate,
        )  # fmt: skip

    def arm(self, i: int, table: Mapping[str, Any], source: Source | None) -> Arm:
        self.known(table, ARM_KEYS, "arm", i)
        name = table.get("name")
        if not isinstance(name, str) or not SLUG.fullmatch(name) or name == SHARED:
            raise self.wrong(f"an arm's name is made of letters, digits, - and _ (at most 30), not {name!r}", "arm", i, "name")
        if "recipe" in table:
            source = self.source(table["recipe"], "arm", i, "recipe")
        if source is None:
            raise self.wrong(f'arm "{name}" has no recipe: give one to it, or one to all at the top', "arm", i)
        base = table.get("base", "")
        if not isinstance(base, str):
            raise self.wrong(f"base must be a model's name, folder or hub id, not {base!r}", "arm", i, "base")
        usd = None
        if "usd" in table:
            try:
                usd = parse_money(f"{table['usd']} USD" if _number(table["usd"]) else table["usd"], "usd", "")
            except ValueError as e:
                raise self.wrong(str(e), "arm", i, "usd") from None
        return Arm(name, self.changes(i, table.get("set", {})), source, base, self.texts(table, "stages", "arm", i), usd,
                   self.at("arm", i))  # fmt: skip

    def changes(self, i: int, table: Any) -> tuple[tuple[str, str], ...]:
        """`set` as what `--set` takes. `sft.steps = 50` without quotes is a table in a table: taken the same."""
        if not isinstance(table, dict):
            raise self.wrong('set is a table, as in set = { "sft.steps" = 50 }', "arm", i, "set")
        out = []
        for key, value in table.items():
            nested = isinstance(value, dict) and "." not in key
            for inner, v in value.items() if nested else ((None, value),):
                path = (key,) if inner is None else (key, inner)
                out.append((f"{'.'.join(path)}={_literal(v)}", self.at("arm", i, "set", *path)))
        return tuple(out)

    def texts(self, table: Mapping[str, Any], key: str, *path: str | int) -> tuple[str, ...]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise self.wrong(f"{key} must be a list of names, not {value!r}", *path, key)
        return tuple(value)

    def source(self, value: Any, *path: str | int) -> Source:
        if isinstance(value, str):
            file = self.path.parent / Path(value).expanduser()
            try:
                return Source(file.read_text("utf-8-sig"), str(file))
            except (OSError, ValueError) as e:
                said = (getattr(e, "strerror", None) or str(e)).lower()
                raise self.wrong(f"recipe {value!r}: cannot be read beside this file: {said}", *path) from None
        if not isinstance(value, dict):
            raise self.wrong("recipe is a path, or a table with base and [[recipe.stage]]", *path)
        inside = {k: n for k, n in self.lines.items() if k[: len(path)] == path and len(k) > len(path)}
        places = {k[len(path) :]: f"{self.path}:{n}" for k, n in inside.items()}
        return Source(tomlkit.dumps(value), self.at(*path), places)


def _number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and Decimal(str(value)).is_finite()
    except ArithmeticError:
        return False


def _literal(value: Any) -> str:
    """Plain data as one line of TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)} = {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return tomlkit.item(value).as_string()


def check(ablation: Ablation) -> None:
    """UserError for a recipe that cannot be read, and for shared stages that the arms do not share."""
    first = ablation.recipe(ablation.arms[0])
    names = [t.name for t in first.stages]
    for name in ablation.shared:
        if name not in names:
            raise UserError(f'{ablation.path}: shared: the first arm has no stage "{name}"{nearest(name, names)}')
    shared = {t.name: t for t in first.stages if t.name in ablation.shared}
    for arm in ablation.arms:
        made = ablation.recipe(arm)
        if (made.machine, made.rate) != (first.machine, first.rate):
            raise located(arm.where, f'arm "{arm.name}" has another machine or rate: its dollars would not compare')
        own = False
        for t in made.stages:
            if t.name not in shared:
                own = True
            elif own:
                raise located(arm.where, f'arm "{arm.name}": the shared stage "{t.name}" comes after stages of its own')
            elif (t.use, t.config) != (shared[t.name].use, shared[t.name].config) or made.base != first.base:
                what = "another base" if made.base != first.base else f'its own keys in "{t.name}"'
                raise located(arm.where, f'arm "{arm.name}" has {what}, and "{t.name}" is shared: it runs once, for all arms')
        if not own:
            raise located(arm.where, f'arm "{arm.name}" has no stage of its own: all of it is shared')
