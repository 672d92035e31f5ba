"""`shoestring serve`: what it says of a bad command line, and the price that it hands to the server."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shoestring.cost.prices import PriceBook


@pytest.mark.parametrize(
    "line, words",
    [
        (["--port", "70000"], "--port 70000"),
        (["--rate", "cheap"], "--rate"),
        (["--prices", "/nowhere.toml"], "/nowhere.toml"),
    ],
    ids=str,
)
def test_a_bad_command_line_is_one_line(line: list[str], words: str, capsys: Any) -> None:
    from shoestring import cli

    assert cli.main(["serve", "/nowhere", *line]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said


def test_a_runs_folder_serves_its_model_under_its_name(monkeypatch: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    from shoestring import cli, export, serve

    asked: list[Any] = []
    monkeypatch.setattr(export, "base_folder", Path)
    monkeypatch.setattr(serve, "main", lambda folder, *a, name, **k: asked.append((folder, name)) or 0)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "run.json").write_text("{}")
    assert cli.main(["serve", str(tmp_path / "mine")]) == 2, "it has no model yet"
    (tmp_path / "mine" / "model" / "config.json").write_text("{}")
    (tmp_path / "small.gguf").write_bytes(b"")
    lines = ("mine", "mine/model", "small.gguf")
    for line in (*([str(tmp_path / x)] for x in lines), ["some-name"], ["some-name", "--name", "other"]):
        assert cli.main(["serve", *line]) == 0
    assert asked == [(tmp_path / "mine" / "model", "mine"), (tmp_path / "mine" / "model", ""),
                     (tmp_path / "small.gguf", "small"), (Path("some-name"), "some-name"), (Path("some-name"), "other")]  # fmt: skip


def test_the_price_that_is_handed_over(monkeypatch: Any) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    from shoestring.commands.serve import machine_rate
    from shoestring.models import device

    own = machine_rate(PriceBook.default(rate=Decimal("0.36")))
    assert own is not None and own.basis == "measured" and own.usd(10.0) == pytest.approx(Decimal("0.001"))
    like = machine_rate(PriceBook.default())
    assert like is not None and like.basis == "estimate" and like.source.startswith("like ")
    monkeypatch.setattr(device, "choose", lambda: torch.device("cuda"))
    assert machine_rate(PriceBook.default()) is None  # the comparable machine has no GPU
    assert machine_rate(PriceBook.default(rate=Decimal("2"))) is not None
