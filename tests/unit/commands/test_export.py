"""`shoestring export` on tiny models: the file, what is said of it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
package = pytest.importorskip("gguf", reason="needs gguf: pip install 'shoestring[train]'")

import gguf_models  # noqa: E402

from shoestring import cli  # noqa: E402
from shoestring.models import gguf_check, gguf_write  # noqa: E402

SCHEMA = Path(__file__).resolve().parents[3] / "docs" / "schemas" / "export.schema.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with its model, as a finished run leaves it."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    run.mkdir()
    (run / "run.json").write_text("{}")
    gguf_models.make(run / "model", "llama")
    (run / "model" / "README.md").write_text('---\nlicense: "apache-2.0"\n---\n')
    return run


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_runs_model(kind: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
    out = tmp_path / "m.gguf"
    assert cli.main(["export", str(made), "--gguf", kind, "--out", str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    jsonschema.validate(data, json.loads(SCHEMA.read_text()))
    assert data["bytes"] == out.stat().st_size and data["licence"] == "apache-2.0" and data["closeness"]["same_top_token"] > 0.9
    assert package.GGUFReader(str(out)).fields["general.name"].contents() == "mine"
    text = (tmp_path / "m.Modelfile").read_text()
    assert text.splitlines()[1] == "FROM ./m.gguf" and "apache-2.0" in text and data["modelfile"]["template"]


def test_in_words_with_the_name_of_the_run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(gguf_check.FLOOR, "q4_k_m", 0.0)  # random weights are no model that four bits would keep
    assert cli.main(["export", str(made / "model"), "--gguf", "q4_k_m"]) == 0
    said = capsys.readouterr().out
    assert "mine-q4_k_m.gguf: " in said and "fell back: 29 tensors" in said and "Q4_K → Q5_0" in said
    assert "logits: largest difference" in said and "same top token on" in said and "pre-tokenizer gpt-2" in said
    assert (tmp_path / "mine-q4_k_m.gguf").exists() and (tmp_path / "mine-q4_k_m.Modelfile").exists()


def refused(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    assert cli.main([str(a) for a in args]) == 2
    done = capsys.readouterr()
    assert done.err.count("\n") == 1 and not done.out
    return done.err


def test_a_file_that_computes_something_else_is_removed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gguf_write, "_permute", lambda w, heads: w)
    said = refused(capsys, "export", made, "--gguf", "f16", "--out", tmp_path / "m.gguf")
    assert "removed, because the same token comes first on" in said and not list(tmp_path.iterdir())


def test_bad_input_is_one_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "have.gguf").write_bytes(b"x")
    assert "exists" in refused(capsys, "export", made, "--gguf", "f16", "--out", tmp_path / "have.gguf")
    (tmp_path / "mine.Modelfile").write_text("FROM ./mine.gguf\nSYSTEM be brief")
    assert "mine.Modelfile: this file exists" in refused(capsys, "export", made, "--gguf", "f16", "--out", tmp_path / "mine.gguf")
    assert "be brief" in (tmp_path / "mine.Modelfile").read_text() and not (tmp_path / "mine.gguf").exists()
    assert ".gguf" in refused(capsys, "export", made, "--gguf", "f16", "--out", tmp_path / "have.bin")
    assert "is not there" in refused(capsys, "export", made, "--gguf", "f16", "--out", tmp_path / "no" / "m.gguf")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert "no model yet" in refused(capsys, "export", tmp_path / "run", "--gguf", "f16")
    assert (tmp_path / "have.gguf").read_bytes() == b"x"
    with pytest.raises(SystemExit) as e:
        cli.main(["export", str(made), "--gguf", "q2_k"])
    assert e.value.code == 2
