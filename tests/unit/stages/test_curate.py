"""The curate stage: today's small pool bit for bit, recorded pass rates, other models, selectors, order, large pools."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from shoestring.data import decontaminate, dedupe, quality, select, traps
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import prior
from shoestring.records import Problem, StepReport, UserError
from shoestring.stages import _curate_pool, curate
from shoestring.stages.context import Facts, read_lines, write_lines
from shoestring.stages.workbench import load_problems, spread

SOURCES = ["bundled:chain_sum", "bundled:basic_arithmetic"]
SMALL: dict[str, Any] = dict(sources=SOURCES, against=SOURCES[:1], count=12, candidates=20, samples=1, shots=1, max_new=2)


def problems(n: int, **extra: Callable[[int], Any]) -> list[dict[str, Any]]:
    """Rows of n sums in two families; extra: key → value of the row's number."""
    return [
        {"prompt": f"{3 * i} + {i + 7} =", "answer": str(4 * i + 7), "domain": f"d{i % 2}", "licence": "mit", "source": "own",
         **{k: f(i) for k, f in extra.items() if f(i) is not None}}
        for i in range(n)
    ]  # fmt: skip


def files(folder: Path) -> dict[str, Any]:
    return {p.name: p.read_text() for p in (folder / "problems.jsonl", folder / "funnel.json", folder / "traps.json")}


def steps(folder: Path) -> dict[str, tuple[int, int]]:
    return {r["step"]: (r["before"], r["after"]) for r in json.loads((folder / "funnel.json").read_text())}


def test_a_small_pool_by_the_obvious_way(make_context: Any, drive: Any, tmp_path: Path) -> None:
    """Every step spelled out as it was before pools could be large: the same problems in the same order."""
    drive(curate.run(curate.Config(**SMALL), {}, make_context(tmp_path, "curate")))
    read = load_problems(SOURCES, "train")
    kept, _ = quality.filter_problems(read)
    clean = decontaminate.decontaminate(dedupe.exact(kept), load_problems(SOURCES[:1], "test")).kept
    refused = {t.family for t in traps.inspect(clean) if t.verdict == "refuse"}
    honest = [p for p in clean if p.domain not in refused]
    drawn = spread(honest, 10, 3)[:20]
    hits = {r["problem_id"]: r["lenient"] for r in read_lines(tmp_path / "work/curate/samples.jsonl") if "lenient" in r}
    hard = [p for p in drawn if hits[p.id] <= 0.99]
    chosen = select.select(hard, hits, {p.id: len(p.solution or "") for p in hard}, 12, 3, "uniform")
    assert read_lines(tmp_path / "problems.jsonl") == json.loads(json.dumps([{**asdict(p), "pass_rate": hits[p.id]} for p in chosen]))
    assert list(steps(tmp_path)) == ["collected", "quality", "duplicates", "decontamination", "traps", "candidates",
                                     "families in reach", "difficulty", "diversity"]  # fmt: skip
    domains = json.loads((tmp_path / "domains.json").read_text())
    assert sum(d["chosen"] for d in domains) == 12 and sum(d["pool"] for d in domains) == len(honest)


def test_recorded_rates_cost_nothing(make_context: Any, drive: Any, tmp_path: Path) -> None:
    """Where rows carry rates only the others are asked; a problem that any model always solves leaves."""
    path = write_lines(
        tmp_path / "own.jsonl",
        problems(40, pass_rate=lambda i: 0.5 if i < 20 else None, rates=lambda i: {"a": 1.0 if i < 5 else 0.25, "b": 0.0} if i < 20 else None),
    )  # fmt: skip
    config = curate.Config(**SMALL | dict(sources=[str(path)], against=[], family_high=1.0))
    drive(curate.run(config, {}, make_context(tmp_path, "curate")))
    asked = {r["problem_id"] for r in read_lines(tmp_path / "work/curate/samples.jsonl") if "problem_id" in r}
    own = load_problems([str(path)], "train")
    assert asked == {p.id for p in own[20:]}
    rows = {r["id"]: r for r in read_lines(tmp_path / "problems.jsonl")}
    assert not {p.id for p in own[:5]} & set(rows) and steps(tmp_path)["difficulty"][0] - steps(tmp_path)["difficulty"][1] >= 5
    for p in own[5:20]:
        if p.id in rows:
            assert rows[p.id]["pass_rate"] == 0.5 and rows[p.id]["rates"] == {"a": 0.25, "b": 0.0}


