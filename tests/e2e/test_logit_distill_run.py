"""A whole run that distils from logits, on given and on its own answers: metered, killed and resumed to the same weights, capped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import RECIPE, World, entries, metrics, steps_done, total, wait_for, weights

from shoestring.cost.ledger import Ledger

STAGES = """
[[stage]]
use = "logit_distill"
name = "kd"
teacher = "{teacher}"
epochs = 6
batch = 8
lr = 1e-2

[[stage]]
use = "logit_distill"
name = "gkd"
teacher = "{teacher}"
on_policy = 0.5
loss = "jsd"
beta = 0.3
max_new = 8
epochs = 4
batch = 8
lr = 5e-3
"""
HEAD, TAIL = (
    RECIPE.split('[[stage]]\nuse = "sft"')[0],
    '[[stage]]\nuse = "evaluate"' + RECIPE.rsplit('[[stage]]\nuse = "evaluate"', 1)[1],
)


@pytest.fixture(scope="module")
def teacher(world: World) -> Path:
    """Larger than the base, random, with its tokenizer."""
    from shoestring.models import folder as folders
    from shoestring.models.config import DecoderConfig
    from shoestring.models.decoder import Decoder

    made = world.root / "teacher"
    if made.exists():
        return made
    like = Path(shutil.copytree(world.base, world.root / "teacher-like"))
    config = json.loads((like / "config.json").read_text()) | {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
    }
    (like / "config.json").write_text(json.dumps(config))
    sizes = DecoderConfig(
        family="llama", layers=3, hidden=48, heads=3, kv_heads=1, head_dim=16, intermediate=64, vocab=49152,
        norm_eps=1e-5, rope_theta=10000.0, tied=True, max_positions=1024,
    )  # fmt: skip
    return folders.save(Decoder(sizes).randomise(4, 0.2), made, like)


def recipe(world: World, folder: Path, teacher: Path, **values: Any) -> Path:
    text = HEAD + STAGES.replace("{teacher}", str(teacher)) + TAIL
    return world.recipe(folder, text, **values)


@pytest.fixture(scope="module")
def whole(world: World, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kd")
    world.ok("run", recipe(world, folder, teacher), "--runs", folder)
    return folder / "tiny"


@pytest.mark.slow
def test_it_ends_closer_to_its_teacher_scored_and_accounted_for(whole: Path) -> None:
    assert json.loads((whole / "run.json").read_text())["status"] == "finished"
    assert {r["model"] for r in json.loads((whole / "scores.json").read_text())} >= {"base", "gkd"}
    rows = metrics(whole)
    for stage in ("kd", "gkd"):
        before, after = (r for r in rows if r["stage"] == f"{stage}.closeness")
        assert after["kl"] < 0.95 * before["kl"] and 0 <= after["agreement"] <= 1
    assert sum(r.get("on_policy_rows", 0) for r in rows if r["stage"] == "gkd") > 10
    with Ledger.open(whole / "ledger.jsonl") as ledger:
        assert ledger.verify() == len(entries(whole)) and not ledger.open_reservations()
    assert 0 < total(whole) < 200
    planned = {s["name"]: s for s in json.loads((whole / "plan.json").read_text())["stages"]}
    assert planned["kd"]["minutes"]["mid"] > 0 and "teacher weights" in json.dumps(planned["gkd"])


@pytest.mark.slow
def test_killed_and_resumed_ends_in_the_same_weights(whole: Path, world: World, teacher: Path, tmp_path: Path) -> None:
    path, run = recipe(world, tmp_path, teacher), tmp_path / "tiny"
    for stage, step in (("kd", 4), ("gkd", 5)):
        process = world.start("run", path, "--runs", tmp_path, *(["--resume"] if run.exists() else []), often=True)
        wait_for(lambda stage=stage, step=step: steps_done(run, stage) >= step, process)
        process.kill()
        process.communicate()
    world.ok("run", path, "--runs", tmp_path, "--resume", often=True)
    assert weights(run) == weights(whole)


@pytest.mark.slow
def test_it_stops_at_the_budget_with_a_scored_model(whole: Path, world: World, teacher: Path, tmp_path: Path) -> None:
    """The stage would take a hundred times the money."""
    path, run = recipe(world, tmp_path, teacher, budget="50 USD"), tmp_path / "tiny"
    world.ok("run", path, "--runs", tmp_path, "--set", "gkd.epochs=4000")
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert total(run) <= 50 and (run / "model" / "model.safetensors").exists() and 0 < steps_done(run, "gkd") < 10000
    assert {r["model"] for r in json.loads((run / "scores.json").read_text())} >= {"base", "gkd"}


@pytest.mark.slow
def test_another_tokenizer_is_refused_before_a_folder_is_made(world: World, teacher: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    tables = json.loads((other / "tokenizer.json").read_text())
    a, b = list(tables["model"]["vocab"])[300:302]
    vocab = tables["model"]["vocab"]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (other / "tokenizer.json").write_text(json.dumps(tables))
    line = world.run("run", recipe(world, tmp_path, other), "--runs", tmp_path).one_line()
    assert "different tokenizers" in line and str(other) in line and str(world.base) in line
    assert not (tmp_path / "tiny").exists()
