"""Templates: each plans as it stands, quickstart is the recipe of the repository, nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring import cli, plan, recipe, stages
from shoestring.commands import init
from shoestring.cost.prices import PriceBook
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.machine import prior

ROOT = Path(__file__).resolve().parents[3]
SMOLLM2 = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)


@pytest.mark.parametrize("name", init.templates())
def test_a_template_plans_within_its_budget(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.toml"
    assert cli.main(["init", name, "--out", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert out.read_text().count("#") >= 6, "commented"
    made, book = recipe.load(out, stages.configs()), PriceBook.default()
    planned = plan.make(made, book, book.machine_sku(made.machine, made.rate), SMOLLM2, prior(frozenset(), 2))
    plan.check_inputs(planned)
    plan.refuse_if_too_small(planned)


def test_quickstart_is_the_one_of_the_repository() -> None:
    assert init.templates()["quickstart"].read_text() == (ROOT / "recipes" / "quickstart.toml").read_text()


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init"]) == 0
    listed = capsys.readouterr().out
    assert cli.main(["init", "--list"]) == 0 and capsys.readouterr().out == listed
    assert [line.split()[0] for line in listed.splitlines()] == ["grpo", "quickstart", "sft"]


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.toml").write_text("mine")
    assert cli.main(["init", "sft"]) == 2 and "--force" in capsys.readouterr().err
    assert (tmp_path / "sft.toml").read_text() == "mine"
    assert cli.main(["init", "sft", "--force"]) == 0 and "[[stage]]" in (tmp_path / "sft.toml").read_text()
    assert cli.main(["init", "stf"]) == 2 and "did you mean 'sft'" in capsys.readouterr().err
    assert cli.main(["init", "sft", "--out", "no/where.toml"]) == 2 and "no such folder" in capsys.readouterr().err
    assert cli.main(["init", "sft", "--out", str(tmp_path)]) == 2 and "folder" in capsys.readouterr().err
