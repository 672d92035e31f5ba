"""The evaluate stage asks our server and our engine for the same weights: the same texts, verdicts and thinking, greedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

from shoestring.records import Intent, UserError
from shoestring.stages import evaluate, workbench
from shoestring.stages.context import Context, read_lines


@pytest.fixture
def ask(sharp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """ask(name, config) → the graded answers. The engine computes in fp32, as the server does."""
    import torch

    from shoestring.estimate.headers import model_shape
    from shoestring.estimate.machine import prior
    from shoestring.models import folder

    monkeypatch.setattr(workbench, "open_model", lambda context: (folder.load(sharp, torch.float32), None))

    def go(name: str, config: evaluate.Config) -> list[dict[str, Any]]:
        run = tmp_path / name
        ticks = iter(range(10**6))
        context = Context(
            stage="score", seed=3, recipe_hash="x", run_dir=run, folder=run / "work", checkpoints=run / "c", base=sharp, weights=None,
            model_name="base", machine="x/machine-second", shape=model_shape(str(sharp)), profile=prior(frozenset(), 1), inputs={},
            usd=lambda s: s, accrued=lambda: 0.0, clock=lambda: float(next(ticks)),
        )  # fmt: skip
        events, reply = evaluate.run(config, {}, context), None
        while True:
            try:
                reply = "go" if isinstance(events.send(reply), Intent) else None
            except StopIteration:
                break
        return [r for p in (run / "evaluations").glob("*.jsonl") for r in read_lines(p) if "problem_id" in r]

    return go


def same(a: list[dict[str, Any]], b: list[dict[str, Any]], *keys: str) -> None:
    def by(rows: list[dict[str, Any]]) -> dict[Any, Any]:
        return {(r["problem_id"], r["role"], r["budget"], r["sample"]): tuple(r[k] for k in keys) for r in rows}

    assert by(a) == by(b) and a


@pytest.fixture
def config(tmp_path: Path) -> evaluate.Config:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"}) + "\n" for i in range(5)))
    return evaluate.Config(benchmarks=["gsm8k"], data={"gsm8k": str(path)}, max_new=12)


def at(served: Any, config: evaluate.Config, **rest: Any) -> evaluate.Config:
    return replace(config, endpoint=served.url, endpoint_model="tiny", endpoint_price="machine", **rest)


def test_greedy_answers_are_the_same(served: Any, ask: Any, config: evaluate.Config) -> None:
    direct, over = ask("direct", config), ask("over", at(served, config))
    same(direct, over, "text", "tokens", "strict", "lenient", "said", "reason")


def test_samples_are_the_same(served: Any, ask: Any, config: evaluate.Config) -> None:
    """The seed of a sample is its own, so that even sampled answers agree."""
    drawn = replace(config, samples=3, temperature=1.0, top_p=0.9)
    direct, over = ask("direct", drawn), ask("over", at(served, drawn))
    same(direct, over, "text", "tokens", "strict")
    assert len({r["text"] for r in direct}) > 5


def test_forced_thinking_is_the_same(served: Any, ask: Any, config: evaluate.Config) -> None:
    forced = replace(config, thinking=[6, 14], waits=1, answer=30, parallel=2)
    direct, over = ask("direct", forced), ask("over", at(served, forced))
    same([r for r in direct if r["role"] == "thinking"], [r for r in over if r["role"] == "thinking"], "text", "tokens", "thinking_tokens", "waits_used")
    assert {r["role"] for r in over} == {"thinking", "parallel"}


def test_a_server_that_is_not_there_is_one_line(ask: Any, config: evaluate.Config) -> None:
    away = replace(config, endpoint="http://127.0.0.1:9/v1", endpoint_model="m", endpoint_price="machine")
    with pytest.raises(UserError) as e:
        ask("away", away)
    assert "\n" not in str(e.value)
