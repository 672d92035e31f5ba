"""What a benchmark evaluation asks: settings (plain samples, thinking budgets, free samples beside them), problems, chunks.

No torch. A chunk holds all samples of its problems under one setting, so that the engine computes each prompt once; chunks of
all settings take turns, so that a stop leaves fewer problems everywhere and not a setting without any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shoestring.data import benchmarks
from shoestring.estimate.lengths import written
from shoestring.estimate.rates import added
from shoestring.records import Problem, Quantity, Usage, UserError, content_hash
from shoestring.stages import _distill_teacher, forecasts
from shoestring.stages._distill_teacher import TeacherTable
from shoestring.stages.context import Facts, Forecast, read_lines
from shoestring.stages.sizes import of_pairs

if TYPE_CHECKING:
    from shoestring.stages.evaluate import Config

SLOTS = 96  # sequences that the engine decodes at once
FOLDER = "evaluations"  # of a run: every graded answer, one file a stage


@dataclass(frozen=True)
class Setting:
    """One way to ask. role "plain": `samples` answers of at most max_new tokens; "thinking": the thinking is cut at `budget`
    tokens and its end taken back `waits` times, then `answer` tokens more; "parallel": free samples beside thinking budgets,
    for majority votes and rejection sampling at equal tokens."""

    role: Literal["plain", "thinking", "parallel"]
    samples: int
    temperature: float
    top_p: float
    max_new: int
    budget: int = 0
    waits: int = 0
    answer: int = 0

    @property
    def family(self) -> str:
        """Its name in scores.json; "macro" is a benchmark's plain score."""
        if self.role == "thinking":
            return f"thinking {self.budget}" + (f", {self.waits} waits" if self.waits else "")
        return "macro" if self.role == "plain" else "free samples"

    def facts(self) -> dict[str, Any]:
        return {
            "role": self.role, "samples": self.samples, "temperature": self.temperature, "top_p": self.top_p,
            "max_new": self.max_new, "budget": self.budget or None, "waits": self.waits,
        }  # fmt: skip


def settings(config: Config) -> list[Setting]:
    """In the order in which they are reported."""
    if not config.thinking:
        return [Setting("plain", config.samples, config.temperature, config.top_p, config.max_new)]
    most = max(config.thinking) + config.answer
    made = [
        Setting("thinking", config.samples, config.temperature, config.top_p, b + config.answer, b, config.waits, config.answer)
        for b in config.thinking
    ]
    if config.parallel:
        made.append(Setting("parallel", config.parallel, config.temperature or 1.0, config.top_p, most))
    return made


@dataclass(frozen=True)
class Chunk:
    """All samples of some problems of one benchmark under one setting. name: its key in the journal."""

    name: str
    bench: benchmarks.Loaded
    setting: Setting
    problems: tuple[Problem, ...]


