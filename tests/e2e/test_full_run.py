"""A whole run as a user starts it: its files, its money, its model, and the commands that read it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_run import ROOT, World, attempts, digest, entries, metrics, reference, total

from shoestring.cost.ledger import Ledger

SCHEMAS = ROOT / "docs" / "schemas"
LINES = {"ledger": "ledger.jsonl", "metrics": "metrics.jsonl", "trace": "traces/*.jsonl"}
WHOLE = ("bill", "funnel", "gains", "plan", "run", "samples", "scores", "traps")
STAGES = ["score-base", "curate", "distill", "sft", "grpo", "score-last"]


@pytest.fixture(scope="session")
def copy(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that a test may write to."""
    to = tmp_path_factory.mktemp("copy") / "tiny"
    shutil.copytree(finished, to)
    return to


@pytest.fixture(scope="session")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which importing torch, transformers or numpy ends the program."""
    folder = tmp_path_factory.mktemp("blocker")
    for name in ("torch", "transformers", "numpy", "safetensors"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'src'}"}


def test_every_documented_file_is_there(finished: Path) -> None:
    rows = [line.split("|")[1].strip(" `") for line in (ROOT / "docs/files.md").read_text().partition("## Data in")[0].splitlines()
            if line.startswith("| `") and "[" in line or line.startswith("| `report.html`")]  # fmt: skip
    assert len(rows) > 12
    for name in rows:
        pattern = name.replace("<stage>", "*").replace("step-N", "step-*").rstrip("/")
        assert list(finished.glob(pattern)), f"docs/files.md promises {name}"


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_fit_their_schemas(finished: Path, name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    data = json.loads((finished / f"{name}.json").read_text())
    assert data
    jsonschema.validate(data, schema)


@pytest.mark.parametrize("name", sorted(LINES))
def test_every_line_fits_its_schema(finished: Path, name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
    check = jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))
    files = list(finished.glob(LINES[name]))
    assert files
    for file in files:
        for line in file.read_text().splitlines():
            check.validate(json.loads(line))


def test_traces_have_one_mark_and_logprob_a_token(finished: Path) -> None:
    for line in (finished / "traces/distill.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert len(row["tokens"]) == len(row["sampled"]) == len(row["logprobs"]) > 0
        assert (row["stop_reason"] == "recorded") == (not any(row["sampled"]))


def test_the_money_adds_up(finished: Path) -> None:
    bill = json.loads((finished / "bill.json").read_text())
    assert 0 < total(finished) < float(bill["budget"]) == 200
    assert not bill["is_lower_bound"]
    lines = sum(float(line["amount"]) for line in bill["lines"])
    assert lines == pytest.approx(total(finished), abs=1e-5)
    assert {line["outcome"] for line in bill["lines"]} <= {"useful", "idle"}
    assert bill["headline"] == bill["marginal"], "nothing failed"
    # a dollar is a second: the bill is the lease
    (only,) = attempts(finished).values()
    assert only.reason == "done"
    assert only.posted == pytest.approx(only.ended - only.begun, abs=0.1)
    assert total(finished) == pytest.approx(only.posted, abs=1e-3)


def test_the_ledger_verifies(finished: Path) -> None:
    found = entries(finished)
    with Ledger.open(finished / "ledger.jsonl") as ledger:
        assert ledger.verify() == len(found)
        assert not ledger.open_reservations()
    kinds = {e["kind"] for e in found}
    assert {"attempt", "reserve", "release", "end"} <= kinds
    usd = [m["usd_spent"] for m in metrics(finished)]
    assert usd == sorted(usd)


def test_every_stage_ran_and_the_groups_had_variance(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["status"] == "finished" and run["attempts"] == 1
    assert [(s["name"], s["status"]) for s in run["stages"]] == [(s, "finished") for s in STAGES]
    rows = [m for m in metrics(finished) if m["stage"] == "grpo"]
    assert [r["step"] for r in rows] == list(range(1, 17))
    assert sum(r["groups"] - r["groups_without_variance"] for r in rows) >= 5, "the tests of GRPO would test nothing"
    losses = [m["loss"] for m in metrics(finished) if m["stage"] == "sft"]
    assert losses[-1] < 0.2 * losses[0]


def test_the_model_loads_in_transformers_and_answers(finished: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
    model = transformers.AutoModelForCausalLM.from_pretrained(finished / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "model")
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Answer:" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
    card = (finished / "model" / "README.md").read_text()
    assert "## Scores (measured)" in card and "CC0-1.0" in card and "base_model:" in card


def test_the_checkpoint_is_the_model(finished: Path) -> None:
    """model/ is the last checkpoint's masters in bf16."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    from shoestring.models import folder
    from shoestring.train.checkpoints import read_tensors

    run = json.loads((finished / "run.json").read_text())
    masters = read_tensors(finished / run["weights"], "master/")
    model = folder.load(finished / "model", torch.bfloat16)
    for name, p in model.named_parameters():
        assert torch.equal(p, masters[f"master/{name}"].to(torch.bfloat16)), name


