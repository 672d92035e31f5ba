"""The pool that the curate stage chooses from: a small one held in memory, a large one in a file through data.pool.

Both give the same thing: candidates (their prompts are read only when they are needed), what is known of each already,
the funnel so far, and the rows of any of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from shoestring.records import Problem, UserError

LIGHT = 5_000  # problems that are simply loaded; more go through data.pool
GENERATED = 500  # problems of a gym: source that states no size
SAMPLED = 400  # rows whose recorded lengths are looked at for the plan
CLUSTERED = 20  # problems a cluster at least, in a small pool
TRIED = 20  # problems made of a large generated source to see whether its configuration is one


@dataclass
class Pool:
    """problems: candidates, in order (of a large pool without prompt and solution); funnel: rows of the steps so far.

    rates: the highest recorded pass rate, by id, where the rows have one; named: {model: rate} as the rows say it. lengths:
    tokens of a recorded trace, or characters of the worked solution; solved: ids with a worked solution; traced: with either.
    """

    problems: list[Problem]
    funnel: list[dict[str, Any]]
    rates: dict[str, float] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    solved: set[str] = field(default_factory=set)
    traced: set[str] = field(default_factory=set)
    named: dict[str, dict[str, float]] = field(default_factory=dict)
    path: Path | None = None

    def whole(self, problems: Sequence[Problem]) -> list[Problem]:
        """The same problems with their prompts and solutions, in the same order."""
        if self.path is None:
            return list(problems)
        from shoestring.stages.prompts import from_row

        wanted = {p.id: p for p in problems}
        found = {r["id"]: replace(from_row(r), domain=wanted[r["id"]].domain) for r in _lines(self.path) if r["id"] in wanted}
        return [found[p.id] for p in problems]

    def rows(self, problems: Sequence[Problem]) -> Iterator[dict[str, Any]]:
        """Rows to write, in order of the pool."""
        if self.path is None:
            yield from (asdict(p) for p in problems)
            return
        wanted = {p.id: p.domain for p in problems}
        fields = Problem.__dataclass_fields__
        for r in _lines(self.path):
            if r["id"] in wanted:
                yield {k: r[k] for k in fields} | {"domain": wanted[r["id"]]}

    def step(self, name: str, kept: list[Problem], why: str) -> None:
        self.funnel.append({"step": name, "before": len(self.problems), "after": len(kept), "why": why})
        self.problems = kept


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    from shoestring.data import choice

    return choice.lines(path)


@lru_cache(maxsize=32)
def is_large(sources: tuple[str, ...]) -> bool:
    """Whether the sources have more than LIGHT rows together. Generated problems are counted by their size, unmade; families
    that ship are not counted: all of them fit."""
    from shoestring.data import sources as of

    count = 0
    for spec in sources:
        if of.is_generated(spec):
            count += 0 if spec.startswith("bundled:") else _size(spec)
        else:
            try:
                for _ in of.stream(spec, "train"):
                    count += 1
                    if count > LIGHT:
                        return True
            except UserError:
                return False  # reading it says what is wrong, with file and line
    return count > LIGHT


def _size(spec: str) -> int:
    size = parse_qs(spec.partition("?")[2]).get("size", [str(GENERATED)])[-1]
    return int(size) if size.isdigit() else 0


def expected(sources: Iterable[str]) -> int:
    """Problems that generated sources state; only the forecast reads it."""
    total = 0
    for spec in sources:
        if spec.startswith(("gym:", "reasoning_gym:", "reasoning-gym:")):
            total += _size(spec)
    return total


@lru_cache(maxsize=8)
def counted(sources: tuple[str, ...]) -> tuple[int, int]:
    """(rows, those of them with a recorded pass rate) of the sources; only the forecast of labels reads it."""
    from shoestring.data import sources as of

    rows = rated = 0
    for spec in sources:
        if of.is_generated(spec) and not spec.startswith("bundled:"):
            rows += _size(spec)
            continue
        try:
            for item in of.stream(spec, "train"):
                rows += 1
                rated += not isinstance(item, str) and (item[1].get("pass_rate") is not None or bool(item[1].get("rates")))
        except UserError:
            continue  # reading it says what is wrong
    return rows, rated


@lru_cache(maxsize=32)
def recorded_tokens(sources: tuple[str, ...]) -> float:
    """Mean tokens of the recorded traces of the first rows that have one; 0.0 where none has. Only the forecast reads it."""
    from shoestring.data import sources as of

    found: list[int] = []
    for spec in sources:
        if of.is_generated(spec):
            continue
        try:
            rows = islice(of.stream(spec, "train"), SAMPLED)
            found += [int(r[1]["tokens"]) for r in rows if not isinstance(r, str) and r[1].get("tokens")]
        except UserError:
            continue  # reading it says what is wrong
    return sum(found) / len(found) if found else 0.0


def tried(spec: str) -> str:
    """A generated source with a few problems only: enough to see that it can be made."""
    name, mark, query = spec.partition("?")
    rest = [part for part in query.split("&") if part and not part.startswith("size=")]
    return f"{name}?{'&'.join([*rest, f'size={TRIED}'])}" if mark else f"{name}?size={TRIED}"


def small(
    sources: Sequence[str], against: Sequence[str], clusters: int, seed: int
) -> tuple[Pool, list[dict[str, Any]]]:
    """(pool, trap rows) of problems that fit in memory: read whole, every bad row of a file an error; what a generator made
    and nobody can grade is counted."""
    from shoestring.data import decontaminate, dedupe, funnel, quality
    from shoestring.stages.workbench import load_problems

    lost: list[str] = []
    read = load_problems(list(sources), "train", lost)
    unseen = load_problems(list(against), "test") if against else []
    steps = funnel.Funnel()
    steps.start(len(read) + len(lost), "problems with an answer" + ("" if lost else " that can be checked"))
    if lost:
        families = Counter(f"unparseable answer ({said.partition(': the answer of')[0]})" for said in lost)
        steps.add("gradable", len(read) + len(lost), len(read), funnel.Funnel.reasons(families))
    kept, why = quality.filter_problems(read)
    steps.add("quality", len(read), len(kept), funnel.Funnel.reasons(why))
    distinct = dedupe.exact(kept)
    steps.add("duplicates", len(kept), len(distinct), "the same question twice")
    clean = decontaminate.decontaminate(distinct, unseen)
    said = f"shares operands or text with {len(unseen)} unseen problems"
    steps.add("decontamination", len(distinct), len(clean.kept), said)
    made = Pool(clean.kept, [dict(r) for r in steps.rows()])
    made.lengths = {p.id: len(p.solution or "") for p in clean.kept}
    made.solved = {p.id for p in clean.kept if p.solution}
    made.traced = set(made.solved)
    _recorded(made, sources)
    made.problems = _labelled(made.problems, clusters, seed)
    return made, _without_traps(made)


def _labelled(problems: list[Problem], clusters: int, seed: int) -> list[Problem]:
    """Where most have no domain, clusters of the questions are the domains, if there are enough of them to cluster."""
    k = min(clusters, len(problems) // CLUSTERED)
    if k < 2 or all(p.domain for p in problems):
        return problems
    from shoestring.data import domains

    if not domains.needed(problems):
        return problems
    labels = domains.by_clusters([p.prompt for p in problems], k, seed)
    return [replace(p, domain=d) for p, d in zip(problems, labels, strict=True)]


def _recorded(made: Pool, sources: Sequence[str]) -> None:
    """What the rows of files carry of earlier measurements."""
    from shoestring.data import sources as of

    ids = {p.id for p in made.problems}
    for spec in sources:
        if of.is_generated(spec):
            continue
        for item in of.stream(spec, "train"):
            if not isinstance(item, str) and item[0].id in ids:
                _known(made, item[0].id, item[1])


def _known(made: Pool, id: str, row: Mapping[str, Any]) -> None:
    """Put down a row's pass_rate, rates and tokens. UserError for rates that are none."""
    named = row.get("rates") or {}
    try:
        rates = {str(m): float(r) for m, r in dict(named).items()}
        if not all(0 <= r <= 1 for r in rates.values()):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(f"problem {id}: rates must give each model a number from 0 to 1, not {str(named)[:80]}") from None
    if rates:
        made.named[id] = rates
    every = [*rates.values(), *([float(row["pass_rate"])] if row.get("pass_rate") is not None else [])]
    if every:
        made.rates[id] = max(every)
    if row.get("tokens"):
        made.lengths[id] = int(row["tokens"])
        made.traced.add(id)


