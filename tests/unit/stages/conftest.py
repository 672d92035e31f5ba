"""A stage run on a tiny model: a real folder, a tokenizer of letters, a clock of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


class Letters:
    """The tokenizer's stand-in: one token a letter; 0 opens the answer, 1 ends it."""

    end, ends = 1, frozenset([1])

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def chat(self, messages: Any) -> tuple[int, ...]:
        return (*self.encode("".join(m["content"] for m in messages)), 0)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(2 + ord(c) % 50 for c in text)

    def decode(self, ids: Any) -> str:
        return "".join(chr(100 + t) for t in ids if t > 1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def make_context(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """make(run_dir, stage, **rest) → a Context in which every clock reading is one second later."""
    from shoestring.estimate.flops import ModelShape
    from shoestring.estimate.machine import prior
    from shoestring.models import tokenizer
    from shoestring.stages.context import Context

    monkeypatch.setattr(tokenizer, "Tokenizer", Letters)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    def make(run_dir: Path, stage: str, **rest: Any) -> Context:
        base: dict[str, Any] = dict(
            stage=stage, seed=3, recipe_hash="hash", run_dir=run_dir, folder=run_dir / "work" / stage,
            checkpoints=run_dir / "checkpoints" / stage, base=tiny_base, weights=None, model_name="base",
            machine="x/machine-second", shape=ModelShape(2, 32, 4, 2, 8, 48, 61, True), profile=prior(frozenset(), 1),
            inputs={}, usd=lambda seconds: seconds * 1e-5, accrued=lambda: 0.0, clock=clock, checkpoint_seconds=1e9,
        )  # fmt: skip
        return Context(**(base | rest))

    return make


@pytest.fixture
def drive() -> Callable[..., list[Any]]:
    """drive(events, until) → everything that was yielded; the answer is "stop" from the step `until` on."""

    def answer(events: Any, until: int | None = None) -> list[Any]:
        from shoestring.records import Intent

        out: list[Any] = []
        reply = None
        while True:
            try:
                event = events.send(reply)
            except StopIteration:
                return out
            out.append(event)
            reply = None
            if isinstance(event, Intent):
                reply = "stop" if until is not None and event.step > until else "go"

    return answer


@pytest.fixture
def kill() -> Callable[..., int]:
    """kill(events, more) → the step of the only checkpoint; the stage is dropped `more` finished steps after it."""

    def drop(events: Any, more: int) -> int:
        from shoestring.records import Checkpoint, Intent

        saved: list[int] = []
        reply = None
        while True:
            event = events.send(reply)
            reply = "go" if isinstance(event, Intent) else None
            if isinstance(event, Checkpoint):
                saved.append(event.step)
            if isinstance(event, Intent) and saved and event.step > saved[0] + more:
                break
        assert len(saved) == 1
        events.gi_frame.f_locals["trainer"].saves.wait()  # the checkpoint's own thread: a kill within it is another test's
        events.close()
        return saved[0]

    return drop


@pytest.fixture
def traces(tmp_path: Path) -> dict[str, Path]:
    """Ten traces of unequal length, as distill leaves them."""
    from shoestring.stages.context import write_lines

    def row(i: int) -> dict[str, Any]:
        answer = "it is " + "so " * (i % 4) + str(2 * i + 1)
        messages = [{"role": "user", "content": f"please add {i} and {i + 1}"}, {"role": "assistant", "content": answer}]
        return {"problem_id": f"p{i}", "messages": messages}

    return {"traces": write_lines(tmp_path / "traces.jsonl", [row(i) for i in range(10)])}


@pytest.fixture
def run(request: Any, make_context: Any, drive: Any, traces: Any, tmp_path: Path) -> Callable[..., list[Any]]:
    """run(where, until, context, **keys) → the events of SFT on the traces; keys go over the test module's SETTINGS."""
    from shoestring.stages import sft

    def go(where: str, until: int | None = None, context: dict[str, Any] | None = None, **keys: Any) -> list[Any]:
        made = make_context(tmp_path / where, "sft", **(context or {}))
        return drive(sft.run(sft.Config(**(request.module.SETTINGS | keys)), traces, made), until)

    return go


@pytest.fixture
def reports() -> Callable[[list[Any]], list[Any]]:
    """The step reports among a stage's events."""
    from shoestring.records import StepReport

    return lambda events: [e for e in events if isinstance(e, StepReport)]


@pytest.fixture
def final_state() -> Callable[[Path], dict[str, Any]]:
    def read(folder: Path) -> dict[str, Any]:
        from shoestring.train.checkpoints import Checkpoints, read_tensors

        found = Checkpoints(folder, "hash").latest()
        assert found is not None and found.final
        return read_tensors(found.path)

    return read


@pytest.fixture
def grpo_inputs(tmp_path: Path) -> dict[str, Path]:
    """Eighteen problems of two families."""
    from shoestring.records import Problem
    from shoestring.stages.context import write_lines
    from shoestring.stages.prompts import to_row

    problems = [Problem.make(f"question {f}/{i}", str(i), domain=f"family{f}") for f in range(2) for i in range(9)]
    return {"pool": write_lines(tmp_path / "pool.jsonl", [to_row(p) for p in problems])}


@pytest.fixture
def go(
    request: Any, make_context: Any, drive: Any, grpo_inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Any]]:  # fmt: skip
    """go(where, until, **keys) → the events of GRPO; keys go over the test module's BASE. The reward: 1 where the answer's
    letters sum to an even number."""
    from shoestring import rewards
    from shoestring.stages import grpo, workbench

    def score_all(texts: list[str], problems: list[Any], **columns: Any) -> list[rewards.Verdict]:
        return [rewards.of_score(float(sum(map(ord, t)) % 2 == 0)) for t in texts]

    monkeypatch.setattr(workbench, "rewards", SimpleNamespace(score_all=score_all, tally=rewards.tally))

    def run(where: str, until: int | None = None, often: bool = False, **keys: Any) -> list[Any]:
        context = make_context(tmp_path / where, "grpo", **({"checkpoint_seconds": 0.0} if often else {}))
        return drive(grpo.run(replace(request.module.BASE, **keys), grpo_inputs, context), until)

    return run


@pytest.fixture
def same(final_state: Any, tmp_path: Path) -> Callable[[str, str], bool]:
    """same(a, b): whether two runs of GRPO ended with the same bits."""

    def equal(a: str, b: str) -> bool:
        import torch

        x, y = (final_state(tmp_path / w / "checkpoints" / "grpo") for w in (a, b))
        return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)

    return equal