def chunks(config: Config, found: Sequence[benchmarks.Loaded], subject: str) -> list[Chunk]:
    """subject: the model's name. Deterministic: a resumed stage finds its chunks again."""
    out: list[tuple[float, Chunk]] = []
    for bench in found:
        for s in settings(config):
            size = max(1, SLOTS // s.samples)
            for at in range(0, len(bench.problems), size):
                name = f"{subject}/{bench.benchmark.name}/{s.family}/{at}"
                out.append((at / len(bench.problems), Chunk(name, bench, s, bench.problems[at : at + size])))
    return [c for _, c in sorted(out, key=lambda pair: pair[0])]


def seed_of(seed: int, problem: Problem, setting: Setting, sample: int) -> int:
    """A sample's own seed, below 2^63; the same for every model, so that the noise is shared where models are compared."""
    return int(content_hash(str(seed), problem.id, setting.family, str(sample)), 16) >> 1


@lru_cache(maxsize=8)
def _loaded(names: tuple[str, ...], data: tuple[tuple[str, str], ...], most: int, check: Any) -> tuple[benchmarks.Loaded, ...]:
    given = dict(data)
    return tuple(benchmarks.load(benchmarks.get(n), given.get(n, ""), check, most) for n in names)


def loaded(config: Config, check: Any = None) -> tuple[benchmarks.Loaded, ...]:
    """The benchmarks with their problems. UserError for what cannot be read."""
    return _loaded(tuple(config.benchmarks), tuple(sorted(config.data.items())), config.max_problems, check)


def names(config: Config) -> list[str]:
    """The benchmarks' own names, as graded answers bear them: of a .toml its stem. UserError where two are called alike."""
    out = [benchmarks.get(n).name for n in config.benchmarks]
    if double := next((n for n in out if out.count(n) > 1), None):
        raise UserError(f"benchmarks: two are called {double!r}; rename one's file")
    return out


def endpoint_table(config: Config) -> TeacherTable | None:
    """ValueError that names `endpoint`."""
    if not config.endpoint:
        return None
    table: dict[str, Any] = {"url": config.endpoint, "model": config.endpoint_model, "price": config.endpoint_price}
    if config.endpoint_key_env:
        table["key_env"] = config.endpoint_key_env
    try:
        return _distill_teacher.parse({k: v for k, v in table.items() if v})
    except ValueError as e:
        raise ValueError(str(e).replace("teacher", "endpoint", 1)) from None


def compared_run(compare: str) -> Path | None:
    """The folder of the run that `compare` names; None where it names a model."""
    path = Path(compare).expanduser()
    return path if compare and (path / FOLDER).is_dir() else None


def check(config: Config) -> None:
    """UserError, before anything is spent: data that cannot be read or graded, a server that cannot be asked, nothing to
    compare with."""
    from shoestring.stages.workbench import gradable

    names(config)
    loaded(config, gradable)
    if table := endpoint_table(config):
        try:
            _distill_teacher.check(table)
        except UserError as e:
            raise UserError(str(e).replace("teacher: ", "endpoint: ", 1)) from None
    if run := compared_run(config.compare):
        _same_way(config, run)
    elif config.compare:
        from shoestring.estimate.locate import locate

        try:
            locate(config.compare)
        except UserError as e:
            said = str(e).removeprefix("base ")
            raise UserError(f"compare: neither a run with an {FOLDER} folder nor a model: {said}") from None


def last_file(run: Path) -> Path | None:
    """The answers of a run's last evaluation."""
    return max((run / FOLDER).glob("*.jsonl"), default=None)


def _same_way(config: Config, run: Path) -> None:
    """UserError where the other run asked otherwise: the difference would be the asking's and not the model's."""
    path = last_file(run)
    rows = read_lines(path) if path else []
    theirs = {(s["role"], s["budget"], s["waits"]): s for r in rows[:1] for s in r.get("settings", ())}
    for mine in (s.facts() for s in settings(config)):
        other = theirs.get((mine["role"], mine["budget"], mine["waits"]), {})
        for key in ("max_new", "temperature", *(("top_p",) if mine["temperature"] else ())):
            if key in other and other[key] != mine[key]:
                said = "another thinking + answer limit" if mine["budget"] and key == "max_new" else key
                raise UserError(
                    f"compare: {run} was asked with {said} = {other[key]}, this evaluation with {mine[key]}; ask both alike"
                )


def counts(config: Config) -> list[tuple[benchmarks.Benchmark, int, list[tuple[str, str]]]]:
    """(benchmark, problems asked, some (prompt, worked solution) pairs); the stated number where the data is not here."""
    out = []
    for name in config.benchmarks:
        bench = benchmarks.get(name)
        try:
            (found,) = _loaded((name,), tuple((k, v) for k, v in config.data.items() if k == name), config.max_problems, None)
            n, pairs = len(found.problems), [(p.prompt, p.solution or "") for p in found.problems[:32]]
        except UserError:
            n, pairs = min(bench.problems or 500, config.max_problems or 10**9), []
        out.append((bench, n, pairs))
    return out


def forecast(config: Config, facts: Facts) -> tuple[list[Quantity], tuple[Usage, ...], dict[str, Any]]:
    """(seconds, usages beside the machine's, tokens, FLOPs and memory) of all answers of all models that are asked."""
    seconds, usages, tokens, flops = [facts.rates().load()], (), 0.0, 0.0
    memory: Mapping[str, int] = {}
    fits, table = True, endpoint_table(config)
    models = 2 if config.compare and compared_run(config.compare) is None else 1
    for _, n, pairs in counts(config):
        found = of_pairs(pairs)
        sizes = replace(found, answer=found.answer or facts.sizes.answer) if found else facts.sizes
        own = replace(facts, sizes=sizes)
        for s in settings(config):
            new = min(float(s.max_new), written(sizes, s.max_new, facts.trained))
            if s.waits:  # an end that is taken back makes the thinking longer, up to the budget
                new = min(float(s.max_new), new * (1 + s.waits))
            count = n * s.samples * models
            if table is not None:
                asked = _distill_teacher.forecast(table, own, count, s.max_new, config.concurrency)
                seconds.append(asked.seconds)
                usages += asked.usages
                tokens += asked.tokens
                continue
            took, did, parts, fit = forecasts.answering(own, count, new, n * models * sizes.own, s.max_new)
            seconds.append(took)
            tokens += count * (sizes.prompt + new)
            flops += did
            fits = fits and fit
            memory = max(memory, parts, key=lambda m: sum(m.values()))
    if models == 2:
        seconds.append(facts.rates().load())
    return seconds, usages, {"tokens": tokens, "flops": flops, "memory": memory, "fits": fits}


def stage_forecast(config: Config, facts: Facts) -> Forecast:
    """Of a stage that asks nothing but benchmarks."""
    seconds, usages, rest = forecast(config, facts)
    made = facts.forecast(
        added(*seconds), tokens=round(rest["tokens"]), flops=rest["flops"], parts={"answers": rest["flops"]},
        memory_bytes=sum(rest["memory"].values()), memory=rest["memory"], fits=rest["fits"], essential=True,
    )  # fmt: skip
    if not config.endpoint:
        return made
    return replace(made, usages=(*made.usages, *usages), amounts=_distill_teacher.AMOUNTS, counted="literature")


def together(a: Forecast, b: Forecast) -> Forecast:
    """Two parts of one stage, one after the other."""
    def wall(f: Forecast) -> float:
        return sum(u.quantity for u in f.usages if u.unit == "second")

    total = wall(a) + wall(b)
    low, high = ((wall(a) * x + wall(b) * y) / total if total else 1.0 for x, y in ((a.low, b.low), (a.high, b.high)))
    return replace(
        a, usages=(*a.usages, *b.usages), low=low, high=high, tokens=a.tokens + b.tokens, flops=a.flops + b.flops,
        parts={"answers": a.flops + b.flops}, memory_bytes=max(a.memory_bytes, b.memory_bytes),
        memory=a.memory if a.memory_bytes >= b.memory_bytes else b.memory, fits=a.fits and b.fits,
        basis="literature" if "literature" in (a.basis, b.basis) else a.basis, counted=b.counted, amounts=b.amounts,
    )  # fmt: skip
