"""The held-out probe of a stage that trains: which problems, when, what it says, and that a resumed stage asks nothing twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoestring.records import Intent, Problem, StepReport, UserError
from shoestring.stages import probing
from shoestring.stages.context import Context, write_lines
from shoestring.stages.prompts import to_row


def problems(n: int, domain: str) -> list[Problem]:
    return [Problem.make(f"{domain} {i}?", str(i), domain=domain) for i in range(n)]


def inputs(folder: Path, pool: Sequence[Problem], chosen: Sequence[Problem] = ()) -> dict[str, Path]:
    write_lines(folder / "pool.jsonl", map(to_row, pool))
    write_lines(folder / "problems.jsonl", map(to_row, chosen))
    return {"pool": folder / "pool.jsonl", "problems": folder / "problems.jsonl"}


def context(folder: Path, worth: float | None = 0.01) -> Context:
    known: dict[str, Any] = {f.name: None for f in dataclasses.fields(Context)}
    known |= {"stage": "sft", "folder": folder, "machine": "m", "worth": worth, "clock": lambda: 5.0, "accrued": lambda: 1.0}
    return Context(**known | {"usd": lambda s: s, "planned_seconds": 100.0, "checkpoint_seconds": 55.0})


def test_the_probe_is_fixed_and_never_trained_on(tmp_path: Path) -> None:
    pool, chosen = problems(90, "a") + problems(60, "b") + problems(2, "c"), problems(30, "a")
    given = inputs(tmp_path, pool, chosen)
    held = probing.held_out(given, "sft")
    assert held == probing.held_out(given, "grpo") and len(held) == 20 + 20 + 1, "a third of a family at most"
    assert not {p.id for p in held} & {p.id for p in chosen}
    probe = probing.of(context(tmp_path), given, 60)
    assert probe is not None and probing.of(context(tmp_path, None), given, 60) is None
    families = {d: [p for p in pool if p.domain == d] for d in "abc"}
    left = probing.without(families, probe)
    assert sum(map(len, left.values())) == 152 - 41 and not {p.id for ps in left.values() for p in ps} & {p.id for p in held}
    assert probing.without(families, None) == families
    for bad in ({}, inputs(tmp_path, problems(5, "a"), problems(5, "a"))):
        with pytest.raises(UserError, match="worth|curate"):
            probing.held_out(bad, "sft")


class Asked:
    """A trainer and what its model would answer: right for the first `share` of the problems, by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shares: dict[int, float]) -> None:
        import shoestring.stages.workbench as workbench

        self.step, self.model, self.shares, self.calls = 0, None, shares, 0
        monkeypatch.setattr("shoestring.generate.engine.Engine", lambda *a: None)
        monkeypatch.setattr(workbench, "sample", self.sample)

    def sample(self, engine: Any, requests: Any, asked: Sequence[Problem], *rest: Any, reasons: Any) -> list[Any]:
        self.calls += 1
        reasons.update({"right": round(self.shares[self.step] * len(asked))})
        return [SimpleNamespace(score=float(i < self.shares[self.step] * len(asked)), tokens=(1, 2)) for i in range(len(asked))]


TOKENIZER: Any = SimpleNamespace(end=0, ends=frozenset([0]), chat=lambda messages: (1,))


def look(probe: probing.Probe, trainer: Any, answer: str = "go") -> tuple[str, list[Any]]:
    events, seen = probe.look(trainer, TOKENIZER), []
    send = None
    try:
        while True:
            event = events.send(send)
            seen.append(event)
            send = answer if isinstance(event, Intent) else None
    except StopIteration as e:
        return e.value, seen


def test_looks_at_intervals_and_stops_when_it_does_not_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    money = iter([0.00, 0.05, 0.10, 0.15, 0.2])
    given = inputs(tmp_path, problems(290, "a"))
    trainer: Any = Asked(monkeypatch, {0: 0.2, 10: 0.5, 20: 0.5, 30: 0.51})
    mine = dataclasses.replace(context(tmp_path), accrued=lambda: next(money))
    probe = probing.of(mine, given, 60)
    assert probe is not None and len(probe.problems) == 96 and probe.every == 10
    said, reports = [], []
    for trainer.step in range(60):
        what, seen = look(probe, trainer)
        said.append(what)
        reports += [e for e in seen if isinstance(e, StepReport)]
        if what == "enough":
            break
    assert trainer.step == 30 and set(said[:-1]) == {"go"} and trainer.calls == 4
    assert [r.step for r in reports] == [1, 2, 3, 4] and {r.stage for r in reports} == {"sft.probe"}
    first, second, third, last = (r.extra for r in reports)
    assert [r.extra["verdicts"]["right"] for r in reports] == [19, 48, 48, 49]
    assert "pays" not in first and second["pays"] and not third["pays"] and not third["early_stop"] and last["early_stop"]
    assert last["since_step"] == 10 and last["usd_since"] == pytest.approx(0.10) and "stopped early at step 30 of 60" in last["notice"]
    assert "at $0.01 a point" in second["notice"] and "+29.2 points for $0.0500 since step 0" in second["notice"]

    again = probing.of(mine, given, 60)  # killed and resumed: the journal answers
    assert again is not None
    trainer.step = 20
    assert look(again, trainer) == ("go", []) and trainer.calls == 4
    trainer.step = 30
    assert look(again, trainer) == ("enough", []) and trainer.calls == 4
    rows = [json.loads(line) for line in (tmp_path / "probe.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "step" in r] == [0, 10, 20, 30]


def test_no_money_for_a_probe_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    trainer: Any = Asked(monkeypatch, {0: 0.5})
    probe = probing.of(context(tmp_path), inputs(tmp_path, problems(40, "a")), 6)
    assert probe is not None
    what, seen = look(probe, trainer, "stop")
    assert what == "stop" and [type(e) for e in seen] == [Intent] and not trainer.calls
