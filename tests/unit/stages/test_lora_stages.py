"""Stages that train adapters: what moves, what is saved, what the next stage reads, and that a stop changes nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring import rewards  # noqa: E402
from shoestring.estimate import adapters  # noqa: E402
from shoestring.estimate.flops import ModelShape  # noqa: E402
from shoestring.records import Checkpoint, Problem, UserError  # noqa: E402
from shoestring.stages import grpo, sft  # noqa: E402
from shoestring.stages.context import write_lines  # noqa: E402
from shoestring.stages.prompts import to_row  # noqa: E402
from shoestring.stages.workbench import open_model  # noqa: E402
from shoestring.train.checkpoints import read_manifest, read_tensors  # noqa: E402

TINY = ModelShape(2, 32, 4, 2, 8, 48, 61, True)
SETTINGS: dict[str, Any] = dict(epochs=3, batch=4, lr=2e-2, rows=64, lora=3)
WAYS = [{}, {"quantise": "nf4"}, {"optimiser": "adamw8bit", "rslora": True, "lora_targets": "q_proj, down_proj"}]


@pytest.mark.parametrize("keys", WAYS, ids=str)
def test_it_learns_says_so_and_resumes_bit_for_bit(
    keys: dict[str, Any], run: Any, tmp_path: Path, final_state: Any, reports: Any
) -> None:
    whole = reports(run("whole", **keys))
    assert whole[-1].loss < 0.9 * whole[0].loss
    targets = sft.Config(**(SETTINGS | keys)).targets()
    assert whole[0].extra["trained_weights"] == adapters.adapter_parameters(TINY, 3, targets)
    assert whole[0].extra["adapters_moved"] == 2 * len(targets)
    assert all("adapters_moved" not in r.extra for r in whole[1:])
    for until in (2, 2, 5):
        run("parts", until, **keys)
    run("parts", **keys)
    a, b = (final_state(tmp_path / where / "checkpoints" / "sft") for where in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("keys", WAYS[:2], ids=str)
def test_only_the_last_checkpoint_has_the_merged_weights(
    keys: dict[str, Any], run: Any, make_context: Any, tmp_path: Path, tiny_base: Path
) -> None:
    events = run("kept", context={"checkpoint_seconds": 1.0}, save_total_limit=99, **keys)
    saved = [e for e in events if isinstance(e, Checkpoint)]
    sizes = [(e.path / "state.safetensors").stat().st_size for e in saved]
    assert len(saved) == 8 and max(sizes[:-1]) < sizes[-1]
    for e in saved:
        kinds = {k.partition("/")[0] for k in read_tensors(e.path)}
        assert "adapter" in kinds and ("master" in kinds) == e.final
    assert read_manifest(saved[-1].path)["state"]["lora"]["rank"] == 3
    model, masters = open_model(make_context(tmp_path / "later", "evaluate", weights=saved[-1].path))
    assert masters is not None and masters.keys() == dict(model.named_parameters()).keys()
    from shoestring.models import folder

    base = dict(folder.load(tiny_base).named_parameters())
    tensors = read_tensors(saved[-1].path)
    b, a = (tensors[f"adapter/blocks.0.adapted.out.o_proj_{x}"] for x in "BA")
    update = 32 / 3 * b @ a
    assert all(m.dtype == torch.float32 for m in masters.values()) and update.abs().max() > 1e-3
    if not keys:  # onto the base at full precision, which the bf16 model in training does not hold
        torch.testing.assert_close(masters["blocks.0.out"], base["blocks.0.out"] + update, rtol=0, atol=1e-6)
        assert torch.equal(masters["embedding"], base["embedding"])
    else:
        assert (masters["blocks.0.out"] - base["blocks.0.out"] - update).abs().max() > 1e-3


@pytest.mark.parametrize("saved_before", [False, True])
def test_a_stopped_stage_can_be_read_and_gone_on_from(
    saved_before: bool, run: Any, make_context: Any, tmp_path: Path, final_state: Any
) -> None:
    """Also where the step that it stops after stands already, without the merged weights."""
    pace: dict[str, Any] = {"context": {"checkpoint_seconds": 1.0}} if saved_before else {}
    stopped = run("parts", 3, **pace)[-1]
    assert isinstance(stopped, Checkpoint) and stopped.step == 3 and not stopped.final
    model, _ = open_model(make_context(tmp_path / "later", "evaluate", weights=stopped.path))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert not list(stopped.path.glob("*.part"))
    run("parts", **pace)
    run("whole")
    a, b = (final_state(tmp_path / where / "checkpoints" / "sft") for where in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_what_does_not_move_is_one_clear_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.train.optimiser import MasterAdamW

    monkeypatch.setattr(MasterAdamW, "_update", lambda *a: None)
    with pytest.raises(UserError, match="the LoRA has not moved after a step") as e:
        run("still")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"lora": 0, "quantise": "nf4"}, "quantise = 'nf4' needs lora"),
        ({"lora": 0, "rslora": True}, "rslora = True needs lora"),
        ({"lora": -1}, "lora = -1 is a rank"),
        ({"lora_alpha": 0.0}, "lora_alpha = 0.0 must be above zero"),
        ({"lora_targets": "q_proj,query"}, "lora_targets: no projection 'query'"),
        ({"lora_targets": ()}, "lora_targets: names none"),
        ({"quantise": "int8"}, "quantise = 'int8' must be one of none, nf4"),
        ({"optimiser": "muon"}, '"muon" is for whole matrices'),
    ],
    ids=str,
)
@pytest.mark.parametrize("stage", [sft, grpo])
def test_keys_that_make_no_sense(stage: Any, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        stage.Config(**({"lora": 4} | keys))


def test_the_forecast_is_the_adapters() -> None:
    shape = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
    n, own = shape.parameters(), adapters.adapter_parameters(shape, 16)
    full, thin, four = sft.Config(), sft.Config(lora=16), sft.Config(lora=16, quantise="nf4")
    assert (full.checkpoint_bytes(shape), thin.checkpoint_bytes(shape)) == (12 * n, 4 * n + 12 * own)
    parts = [c.memory(shape).parts for c in (full, thin, four)]
    assert parts[1]["master weights"] == 4 * own and parts[0]["master weights"] == 4 * n
    assert parts[2]["compute copy"] < 0.6 * parts[1]["compute copy"] and "dequantised matrix" in parts[2]
    body = shape.layers * shape.layer_weights()
    saved = full.training_flops(shape, [100, 50], 60) - thin.training_flops(shape, [100, 50], 60)
    assert saved == pytest.approx(150 * (2 * body - 6 * own) + 60 * 2 * shape.vocab * shape.hidden)
    assert full.training_flops(shape, [9]) == pytest.approx(3 / 2 * (thin.training_flops(shape, [9]) - 54 * own), rel=1e-2)


def test_rollouts_see_every_step(
    make_context: Any, drive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: Any
) -> None:
    """GRPO after an SFT on adapters: the engine's own weights change with each update, by what the adapters say."""
    from shoestring.generate.engine import Engine
    from shoestring.stages import workbench

    def grade(text: str, problem: Problem) -> float:
        return float(sum(map(ord, text)) % 2 == 0)

    def score_all(texts: list[str], problems: list[Problem], **columns: Any) -> list[rewards.Verdict]:
        return [rewards.of_score(grade(t, p)) for t, p in zip(texts, problems, strict=True)]

    monkeypatch.setattr(workbench, "rewards", SimpleNamespace(score_all=score_all, tally=rewards.tally))
    seen: list[Any] = []
    refresh = Engine.refresh

    def watched(self: Any) -> None:
        refresh(self)
        seen.append([self.model.weight(b, name).clone() for b in self.model.blocks for name in ("qkv", "down")])

    monkeypatch.setattr(Engine, "refresh", watched)
    problems = [Problem.make(f"question {i}", str(i), domain="sums") for i in range(6)]
    inputs = {"pool": write_lines(tmp_path / "pool.jsonl", [to_row(p) for p in problems])}
    config = grpo.Config(steps=3, prompts=3, group=4, lr=2e-2, warmup=0, max_new=6, rows=64, lora=4)
    events = drive(grpo.run(config, inputs, make_context(tmp_path / "a", "grpo")))
    told = reports(events)
    assert len(told) == 3 and len(seen) == 4  # the engine's making, and each step's beginning
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    for before, after, r in zip(seen[1:], seen[2:], told, strict=False):
        assert r.loss is not None and any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert sum("adapters_moved" in r.extra for r in told) == 1
    again = drive(grpo.run(config, inputs, make_context(tmp_path / "b", "grpo", weights=events[-2].path)))
    assert reports(again)[-1].step == 3