def test_why_answers_got_what_they_got(make_context: Any, drive: Any, tmp_path: Path) -> None:
    """A step's verdicts are counted by their reason, as grpo counts them."""
    events = drive(curate.run(curate.Config(**SMALL), {}, make_context(tmp_path, "curate")))
    reports = [e for e in events if isinstance(e, StepReport) and "verdicts" in e.extra]
    assert reports and sum(sum(r.extra["verdicts"].values()) for r in reports) == SMALL["candidates"] * SMALL["samples"]
    assert {k for r in reports for k in r.extra["verdicts"]} <= {"right", "wrong", "no answer", "unreadable"}


def test_a_made_problem_that_nobody_can_grade_is_counted(make_context: Any, drive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = pytest.importorskip("reasoning_gym.factory", reason="needs Reasoning Gym: pip install 'shoestring[gym]'")
    real = factory.create_dataset

    def made(name: str, **config: Any) -> list[dict[str, Any]]:
        data = real(name, **config)
        return [{**data[i], "answer": "" if i in (3, 4) else data[i]["answer"]} for i in range(config["size"])]

    monkeypatch.setattr(factory, "create_dataset", made)
    config = curate.Config(**SMALL | dict(sources=["gym:gcd?size=80&seed=2", "bundled:chain_sum"], samples=0))
    drive(curate.run(config, {}, make_context(tmp_path, "curate")))
    rows = {r["step"]: r for r in json.loads((tmp_path / "funnel.json").read_text())}
    assert rows["gradable"]["before"] - rows["gradable"]["after"] == 2 and rows["gradable"]["why"] == "2 unparseable answer (gym: gcd)"
    assert rows["collected"]["after"] == rows["gradable"]["before"]


def test_nobody_is_asked(make_context: Any, drive: Any, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", problems(60, pass_rate=lambda i: (i % 10) / 10, tokens=lambda i: 10 + i if i % 3 else None))
    keys = dict(sources=[str(path)], against=[], samples=0, count=10, with_trace=True, family_high=1.0)
    events = drive(curate.run(curate.Config(**SMALL | keys | {"order": "easy-first"}), {}, make_context(tmp_path / "a", "curate")))
    assert not any(hasattr(e, "usages") for e in events) and "samples-of-base" not in [getattr(e, "kind", "") for e in events]
    rows = read_lines(tmp_path / "a/problems.jsonl")
    assert steps(tmp_path / "a")["with a trace"] == (60, 40) and "candidates" not in steps(tmp_path / "a")
    assert [r["pass_rate"] for r in rows] == sorted((r["pass_rate"] for r in rows), reverse=True) and len(rows) == 10
    chosen: dict[str, set[str]] = {}
    for how in ("random", "longest", "band", "k-centre"):
        config = curate.Config(**SMALL | keys | {"select": how, "band": [0.2, 0.4]})
        drive(curate.run(config, {}, make_context(tmp_path / how, "curate")))
        made = read_lines(tmp_path / how / "problems.jsonl")
        chosen[how] = {r["id"] for r in made}
        if how == "band":
            assert all(0.2 <= r["pass_rate"] <= 0.4 for r in made) and made
        if how == "longest":
            order = [int(r["prompt"].split()[0]) // 3 for r in made]
            assert order == sorted(order, reverse=True) and order[0] >= 58
    assert len({frozenset(c) for c in chosen.values()}) == 4


def test_other_models(make_context: Any, drive: Any, tiny_base: Path, tmp_path: Path) -> None:
    """Each answers every candidate; the higher rate counts, and the row says whose is whose."""
    config = curate.Config(**SMALL | dict(models=[str(tiny_base)], temperature=1.0, too_easy=1.0, family_high=1.0))
    context = make_context(tmp_path, "curate")
    drive(curate.run(config, {}, context))
    first, second = (read_lines(context.folder / f) for f in ("samples.jsonl", "samples-1.jsonl"))
    assert {r["problem_id"] for r in first if "text" in r} == {r["problem_id"] for r in second if "text" in r}
    for r in read_lines(tmp_path / "problems.jsonl"):
        assert set(r["rates"]) == {"base", str(tiny_base)} and r["pass_rate"] == max(r["rates"].values())
    before = files(tmp_path)
    drive(curate.run(config, {}, make_context(tmp_path, "curate")))  # a second attempt asks nobody again
    assert files(tmp_path) == before
    with pytest.raises(UserError, match="curate: models: "):
        curate.check(curate.Config(**SMALL | dict(models=["/nowhere/model"])), "")


def test_a_large_pool_chooses_from_the_file(make_context: Any, drive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's file in place of memory: bad rows counted, the same kind of result, and a second attempt takes it up."""
    monkeypatch.setattr(_curate_pool, "LIGHT", 30)
    _curate_pool.is_large.cache_clear()
    path = tmp_path / "own.jsonl"
    write_lines(path, problems(80, tokens=lambda i: 5 + i))
    path.write_text(path.read_text() + "not json\n")
    keys = dict(sources=[str(path)], against=[], family_high=1.0)
    config = curate.Config(**SMALL | keys)
    assert curate.reads(config, False) == []
    curate.check(config, "")
    drive(curate.run(config, {}, make_context(tmp_path, "curate")))
    rows = read_lines(tmp_path / "problems.jsonl")
    assert len(rows) == 12 and all(r["prompt"] and r["answer"] and r["licence"] == "mit" for r in rows)
    assert steps(tmp_path)["collected"] == (81, 81) and steps(tmp_path)["candidates"][1] == 20
    assert set(rows[0]) == {*Problem.__dataclass_fields__, "pass_rate"}
    pool = read_lines(tmp_path / "work/curate/pool.jsonl")
    assert len(pool) == steps(tmp_path)["traps"][1] and all(p["prompt"] for p in pool)
    before = files(tmp_path)
    drive(curate.run(config, {}, make_context(tmp_path, "curate")))
    assert files(tmp_path) == before
    with pytest.raises(UserError, match="no such file"):
        curate.check(curate.Config(**SMALL | dict(sources=[str(tmp_path / "gone.jsonl")])), "")
    _curate_pool.is_large.cache_clear()


def test_what_is_large() -> None:
    assert not _curate_pool.is_large(tuple(f"bundled:{f}" for f in ("chain_sum", "products", "lcm", "gcd", "syllogism")))
    assert _curate_pool.is_large(("gym:lcm?size=4000", "gym:gcd?seed=1&size=1500")) and not _curate_pool.is_large(("gym:lcm",))
    assert _curate_pool.tried("gym:lcm?size=9000&seed=3") == "gym:lcm?seed=3&size=20" and _curate_pool.tried("gym:lcm") == "gym:lcm?size=20"
    config = curate.Config(sources=["gym:lcm?size=9000&seed=3", "bundled:gcd"], against=["bundled:lcm"])
    assert curate.reads(config, False) == [("gym:lcm?seed=3&size=20", "train"), ("bundled:gcd", "train"), ("bundled:lcm", "test")]


def test_forecast() -> None:
    facts = Facts(ModelShape(2, 32, 4, 2, 8, 48, 61, True), prior(frozenset(), 1), "m/machine-second", "curate")

    def seconds(**keys: Any) -> float:
        return sum(u.quantity for u in curate.forecast(curate.Config(**SMALL | keys), facts).usages)

    assert seconds(samples=0) < seconds() < seconds(sources=[*SOURCES, "gym:lcm?size=60000"])
    made = curate.forecast(curate.Config(**SMALL | dict(samples=0)), facts)
    assert made.problems == 12 and made.tokens == 0 and made.sampled == 0


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (dict(samples=-1), "samples = -1"), (dict(samples=0, models=["x"]), "models are asked"), (dict(select="best"), "select = 'best'"),
        (dict(order="hard-first"), "order = 'hard-first'"), (dict(band=[0.5]), "band"), (dict(band=[0.9, 0.1]), "band"),
        (dict(select="random", within="length"), "does not read it"), (dict(clusters=0), "clusters = 0"), (dict(language="fr"), "language"),
    ],
)  # fmt: skip
def test_refusals(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        curate.Config(**SMALL | keys)
