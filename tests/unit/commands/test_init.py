"""Templates: each plans as it stands, quickstart is the recipe of the repository, nothing is overwritten."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import jsonschema
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


# a budget


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "shape_of", lambda base: SMOLLM2)
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def problems(path: Path, n: int = 60, **more: object) -> str:
    rows = [{"prompt": f"What is {a} + {a + 1}?", "answer": str(2 * a + 1), "solution": f"Answer: {2 * a + 1}", **more} for a in range(n)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


ASK = ["init", "--budget", "0.2", "--base", "smollm2-135m-instruct"]


def test_a_budget_becomes_a_recipe(cheap: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ASK, "--problems", problems(tmp_path / "p.jsonl"), "--out", "mine.toml"]) == 0
    said = capsys.readouterr().out
    assert "wrote mine.toml" in said and "mine.problems.jsonl" in said and "learn first" in said
    made = recipe.load("mine.toml", stages.configs())
    book = PriceBook.default()
    planned = plan.make(made, book, book.machine_sku(made.machine, made.rate))
    plan.check_inputs(planned)
    assert planned.total_usd().high <= 0.2 and made.name == "mine" and made.rate is None
    split = [json.loads(line)["split"] for line in (tmp_path / "mine.problems.jsonl").read_text().splitlines()]
    assert split.count("test") == 20 and len(split) == 60
    assert cli.main([*ASK, "--problems", "p.jsonl", "--out", "mine.toml"]) == 2 and "--force" in capsys.readouterr().err


def test_json_of_the_candidates(cheap: None, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*ASK, "--problems", "bundled:chain_sum", "--json", "--pick", "lora", "--force"]
    assert cli.main(args) == 0
    made = json.loads(capsys.readouterr().out)
    jsonschema.validate(made, json.loads((ROOT / "docs/schemas/init.schema.json").read_text()))
    assert made["picked"] == "lora" and Path(made["wrote"]).read_text() == made["candidates"][2]["recipe"]
    assert [c["name"] for c in made["candidates"]] == ["distil-sft", "sft-grpo", "lora"]
    assert sum(c["recommended"] for c in made["candidates"]) == 1
    assert cli.main([*args, "--budget", "0.000001"]) == 2
    assert "the least that works is" in capsys.readouterr().err


def test_bad_lines_are_named_and_nothing_is_left(cheap: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = problems(tmp_path / "p.jsonl")
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    lines[3], lines[7] = "{broken", json.dumps({"prompt": "What?"})
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    assert cli.main([*ASK, "--problems", name]) == 2
    said = capsys.readouterr().err.strip()
    assert "2 lines are bad" in said and f"{name}:4" in said and f"{name}:8" in said and "\n" not in said
    assert cli.main(["init", "--budget", "0.000001", "--base", "x/y", "--problems", problems(tmp_path / "q.jsonl")]) == 2
    assert "least that works" in capsys.readouterr().err
    assert not list(tmp_path.glob("recipe*")), "a refusal writes nothing"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--budget", "x"], "--base"),
        (["--budget", "x", "--base", "b", "--problems", "bundled:chain_sum"], "--budget 'x"),
        (["--budget", "0", "--base", "b", "--problems", "bundled:chain_sum"], "above zero"),
        (["--budget", "5 EUR", "--base", "b", "--problems", "bundled:chain_sum"], "currency"),
        (["--budget", "5", "--base", "b"], "--problems"),
        (["sft", "--budget", "5"], "template"),
        (["sft", "--gpu", "H100"], "--gpu needs --budget"),
        (["--json"], "--json needs --budget"),
        (["--budget", "5", "--base", "b", "--problems", "none.jsonl"], "none.jsonl"),
        (["--budget", "5", "--base", "b", "--problems", "bundled:chain_sum", "--pick", "grpo"], "no candidate"),
        (["--budget", "5", "--base", "b", "--problems", "bundled:chain_sum", "--gpu", "X1"], 'GPU "X1"'),
    ],
)
def test_refusals(args: list[str], said: str, cheap: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", *args]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err and "\n" not in err


def test_a_file_of_one_split_is_refused(cheap: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ASK, "--problems", problems(tmp_path / "p.jsonl", split="train")]) == 2
    assert "both" in capsys.readouterr().err


def test_a_mapped_file_without_splits_is_split_too(cheap: None, tmp_path: Path) -> None:
    problems(tmp_path / "p.jsonl")
    text = (tmp_path / "p.jsonl").read_text().replace('"prompt"', '"question"')
    (tmp_path / "q.jsonl").write_text(text)
    assert cli.main([*ASK, "--problems", f"{tmp_path / 'q.jsonl'}?prompt=question"]) == 0
    rows = [json.loads(line) for line in Path("recipe.problems.jsonl").read_text().splitlines()]
    train, test = ({r["prompt"] for r in rows if r["split"] == s} for s in ("train", "test"))
    assert train and test and not train & test


def test_the_users_rate_stands_in_the_recipe(cheap: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ASK, "--problems", "bundled:chain_sum", "--rate", "0.5 USD/hour"]) == 0
    made = recipe.load("recipe.toml", stages.configs())
    book = PriceBook.default()
    planned = plan.make(made, book, book.machine_sku(made.machine, made.rate))
    assert made.rate == Decimal("0.5") and planned.total_usd().high <= 0.2
