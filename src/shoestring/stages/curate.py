"""From a pool to a few hundred problems: quality, difficulty, diversity (s1, Muennighoff et al. 2025, section 2.2).

Free steps first (format, duplicates, overlap with the evaluation sets, commonest-answer traps, recorded pass rates), then
those that cost: the pass rate of the base model, and of others here or at a server, on a draw of candidates, after which
problems that are too easy or families out of reach leave; and, where one is named, a label model that says each problem's
domain. The choice is made uniformly over families, or by another selector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shoestring.records import Artifact, Problem, StepReport, UserError
from shoestring.stages import _curate_forecast, _curate_measure, _curate_pool, _curate_served, _served
from shoestring.stages._served import Served
from shoestring.stages.context import (
    Answer,
    Context,
    Event,
    Events,
    Facts,
    Forecast,
    Journal,
    write_json,
    write_lines,
)

SELECTORS = ("s1", "random", "longest", "band", "k-centre")


@dataclass(frozen=True)
class Config:
    """sources: where problems come from; against: sources whose test problems must stay unseen.

    count: problems to choose; candidates: problems whose pass rate is measured; samples: answers each, after `shots`
    worked examples, kindly read (the last number counts); 0 asks nobody. models: others that answer, each a folder, file or
    id, or a server, { url, model, price, key_env, max_new }; ask_base: whether the base answers too. A recorded pass rate
    (rows with `pass_rate` or `rates`) is taken as it is and costs nothing. A problem that any of them solves more often than
    `too_easy` leaves; a family whose mean pass rate is outside [family_low, family_high] leaves whole.
    labels: a server that says the domain of what is left, { url, model, price, key_env, names, max_new }; names: the only
    domains there are (any without). concurrency: requests in flight at a server.
    with_trace: only problems with a worked solution or a recorded trace (rows with `tokens`).
    select: how the rest is chosen (data.selectors); within: how "s1" draws inside a family (data.select); band: pass rates
    that "band" takes. order: of the chosen, "easy-first" by pass rate (sft: order = "given" trains in it).
    language: "en" drops what is not English; clusters: domains that are made where rows have none.
    """

    sources: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    count: int = 400
    candidates: int = 480
    samples: int = 2
    shots: int = 4
    max_new: int = 48
    temperature: float = 1.0
    too_easy: float = 0.99
    family_low: float = 0.0
    family_high: float = 0.9
    within: Literal["uniform", "length"] = "uniform"
    models: list[str | dict[str, Any]] = field(default_factory=list)
    ask_base: bool = True
    labels: dict[str, Any] | None = None
    concurrency: int = 16
    with_trace: bool = False
    select: Literal["s1", "random", "longest", "band", "k-centre"] = "s1"
    band: list[float] = field(default_factory=lambda: [0.1, 0.9])
    order: Literal["as-drawn", "easy-first"] = "as-drawn"
    language: Literal["any", "en"] = "any"
    clusters: int = 50

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty: name at least one, such as 'bundled:chain_sum'")
        if self.count < 1 or self.candidates < self.count:
            raise ValueError(
                f"candidates = {self.candidates} must be at least count = {self.count}, and count positive"
            )
        if self.samples < 0:
            raise ValueError(f"samples = {self.samples} cannot be negative")
        if self.models and not self.samples:
            raise ValueError("models are asked for samples answers, and samples = 0 asks nobody: set samples")
        if not self.ask_base and not self.models:
            raise ValueError("ask_base = false without models asks nobody: name models, or set samples = 0")
        named = [name for name, _ in self.who()]  # raises for a table that is none
        if twice := [n for n, count in Counter(named).items() if count > 1]:
            raise ValueError(f"models: {twice[0]!r} is asked twice; leave one out")
        asked = [m for _, m in self.who() if isinstance(m, Served)] + ([self.label_model()] if self.labels else [])
        if self.concurrency < 1 or (self.concurrency != 16 and not asked):
            raise ValueError(f"concurrency = {self.concurrency}: at least 1, and only where a server is asked (models, labels)")
        for key, known in (
            ("within", ("uniform", "length")), ("select", SELECTORS), ("order", ("as-drawn", "easy-first")),
            ("language", ("any", "en")),
        ):  # fmt: skip
            if getattr(self, key) not in known:
                raise ValueError(f"{key} = {getattr(self, key)!r} must be one of {', '.join(map(repr, known))}")
        if self.within != "uniform" and self.select != "s1":
            raise ValueError(f'within is for select = "s1"; {self.select!r} does not read it')
        if not 0 <= self.family_low < self.family_high <= 1:
            raise ValueError("family_low and family_high must satisfy 0 <= family_low < family_high <= 1")
        if len(self.band) != 2 or not 0 <= self.band[0] <= self.band[1] <= 1:
            raise ValueError(f"band = {self.band} must be two pass rates, [low, high]")
        if self.clusters < 1:
            raise ValueError(f"clusters = {self.clusters} must be at least 1")

    def who(self) -> list[tuple[str, str | Served]]:
        """(name in `rates`, place or server) of every model that answers, the base first. ValueError names `models`."""
        base: list[tuple[str, str | Served]] = [(_curate_measure.BASE, _curate_measure.BASE)] if self.ask_base else []
        made = [m if isinstance(m, str) else _served.parse("models", m) for m in self.models]
        return base + [(m if isinstance(m, str) else m.model, m) for m in made]

    def label_model(self) -> Served | None:
        """ValueError names `labels`."""
        return None if self.labels is None else _served.parse("labels", self.labels, ("max_new", "names"))


def check(config: Config, base: str) -> None:
    """UserError, before anything is spent, for another model that is not here. `base` is opened by the pipeline."""
    from shoestring.data import sources as of

    for model in config.models:
        if isinstance(model, str):
            _curate_measure.located(model)
    for _, server in config.who():
        if isinstance(server, Served):
            _served.check(server)
    if label := config.label_model():
        _served.check(label)
    for spec in config.sources:
        if not of.is_generated(spec):
            next(iter(of.stream(spec, "train")), None)  # opened, and its columns' names looked at


def forecast(config: Config, facts: Facts) -> Forecast:
    return _curate_forecast.forecast(config, facts)


def reads(config: Config, trained: bool) -> list[tuple[str, str]]:
    """(source, split) of everything that will be read, so that a wrong file is found before a dollar is spent.

    Of a large pool, whose bad rows are counted and not fatal, only a few generated problems are made.
    """
    from shoestring.data import sources as of

    unseen = [(s, "test") for s in config.against]
    if not _curate_pool.is_large(tuple(config.sources)):
        return [(s, "train") for s in config.sources] + unseen
    made = [s for s in config.sources if of.is_generated(s)]
    return [(s if s.startswith("bundled:") else _curate_pool.tried(s), "train") for s in made] + unseen


def free_steps(config: Config, context: Context) -> tuple[_curate_pool.Pool, list[dict[str, Any]]]:
    """(problems left and the funnel so far, trap rows) of everything that costs nothing."""
    if config.language != "any" or _curate_pool.is_large(tuple(config.sources)):
        folder = context.folder / "pool"
        found, traps = _curate_pool.large(
            config.sources, config.against, folder, config.language, config.clusters, context.seed
        )
    else:
        found, traps = _curate_pool.small(config.sources, config.against, config.clusters, context.seed)
    if config.with_trace:
        kept = [p for p in found.problems if p.id in found.traced]
        found.step("with a trace", kept, "no worked solution and no recorded trace: nothing to learn from")
        if not kept:
            raise UserError("curate: no problem has a worked solution or a recorded trace; leave with_trace out")
    return found, traps


def run(config: Config, inputs: Mapping[str, Path], context: Context) -> Events:
    from shoestring.data import curriculum

    began = context.clock()
    pool, traps = free_steps(config, context)
    yield _took(context, "free", began)
    yield Artifact("traps", write_json(context.run_dir / "traps.json", traps))
    honest = pool.problems
    drawn = _draw(config, context, pool)
    rates, journal = dict(pool.rates), Journal(context.folder / "samples.jsonl")
    named = {id: dict(r) for id, r in pool.named.items()}
    asked = [p for p in drawn if p.id not in pool.rates] if config.samples else []
    stopped = False
    if asked:
        stopped = yield from _measure(config, context, asked, pool, honest, journal, rates, named)
        tried = [p for p in drawn if p.id in rates]  # a budget stop leaves some unmeasured, a server may give no reply
        if not tried and not stopped:
            raise UserError("curate: models: not one answer came; `--resume` asks again what failed")
        if not tried:
            return  # stopped before the first answer
        if len(tried) < len(drawn):
            pool.step("pass rate known", tried, "the others were not tried by every model: stopped, or no reply")
        drawn = tried
    began = context.clock()
    pool.problems = drawn
    reachable = _families_in_band(config, drawn, rates, {p.domain for p in honest})
    who = "base model" if not pool.rates and not config.models else "models that tried it"
    pool.step(
        "families in reach", [p for p in drawn if p.domain in reachable],
        f"mean pass rate of the {who} in [{config.family_low:g}, {config.family_high:g}]",
    )  # fmt: skip
    of = f"{config.samples} samples" if not pool.rates else "the samples, measured or recorded"
    pool.step(
        "difficulty", [p for p in pool.problems if rates.get(p.id, 0.0) <= config.too_easy],
        f"right in more than {config.too_easy:.0%} of {of}: nothing to learn",
    )  # fmt: skip
    if label := config.label_model():
        yield _took(context, "difficulty", began)
        if not stopped:  # at the ceiling there is nothing left to ask with
            at = _steps(config, pool.whole(asked), context.seed)
            yield from _curate_served.labelled(label, context, pool, config.concurrency, at)
        began = context.clock()
    shown = pool.problems if config.labels else honest
    chosen = _chosen(config, context, pool, rates)
    counts = Counter(p.domain for p in chosen)
    how = "uniform over families" if config.select == "s1" else f"chosen by {config.select}"
    pool.step("diversity", chosen, f"{how}: " + ", ".join(f"{d} {n}" for d, n in sorted(counts.items())))
    if not chosen:
        raise UserError("curate: no problem is left after the filters; the report's funnel says where they went")
    if config.order == "easy-first":
        chosen = curriculum.easy_first(chosen, rates, pool.lengths)
    by_id = {r["id"]: r for r in pool.rows(chosen)}
    rows = [{**by_id[p.id], "pass_rate": rates.get(p.id)} | _extra(p.id, named) for p in chosen]
    yield Artifact("problems", write_lines(context.run_dir / "problems.jsonl", rows), {"count": len(rows)})
    rest = [p for p in honest if p.domain in reachable]
    left = ({**r, "pass_rate": rates.get(r["id"])} for r in pool.rows(rest))
    yield Artifact("pool", write_lines(context.folder / "pool.jsonl", left), {"count": len(rest)})
    yield Artifact("domains", write_json(context.run_dir / "domains.json", _domains(shown, chosen, rates, config.select)))
    yield Artifact("funnel", write_json(context.run_dir / "funnel.json", pool.funnel))
    if journal.chunks:
        yield Artifact("samples-of-base", journal.path, {"count": len(journal.rows())})
    yield _took(context, "choice", began)


def _took(context: Context, part: str, began: float) -> StepReport:
    """Seconds of work that asks nobody, so that they count as useful ones."""
    return StepReport(f"{context.stage}.{part}", 1, 1, context.clock() - began)


def _draw(config: Config, context: Context, pool: _curate_pool.Pool) -> list[Problem]:
    """Problems whose pass rate is recorded, and as many others as may be asked about (all of them, if nobody is)."""
    from shoestring.stages.workbench import spread

    honest = pool.problems
    unknown = [p for p in honest if p.id not in pool.rates]
    if not config.samples or not unknown:
        return honest
    families = sorted({p.domain for p in unknown})
    drawn = spread(unknown, -(-config.candidates // len(families)), context.seed)[: config.candidates]
    why = "drawn evenly over families: a pass rate costs money"
    if known := [p for p in honest if p.id in pool.rates]:
        why += f"; {len(known)} have one recorded"
    pool.step("candidates", [*drawn, *known], why)
    return pool.problems


def _steps(config: Config, asked: list[Problem], seed: int) -> int:
    """Of all models that answer: a chunk on our engine, a reply of a server."""
    if not asked or not config.samples:
        return 0
    chunks = len(_curate_measure.chunks_of(config, asked, seed))
    return sum(chunks if isinstance(m, str) else len(asked) * config.samples for _, m in config.who())


def _measure(
    config: Config, context: Context, asked: list[Problem], pool: _curate_pool.Pool, honest: list[Problem], journal: Journal,
    rates: dict[str, float], named: dict[str, dict[str, float]],
) -> Generator[Event, Answer | None, bool]:  # fmt: skip
    """Every model answers; `rates` gets the highest rate of each problem that all of them have tried. True where a stop
    ended it: models that had not begun then do not count."""
    shots = _examples(config, context.seed, pool, honest)
    whole = pool.whole(asked)
    chunks = _curate_measure.chunks_of(config, whole, context.seed)
    total, at, stopped = _steps(config, whole, context.seed), 0, False
    every: list[tuple[str, dict[str, float]]] = []
    for n, (name, model) in enumerate(config.who(), 0 if config.ask_base else 1):
        if isinstance(model, str):
            kept = Journal(context.folder / f"samples-{n}.jsonl") if n else journal
            yield from _curate_measure.measure(config, context, whole, shots, kept, model, at, total)
            rows, stopped, at = kept.rows(), len(kept.chunks) < len(chunks), at + len(chunks)
        else:
            mixed = [p for chunk in chunks for p in chunk]
            asking = _curate_served.pass_rates(model, config, context, mixed, shots, n, at, total)
            rows, stopped = yield from asking
            at += len(whole) * config.samples
        if rows or not stopped:
            every.append((name, _curate_measure.rates_of(rows)))
        if stopped:
            break
    for p in asked:
        if every and all(p.id in r for _, r in every):
            rates[p.id] = max(r[p.id] for _, r in every)
            if config.models:
                named[p.id] = {name: r[p.id] for name, r in every}
    return stopped


def _examples(config: Config, seed: int, pool: _curate_pool.Pool, honest: list[Problem]) -> dict[str, list[Problem]]:
    """Worked examples of each family that are no candidates."""
    from shoestring.stages.prompts import choose_shots

    taken = {p.id for p in pool.problems}
    few = choose_shots([p for p in honest if p.id not in taken and p.id in pool.solved], config.shots, seed)
    whole = {p.id: p for p in pool.whole([p for ps in few.values() for p in ps])}
    return {domain: [whole[p.id] for p in ps] for domain, ps in few.items()}


def _families_in_band(
    config: Config, problems: list[Problem], rates: Mapping[str, float], families: set[str]
) -> set[str]:
    """Families whose mean pass rate is in the band. Where nobody is asked, families without a recorded rate stay too."""
    by: dict[str, list[float]] = {}
    for p in problems:
        if p.id in rates:
            by.setdefault(p.domain, []).append(rates[p.id])
    inside = {d for d, r in by.items() if config.family_low <= sum(r) / len(r) <= config.family_high}
    return inside if config.samples else inside | (families - set(by))


def _chosen(config: Config, context: Context, pool: _curate_pool.Pool, rates: Mapping[str, float]) -> list[Problem]:
    from shoestring.data import select, selectors

    if config.select == "s1":
        return select.select(pool.problems, rates, pool.lengths, config.count, context.seed, config.within)

    def vectors() -> Any:
        from shoestring.data import domains
        from shoestring.data.embed import HashedTfIdf

        prompts = [p.prompt for p in pool.whole(pool.problems)]
        return HashedTfIdf(prompts[: domains.FIT])(prompts)

    known = {id: n for id, n in pool.lengths.items() if n}
    looked = selectors.Pool(pool.problems, rates, known, (config.band[0], config.band[1]), vectors)
    try:
        return selectors.choose(config.select, looked, config.count, context.seed)
    except ValueError as e:
        raise UserError(f"curate: select: {e}") from None


def _extra(id: str, named: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    return {"rates": named[id]} if named.get(id) else {}


def _domains(
    honest: list[Problem], chosen: list[Problem], rates: Mapping[str, float], selector: str
) -> list[dict[str, Any]]:
    """A row a domain, the largest first: problems before difficulty and choice, chosen ones, and their mean pass rate."""
    sizes, taken = Counter(p.domain for p in honest), Counter(p.domain for p in chosen)
    known: dict[str, list[float]] = {}
    for p in chosen:
        if p.id in rates:
            known.setdefault(p.domain, []).append(rates[p.id])
    return [
        {
            "domain": d, "pool": n, "chosen": taken[d], "selector": selector,
            "pass_rate": round(sum(known[d]) / len(known[d]), 4) if d in known else None,
        }
        for d, n in sorted(sizes.items(), key=lambda i: (-i[1], i[0]))
    ]  # fmt: skip
