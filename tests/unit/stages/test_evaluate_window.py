"""Prompts and answers that do not fit the model's window (256 letters here) are refused before anything is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.generate import engine
from shoestring.records import UserError
from shoestring.stages import evaluate

LONG = "and again " * 12  # 120 letters


@pytest.fixture
def config(tmp_path: Path) -> evaluate.Config:
    path = tmp_path / "d.jsonl"
    rows = [{"question": f"what is {i} and {i}", "answer": f"#### {2 * i}"} for i in range(12)]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"question": LONG, "answer": "#### 1"}]))
    return evaluate.Config(benchmarks=["gsm8k"], data={"gsm8k": str(path)}, max_new=6)


@pytest.fixture
def prompt(config: Any, make_context: Callable[..., Any], tmp_path: Path) -> int:
    """Tokens of the longest prompt, with what the benchmark adds to it."""
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages import _evaluate_asks as asks
    from shoestring.stages._evaluate_window import longest
    from shoestring.stages.prompts import plain

    base = make_context(tmp_path / "none", "score").base
    chats = [plain(p) for bench in asks.loaded(config) for p in bench.problems]
    found = longest(Tokenizer(base), chats)
    assert found == max(len(m[0]["content"]) for m in chats) + 1 > len(LONG)
    return found


def refused(config: evaluate.Config, base: Path) -> str:
    with pytest.raises(UserError) as e:
        evaluate.check(config, str(base))
    assert "\n" not in str(e.value)
    return str(e.value)


def test_a_thinking_budget_beyond_the_window(config: Any, prompt: int, tiny_base: Path) -> None:
    """The last token that fits is allowed, one more is not; the line says which benchmark, keys and numbers."""
    room = 256 - prompt - 30
    fits = replace(config, thinking=[4, room], answer=30, parallel=0)
    evaluate.check(fits, str(tiny_base))
    said = refused(replace(fits, thinking=[4, room + 1]), tiny_base)
    assert said == (
        f"benchmark gsm8k: its longest prompt of {prompt} tokens, thinking = {room + 1} and answer = 30 are together 257 tokens, "
        f"more than the window of 256 of {tiny_base}: lower thinking or answer"
    )
    evaluate.check(replace(fits, thinking=[4, room + 1], max_problems=1), str(tiny_base))  # the longest is not asked
    evaluate.check(replace(fits, thinking=[999]), "a-hub/that-is-not-here")


def test_plain_answers(config: Any, prompt: int, tiny_base: Path) -> None:
    evaluate.check(replace(config, max_new=256 - prompt), str(tiny_base))
    assert "max_new = 250 are together" in refused(replace(config, max_new=250), tiny_base)


def test_the_model_that_it_is_compared_with(config: Any, prompt: int, tiny_base: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    keys = json.loads((tiny_base / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(keys | {"max_position_embeddings": prompt + 5}))
    assert f"the window of {prompt + 5} of {small}" in refused(replace(config, compare=str(small)), tiny_base)


def test_a_base_that_was_not_here_is_refused_when_the_stage_begins(
    config: Any, prompt: int, make_context: Any, drive: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(engine, "Engine", lambda *a: pytest.fail("nothing may be generated"))
    long = replace(config, thinking=[250], answer=30)
    with pytest.raises(UserError, match="thinking = 250 and answer = 30"):
        drive(evaluate.run(long, {}, make_context(tmp_path / "a", "score")))
    unseen = evaluate.Config(sources=["bundled:lcm"], per_family=2, shots=0, max_new=250, heldout=False)
    with pytest.raises(UserError, match="stage 'score': a prompt of .* window of 256: lower max_new$"):
        drive(evaluate.run(unseen, {}, make_context(tmp_path / "b", "score")))
    few = replace(unseen, shots=30, max_new=4)
    with pytest.raises(UserError, match="window of 256: lower shots or max_new$"):
        drive(evaluate.run(few, {}, make_context(tmp_path / "c", "score")))


def test_a_server_knows_its_own_window(config: Any, prompt: int, tiny_base: Path) -> None:
    pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")
    there = replace(config, endpoint="http://127.0.0.1:9/v1", endpoint_model="m", endpoint_price="machine", max_new=999)
    evaluate.check(there, str(tiny_base))
    assert prompt + 250 > 256
    assert "window of 256" in refused(replace(there, max_new=6, thinking=[250]), tiny_base), "forced in the base's tokens"


def test_what_could_not_be_asked_is_not_graded(make_context: Any, drive: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A prompt that the count by characters did not find is an error, not a wrong answer."""
    from shoestring.stages import _evaluate_window

    monkeypatch.setattr(_evaluate_window, "longest", lambda *a: 1)
    unseen = evaluate.Config(sources=["bundled:lcm"], per_family=2, shots=0, max_new=250, heldout=False)
    with pytest.raises(UserError, match="stage 'score': .* the window is 256"):
        drive(evaluate.run(unseen, {}, make_context(tmp_path / "a", "score")))
    assert not (tmp_path / "a" / "scores.json").exists()
