"""A run whose stages train adapters: it ends, the model and its adapter load elsewhere, and the account is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import RECIPE, World, entries, metrics, total

from shoestring.cost.ledger import Ledger

LORA = RECIPE.replace("lr = 1e-2", "lr = 1e-2\nlora = 4").replace("lr = 1e-3", "lr = 1e-3\nlora = 4")


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    world.ok("run", world.recipe(folder, LORA, epochs=6, steps=4), "--runs", folder)
    return folder / "tiny"


@pytest.mark.slow
def test_it_ends_scored_and_accounted_for(run: Path) -> None:
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert {r["model"] for r in json.loads((run / "scores.json").read_text())} >= {"base", "grpo"}
    assert sum("adapters_moved" in r for r in metrics(run) if r["stage"] == "sft") == 1
    with Ledger.open(run / "ledger.jsonl") as ledger:
        assert ledger.verify() == len(entries(run)) and not ledger.open_reservations()
    assert 0 < total(run) < 200


@pytest.mark.slow
def test_transformers_reads_the_model_and_peft_the_adapter(run: Path, world: World, relative: Any) -> None:
    """Both stages' adapters in one, on the base: fp32's own result before the export rounds it to bf16."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'shoestring[test]'")
    from shoestring.models import folder
    from shoestring.train.checkpoints import read_tensors

    def load(path: Path) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    ids = torch.randint(3, 49000, (1, 24), generator=torch.Generator().manual_seed(1))
    state = json.loads((run / "run.json").read_text())
    masters = {k.removeprefix("master/"): v for k, v in read_tensors(run / state["weights"], "master/").items()}
    wide = folder.save(folder.load(world.base), run / "wide", world.base, masters)
    adapted = peft.PeftModel.from_pretrained(load(world.base), str(run / "model" / "adapter"))
    assert adapted.peft_config["default"].r == 8
    with torch.no_grad():
        ours, theirs, exported, base = (m(ids).logits for m in (load(wide), adapted, load(run / "model"), load(world.base)))
    assert relative(theirs, base) > 0.05
    assert relative(ours, theirs) < 1e-5
    assert relative(exported, theirs) < 0.05 * relative(theirs, base) + 0.02
