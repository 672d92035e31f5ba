"""The model card, and which bases can be opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoestring import export, recipe, stages
from shoestring.records import UserError

TEXT = 'name = "x"\nbudget = "1 USD"\nbase = "org/model"\nseed = 3\n[[stage]]\nuse = "sft"\n[[stage]]\nuse = "grpo"\n'


@pytest.fixture
def made() -> recipe.Recipe:
    return recipe.loads(TEXT, stages.configs())


def score(family: str, accuracy: float | None, **rest: Any) -> dict[str, Any]:
    return {"model": "grpo", "benchmark": "unseen", "family": family, "n": 40, "accuracy": accuracy, "ci95": [0.4, 0.6], **rest}


def test_the_card_says_what_it_was_made_of(tmp_path: Path, made: recipe.Recipe) -> None:
    (tmp_path / "scores.json").write_text(json.dumps([score("macro", 0.5), score("lcm", 0.9), score("macro", None)]))
    rows = [{"source": "gym lcm", "licence": "Apache-2.0"}, {"source": "mine", "licence": ""}, {"source": "mine", "licence": ""}]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = export.card(tmp_path, made, {"model_name": "grpo"})
    front, _, body = text.removeprefix("---\n").partition("---\n")
    assert "base_model: org/model" in front and "library_name: transformers" in front
    assert "Weights: grpo. Stages: sft → grpo." in body and made.hash in body and "seed 3" in body
    assert body.count("- mine (licence not stated)") == 1 and "- gym lcm (Apache-2.0)" in body
    assert "| grpo | unseen | 50.0% | 40.0% to 60.0% | 40 |" in body
    assert "90.0%" not in body, "families stand in the report"


def test_a_card_without_scores(tmp_path: Path, made: recipe.Recipe) -> None:
    text = export.card(tmp_path, made, {"model_name": "base"})
    assert "## Scores" not in text and "## Data" not in text and "bill.json" in text


def test_bases_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert not export.is_local("some-org/some-model"), "may be downloaded"
    export.check_base("some-org/some-model")
    for base in ("nowhere", "./nowhere", "/no/where", "x.gguf", "a/b/c"):
        with pytest.raises(UserError):
            export.check_base(base)


def test_what_trains_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(UserError, match=r"training needs torch: pip install 'shoestring\[train\]'"):
        export.check_base("smollm2-135m-instruct")


def test_a_full_disk_at_the_end(tmp_path: Path, made: recipe.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has an error of its own; it becomes a line all the same, and the old model stands."""
    tiny_run = pytest.importorskip("tiny_run")
    base = tiny_run.make_world().base
    out = export.write_model(tmp_path, base, None, made, {"model_name": "base"})
    before = tiny_run.digest(out / "model.safetensors")
    import safetensors

    from shoestring.models import folder

    for error in (OSError(28, "No space left on device"), safetensors.SafetensorError("I/O error: No space left")):

        def full(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(folder, "save_file", full)
        with pytest.raises(UserError, match="model could not be written.*--resume"):
            export.write_model(tmp_path, base, None, made, {"model_name": "base"})
    assert tiny_run.digest(out / "model.safetensors") == before