def large(
    sources: Sequence[str], against: Sequence[str], folder: Path, language: str, clusters: int, seed: int
) -> tuple[Pool, list[dict[str, Any]]]:
    """(pool, trap rows) through data.pool, whose finished steps a second attempt takes up again."""
    from shoestring.data import choice
    from shoestring.data.pool import Settings, curate_pool
    from shoestring.stages.workbench import gradable

    done = curate_pool(list(sources), list(against), folder, Settings(language=language), gradable)
    found = choice.candidates(done.problems_path, clusters, seed)
    made = Pool([], [dict(r) for r in done.funnel], lengths=dict(found.lengths), path=done.problems_path)
    domains = {p.id: p.domain for p in found.problems}
    for r in _lines(done.problems_path):
        made.problems.append(
            Problem(r["id"], "", r["answer"], source=r["source"], licence=r["licence"], domain=domains[r["id"]])
        )
        if r.get("solution"):
            made.solved.add(r["id"])
            made.traced.add(r["id"])
        _known(made, r["id"], r)
    return made, _without_traps(made)


def _without_traps(made: Pool) -> list[dict[str, Any]]:
    """Families whose commonest answer is right too often leave; what was found of every family."""
    from shoestring.data import traps

    found = traps.inspect(made.problems)
    refused = {t.family for t in found if t.verdict == "refuse"}
    honest = [p for p in made.problems if p.domain not in refused]
    note = f"families where one answer is right too often: {', '.join(sorted(refused))}" if refused else "no trap found"
    made.step("traps", honest, note)
    if not honest:
        raise UserError(f"curate: every family is a trap ({', '.join(sorted(refused))}); name other sources")
    return [
        {"family": t.family, "commonest_answer": t.answer, "share": round(t.share, 4), "verdict": t.verdict} for t in found
    ]
