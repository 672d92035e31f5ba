"""`bill`, `charge` and `compare` on run folders that are written here: their data against the schemas, and bad input."""

from __future__ import annotations

import csv
import io
import json
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from stub_run import recipe_text

from shoestring import cli
from shoestring.cost.ledger import Ledger
from shoestring.records import Usage

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
DOCS = Path(__file__).resolve().parents[3] / "docs" / "schemas"
D = Decimal
SKU = "this/machine-second"
RECIPE = recipe_text("evaluate score-base", "sft", "evaluate score-sft", name="{name}", budget="1", rate="3.6", base="tiny-base",
                     more="{more}")  # fmt: skip


def quantity(x: float) -> dict[str, Any]:
    return {"low": x / 2, "mid": x, "high": 2 * x, "basis": "measured"}


def score(model: str, right: int, usd: float, family: str = "macro", n: int = 100) -> dict[str, Any]:
    p = right / n
    half = 2 * (p * (1 - p) / n) ** 0.5
    return {"model": model, "benchmark": "unseen", "family": family, "n": n, "correct": right, "accuracy": p,
            "ci95": [max(0, p - half), min(1, p + half)], "usd": usd, "prompting": "zero-shot", "extraction": "strict"}  # fmt: skip


def make(folder: Path, trained: int = 60, base: int = 20, seconds: float = 100.0, more: str = "", family: str = "sums") -> Path:
    """A finished run: a cent of start and scoring, `seconds` of training at a tenth of a cent, one second failed."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE.format(name=folder.name, more=more))
    with Ledger.open(folder / "ledger.jsonl") as ledger:
        for stage, used, outcome in (("start", 2.0, "useful"), ("score-base", 8.0, "useful"), ("sft", seconds, "useful"),
                                     ("sft", 1.0, "failed"), ("score-sft", 4.0, "useful"), ("export", 0.5, "idle")):  # fmt: skip
            ledger.post(Usage(SKU, used, "second", stage, outcome=outcome))  # type: ignore[arg-type]
    stages = [("start", "start", 2.0), ("evaluate", "score-base", 9.0), ("sft", "sft", 110.0), ("evaluate", "score-sft", 4.0)]
    rows = [{"use": u, "name": n, "tokens": quantity(0), "minutes": quantity(s / 60), "usd": quantity(s * 0.001)} for u, n, s in stages]
    write = {
        "plan.json": {"stages": rows, "machine": {"sku": SKU, "usd_per_hour": "3.6"}, "total": {"usd": quantity(0.125)}},
        "run.json": {"name": folder.name, "base": "tiny-base", "status": "finished", "started": 1.7e9, "stages": []},
        "scores.json": [score("base", base, 0.01, family), score("base", base, 0.01), score("sft", trained, 0.1, family),
                        score("sft", trained, 0.1)],
    }  # fmt: skip
    for name, data in write.items():
        (folder / name).write_text(json.dumps(data))
    metrics = []
    for stage, count, took in (("score-base", 3, 2.0), ("score-sft", 3, 1.0)):
        metrics += [{"stage": stage, "step": i + 1, "total": count, "seconds": took + 0.1 * i, "tokens": 100, "reward": 0.5} for i in range(count)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    (folder / "verdicts").mkdir()
    for name, model in (("00-base", "base"), ("02-sft", "sft")):
        lines: list[dict[str, Any]] = [{"measured": model, "usd": 0.1}]
        lines += [{"benchmark": "unseen", "prompting": "zero-shot", "tokens": 20 + i % 3, "problem_id": str(i)} for i in range(9)]
        (folder / "verdicts" / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return make(tmp_path / "a"), make(tmp_path / "b", trained=62, seconds=200.0)


def call(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.main([str(a) for a in args]) == code
    done = capsys.readouterr()
    if code:
        assert done.err.count("\n") == 1 and done.err.startswith("shoestring: ") and not done.out
        return done.err
    return done.out


def data(capsys: pytest.CaptureFixture[str], command: str, *args: object) -> Any:
    found = json.loads(call(capsys, command, *args, "--json"))
    schema = json.loads((DOCS / f"{'statement' if command == 'bill' else command}.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(found)
    return found


def test_bill_of_one_run(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = data(capsys, "bill", runs[0])
    assert found["marginal"] == {"total": "0.115500"} and found["headline"] == {"total": "0.114500"}
    assert found["outcomes"]["failed"] == "0.001000" and found["outcomes"]["preempted"] == "0.000000"
    assert found["lines"][0]["price_ref"]["source"] == "user's rate" and found["lines"][0]["price_ref"]["date"] == "2023-11-14"
    against = found["runs"][0]["variance"]
    assert against["difference"] == "-0.009500" and against["parts"]["waste"] == "0.001000" and against["outside"] == "inside"
    kinds = {line["stage"]: line["kind"] for line in against["lines"]}
    assert kinds["export"] == "not planned" and kinds["sft"] == "both"
    text = call(capsys, "bill", runs[0])
    assert "Against the plan" in text and "preempted" in text and "user's rate" in text


def test_bill_of_several_runs(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = data(capsys, "bill", *runs)
    assert D(found["marginal"]["total"]) == sum(D(r["marginal"]) for r in found["runs"]) == D("0.331")
    assert found["budget"] == "2" and [r["run"] for r in found["runs"]] == ["a", "b"]
    assert found["winner"]["run"] == "b" and found["winner"]["tied_with"] == ["a"]
    table = list(csv.DictReader(io.StringIO(call(capsys, "bill", *runs, "--csv"))))
    assert sum(D(r["amount"]) for r in table) == D("0.331") and {r["run"] for r in table} == {"a", "b"}
    out = tmp_path / "bill.csv"
    assert str(out) in call(capsys, "bill", *runs, "--csv", out) and out.read_bytes().startswith(b"\xef\xbb\xbfrun,")
    page = call(capsys, "bill", *runs, "--html")
    assert page.startswith("<!doctype html>") and "Against the plan" in page and "http://" not in page and "<script" not in page
    assert "All runs" in call(capsys, "bill", *runs)


def test_bill_under_other_prices(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = data(capsys, "bill", runs[0], "--rate", "7.2 USD/hour")
    assert found["marginal"]["total"] == "0.231000" and "7.2" in found["priced_with"]
    assert found["runs"][0]["variance"]["parts"]["rate"] == "0.115000", "twice the price for what both sides have"
    own = tmp_path / "own.toml"
    own.write_text('[this]\nusd_per_hour = 1.8\nsource = "our invoice"\ndate = "2026-11-01"\n')
    found = data(capsys, "bill", runs[0], "--prices", own)
    assert found["marginal"]["total"] == "0.057750" and found["lines"][0]["price_ref"]["source"].endswith("our invoice")
    assert str(own) in found["priced_with"]
    assert data(capsys, "compare", runs[0], "--prices", own)["points"][1]["training_usd"] == "0.051500"
    own.write_text("[this]\nusd = 1\n")
    assert "own.toml:2" in call(capsys, "bill", runs[0], "--prices", own, code=2)
    assert (runs[0] / "ledger.jsonl").read_text().count("\n") == 6, "history is priced, not written"


def test_credits_pay_and_lower_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path / "c", more='credits = "0.1 USD"')
    found = data(capsys, "bill", run)
    assert found["marginal"]["total"] == "0.115500"
    assert [D(r["amount"]) for r in found["funding"]] == [D("0.1"), D("0.0155")]
    assert "do not lower it" in call(capsys, "bill", run)


def test_charge_and_its_reversal(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = runs[0]
    (run / "bill.json").write_text(json.dumps({k: v for k, v in data(capsys, "bill", run).items() if k in
                                               ("currency", "budget", "headline", "marginal", "sunk", "is_lower_bound", "lines")}))  # fmt: skip
    found = data(capsys, "charge", run, "--people", "12h@80", "--note", "read samples")
    assert found["charge"]["amount"] == "960.000000" and found["bill_rewritten"] is True
    entry = found["charge"]["entry"]
    found = data(capsys, "bill", run)
    assert found["marginal"]["total"] == "0.115500", "a charge does not shrink the budget of training"
    assert found["charges"]["with_marginal"] == "960.115500"
    kept = json.loads((run / "bill.json").read_text())
    assert kept["charges"]["total"] == "960.000000" and {k: found[k] for k in kept} == kept
    assert "Charged by hand" in call(capsys, "bill", run, "--html") and "read samples" in call(capsys, "bill", run)
    found = data(capsys, "charge", run, "--reverse", entry, "--note", "other run")
    assert (found["charge"]["reverses"], found["charges_total"]) == (entry, "0.000000")
    assert "already" in call(capsys, "charge", run, "--reverse", entry, code=2)
    assert len(data(capsys, "bill", run)["charges"]["lines"]) == 2, "both lines stand"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--people", "12@80"], "12h@80"),
        (["--amount", "35", "--what", "x"], "currency"),
        (["--amount", "0 USD", "--what", "x"], "above zero"),
        (["--amount", "0.0000001 USD", "--what", "x"], "six decimals"),
        (["--amount", "35 USD"], "--what"),
        (["--reverse", "x"], "a number"),
        (["--reverse", "1"], "no charge there"),
        (["--people", "1h@1", "--note", "two\nlines"], "--note"),
    ],
)
def test_bad_charges(runs: tuple[Path, Path], args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (runs[0] / "ledger.jsonl").read_bytes()
    assert said in call(capsys, "charge", runs[0], *args, code=2)
    assert (runs[0] / "ledger.jsonl").read_bytes() == before


def test_compare(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = data(capsys, "compare", *runs)
    points = {p["name"]: p for p in found["points"]}
    assert list(points) == ["base (untrained)", "a/sft", "b/sft"] and points["base (untrained)"]["runs"] == ["a", "b"]
    a = points["a/sft"]
    assert a["training_usd"] == "0.103000", "start, training and its failed second; no evaluation"
    assert a["scoring_usd"] == "0.012000" and points["base (untrained)"]["training_usd"] == "0"
    # 21 tokens an answer; without the first step 200 tokens in 2.3 s; a tenth of a cent a second
    assert D(a["serving_usd_per_1000"]["mid"]) == pytest.approx(D(1000 * 21) * D("2.3") / 200 * D("0.001"), rel=D("1e-6"))
    assert D(a["serving_usd_per_1000"]["low"]) < D(a["serving_usd_per_1000"]["mid"]) < D(a["serving_usd_per_1000"]["high"])
    assert a["on_training"]["tied_with"] == ["b/sft"] and points["b/sft"]["on_training"]["cheapest_tied"] == "a/sft"
    assert all(p["on_training"]["frontier"] for p in found["points"]), "tied points are not ranked"
    text = call(capsys, "compare", *runs)
    assert "tied with b/sft" in text
    page = call(capsys, "compare", *runs, "--html")
    assert page.count("<svg") == 4 and "<script" not in page and "a thousand answered problems" in page


def test_compare_names_the_dominated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, poor = make(tmp_path / "good", trained=90), make(tmp_path / "poor", trained=40, seconds=300.0)
    points = {p["name"]: p for p in data(capsys, "compare", good, poor)["points"]}
    assert points["poor/sft"]["on_training"]["dominated_by"] == ["good/sft"]
    assert points["good/sft"]["on_training"]["beats"] == ["poor/sft"]
    assert "poor/sft: dominated by good/sft" in call(capsys, "compare", good, poor)


def test_compare_says_what_it_cannot_place(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs
    shutil.rmtree(b / "verdicts")
    (a / "scores.json").write_text("[")
    found = data(capsys, "compare", a, b)
    assert found["unplaced"][0]["name"] == "a" and "scores.json" in found["unplaced"][0]["why"]
    assert all(p["serving_usd_per_1000"] is None and p["on_serving"] is None for p in found["points"])
    (b / "scores.json").unlink()
    assert "nothing to compare" in call(capsys, "compare", a, b, code=2)


def test_compare_refuses_other_families(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make(tmp_path / "other", family="products")
    assert "products" in call(capsys, "compare", runs[0], other, code=2)


def test_bad_folders_and_ledgers(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs
    for command in ("bill", "compare", "charge"):
        more = ["--people", "1h@1"] if command == "charge" else []
        assert "give the folder of a run" in call(capsys, command, tmp_path, *more, code=2)
        assert "give the folder of a run" in call(capsys, command, tmp_path / "none", *more, code=2)
    assert "twice" in call(capsys, "bill", a, f"{a}/", code=2)
    assert "--rate" in call(capsys, "bill", a, "--rate", "cheap", code=2)
    assert "no price book" in call(capsys, "bill", a, "--prices", tmp_path / "none.toml", code=2)
    assert "is a folder" in call(capsys, "bill", "--csv", a, b, code=2)
    assert "make it first" in call(capsys, "bill", a, "--html", tmp_path / "no" / "x.html", code=2)
    lines = (a / "ledger.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace("100.0", "1.0")
    (a / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    for command in ("bill", "compare", "charge"):
        more = ["--people", "1h@1"] if command == "charge" else []
        assert "ledger.jsonl:3" in call(capsys, command, a, *more, code=2)


def test_a_run_without_a_plan(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (runs[0] / "plan.json").unlink()
    found = data(capsys, "bill", runs[0])["runs"][0]
    assert found["variance"] is None and found["why_no_variance"] == "plan.json is missing"
    (runs[0] / "plan.json").write_text('{"stages": ["x"], "machine": {"usd_per_hour": "cheap"}}')
    assert "not understood" in data(capsys, "bill", runs[0])["runs"][0]["why_no_variance"]
    assert "No variance" in call(capsys, "bill", runs[0])


def test_a_working_run_can_be_charged(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Another process holds the run: the line is posted, bill.json is left to it."""
    import fcntl

    (runs[0] / "bill.json").write_text(json.dumps({"marginal": {"total": "0"}, "headline": {"total": "0"}}))
    with Ledger.open(runs[0] / "ledger.jsonl") as ledger, open(runs[0] / "run.lock", "w") as held:
        ledger.refresh()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert data(capsys, "charge", runs[0], "--people", "1h@1")["bill_rewritten"] is False
        ledger.post(Usage(SKU, 1.0, "second", "sft"))
        assert ledger.verify() == 8 and len(ledger.state.charges) == 1
    assert "charges" not in json.loads((runs[0] / "bill.json").read_text())


def test_a_bill_says_what_a_thousand_answers_cost(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The evaluation's tokens, seconds and price: 21 tokens each at 2.15 s / 100 tokens (the first step, which loads the
    model, left out) at a tenth of a cent a second."""
    rows = {r["model"]: r for r in data(capsys, "bill", runs[0])["runs"][0]["answers"]}
    assert rows.keys() == {"base", "sft"} and rows["base"]["stage"] == "score-base"
    base = rows["base"]["usd_per_1000"]
    assert base["basis"] == "measured" and D(base["low"]) < D(base["mid"]) < D(base["high"])
    assert D(base["mid"]) == D("0.4515") and rows["base"]["tokens_per_answer"] == 21
    said = " ".join(call(capsys, "bill", runs[0]).split())
    assert "A thousand answers like the evaluation's by base cost" in said and "21 tokens each, 47 tokens/s" in said
    (runs[1] / "verdicts" / "02-sft.jsonl").unlink()
    said = " ".join(call(capsys, "bill", *runs).split())
    assert "A thousand answers by b/sft: no price, because the evaluation's answers were not kept." in said
    assert "What answers cost" in call(capsys, "bill", runs[0], "--html")