def test_a_second_run_is_refused(world: World, finished: Path) -> None:
    before = digest(finished / "ledger.jsonl"), digest(finished / "run.json")
    recipe = finished.parent / "tiny.toml"
    assert "--resume" in world.run("run", recipe, "--runs", finished.parent).one_line()
    assert "finished" in world.run("run", recipe, "--runs", finished.parent, "--resume").one_line()
    assert "--name" in world.run("run", recipe, "--runs", finished.parent, "--dry-run").one_line()
    assert (digest(finished / "ledger.jsonl"), digest(finished / "run.json")) == before


def test_bill_and_report(world: World, copy: Path, no_torch: dict[str, str]) -> None:
    printed = json.loads(world.ok("bill", copy, "--json", env=no_torch).out)
    kept = json.loads((copy / "bill.json").read_text())
    assert {k: printed[k] for k in kept} == kept
    assert set(printed["outcomes"]) > {"useful", "failed"} and printed["runs"][0]["variance"]["lines"]
    text = world.ok("bill", copy, env=no_torch).out
    assert "Headline" in text and "user's rate" in text
    (copy / "report.html").unlink()
    assert str(copy / "report.html") in world.ok("report", copy, env=no_torch).out
    page = (copy / "report.html").read_text()
    assert "<html" in page and "http-equiv" in page


def test_plan_prices_and_help_without_torch(world: World, tmp_path: Path, no_torch: dict[str, str]) -> None:
    recipe = world.recipe(tmp_path)
    plan = json.loads(world.ok("plan", recipe, "--json", env=no_torch).out)
    assert [s["name"] for s in plan["stages"]] == ["start", *STAGES]
    assert plan["profile"]["basis"] == "measured"
    assert plan["total"]["usd"]["low"] < plan["total"]["usd"]["mid"] < plan["total"]["usd"]["high"]
    assert "sft" in world.ok("plan", recipe, env=no_torch).out
    assert "usage" in world.ok("--help", env=no_torch).out
    assert "USD/hour" in world.ok("prices", "--machine", "this", env=no_torch).out


def test_a_dry_run_leaves_a_recipe_that_runs(world: World, tmp_path: Path, no_torch: dict[str, str]) -> None:
    recipe = world.recipe(tmp_path)
    world.ok("run", recipe, "--runs", tmp_path, "--dry-run", "--seed", "11", "--set", "grpo.steps=2")
    resolved = (tmp_path / "tiny" / "recipe.toml").read_text()
    assert "seed = 11" in resolved and "steps = 2" in resolved and "max_new" in resolved
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == ["plan.json", "recipe.toml"]
    world.ok("plan", tmp_path / "tiny" / "recipe.toml", env=no_torch)


def test_prices_into_a_closed_pipe(world: World) -> None:
    process = world.start("prices")
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(60)


@pytest.mark.slow
def test_another_seed_is_another_run(world: World, finished: Path, tmp_path: Path) -> None:
    """And the same seed is the same run, to the last bit: nothing is left to time or to the hash seed."""
    recipe = world.recipe(tmp_path)
    world.ok("run", recipe, "--runs", tmp_path, env={"PYTHONHASHSEED": "5"})
    assert digest(tmp_path / "tiny/model/model.safetensors") == digest(reference() / "model/model.safetensors")
    steps = ["--set", "sft.epochs=2", "--set", "grpo.steps=1"]
    world.ok("run", recipe, "--runs", tmp_path, "--name", "a", "--seed", "8", *steps)
    world.ok("run", recipe, "--runs", tmp_path, "--name", "b", "--seed", "9", *steps)
    assert digest(tmp_path / "a/model/model.safetensors") != digest(tmp_path / "b/model/model.safetensors")
