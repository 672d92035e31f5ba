"""Which bases can be opened, and the model folder at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring import export, recipe, stages
from shoestring.records import UserError

TEXT = 'name = "x"\nbudget = "1 USD"\nbase = "org/model"\nseed = 3\n[[stage]]\nuse = "sft"\n[[stage]]\nuse = "grpo"\n'


@pytest.fixture
def made() -> recipe.Recipe:
    return recipe.loads(TEXT, stages.configs())


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
    tiny_run = pytest.importorskip("tiny_run", reason="tests/e2e is not on the path: run pytest from the repository's folder")
    base = tiny_run.make_world().base
    out = export.write_model(tmp_path, base, None, made, {"model_name": "base"})
    before = tiny_run.digest(out / "model.safetensors")
    import safetensors

    from shoestring.models import shards

    for error in (OSError(28, "No space left on device"), safetensors.SafetensorError("I/O error: No space left")):

        def full(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(shards, "save_file", full)
        with pytest.raises(UserError, match="model could not be written.*--resume"):
            export.write_model(tmp_path, base, None, made, {"model_name": "base"})
    assert tiny_run.digest(out / "model.safetensors") == before
