"""The command: what comes from the plan and the book, what the user gives, every output, every refusal in one line."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from pathlib import Path

import jsonschema
import pytest

from shoestring import cli, plan
from shoestring.estimate.flops import ModelShape

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = json.loads((ROOT / "docs/schemas/breakeven.schema.json").read_text())
SHAPE = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
RECIPE = str(ROOT / "recipes/quickstart.toml")
MODEL = ["--model-price", "litellm/gpt-5-mini"]
OWN = """gpus = 8
purchase = {low = "250000 USD", high = "320000 USD", source = "two offers"}
years = 4
utilisation_percent = 60
watts = 8000
pue = 1.3
usd_per_kwh = "0.12 USD/kWh"
people_month = "16h@80"
[rent]
"""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "shape_of", lambda base: SHAPE)
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)


def data(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    assert cli.main(["breakeven", *args, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    jsonschema.validate(made, SCHEMA)
    return made


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(["breakeven", *args]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_a_recipe_and_a_volume_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    made = data(capsys, RECIPE, "--queries", "100000/month")
    assert made["recipe"] == "quickstart" and len(made["cash_flow"]) == 25
    by = {a["key"]: a for a in made["assumptions"]}
    assert Decimal(by["own.training"]["high"]) <= Decimal("0.05"), "the ceiling holds the plan's high end"
    assert by["own.usd_per_hour"]["mid"] == "0.1008" and "comparable" in by["own.usd_per_hour"]["note"]
    assert "Lewis" in by["rag.tokens"]["note"] and by["tokens_in"]["basis"] == "simulated"
    assert made["api"]["chosen"].startswith("the median") and "the median of" in by["api.usd_per_mtok_in"]["note"]
    assert all(o["is_lower_bound"] for o in made["options"]), "people, labels and compliance were not given"
    for v in made["verdicts"]:
        assert made["break_even_month"][v["against"]] == v["month"]


def test_what_the_user_gives_goes_before_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[own]\nusd_per_hour = "0.01 USD/hour"\nutilisation_percent = 50\npeople_start = "10h@80"\n')
    args = [RECIPE, "--queries", "1M/month", *MODEL, "--tokens-in", "500", "--tokens-out", "200", "--rag-tokens", "2000", "--months", "6"]
    made = data(capsys, *args, "--assumptions", str(tmp_path / "a.toml"))
    by = {a["key"]: a for a in made["assumptions"]}
    assert by["own.usd_per_hour"]["mid"] == "0.01" and by["own.people_start"]["mid"] == "800"
    assert (by["tokens_in"]["mid"], by["tokens_out"]["mid"], by["rag.tokens"]["mid"]) == ("500", "200", "2000")
    api = next(o for o in made["options"] if o["option"] == "api")
    each = (500 * Decimal(by["api.usd_per_mtok_in"]["mid"]) + 200 * Decimal(by["api.usd_per_mtok_out"]["mid"])) / 1_000_000
    assert Decimal(api["total_usd"]["mid"]) == 6 * 1_000_000 * each
    assert made["break_even_month"]["api"] is not None and "own.people_start" not in {n["key"] for n in made["not_given"]}


def test_a_cluster_that_trains_is_not_what_serves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from shoestring.cost.prices import PriceBook

    dear = max((o for o in PriceBook.default().offers(gpu="H100", market="on-demand") if o.facts.gpus == 8), key=lambda o: o.usd_per_hour)
    f = dear.facts
    machine = f'{{ provider = "{f.provider}", sku = "{f.instance}", region = "{f.region}{"/" + f.zone if f.zone else ""}" }}'
    text = Path(RECIPE).read_text().replace('machine = "this"', f"machine = {machine}").replace('"0.05 USD"', '"500 USD"')
    (tmp_path / "r.toml").write_text(text)
    made = data(capsys, "r.toml", "--queries", "1000")
    by = {a["key"]: a for a in made["assumptions"]}
    assert Decimal(by["own.usd_per_hour"]["mid"]) < dear.usd_per_hour / 4, "the model fits one card"
    assert by["own.decode_tokens_per_second"]["basis"] == "literature"


def test_own_prices_of_an_api(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[api]\nusd_per_mtok_in = "1 USD"\nusd_per_mtok_out = "2 USD"\n')
    made = data(capsys, RECIPE, "--queries", "1000", "--assumptions", "a.toml")
    assert made["api"] == {"model": "your API", "chosen": "by you"}
    (tmp_path / "a.toml").write_text('[api]\nusd_per_mtok_in = "1 USD"\n')
    assert "given alone" in refused(capsys, RECIPE, "--queries", "1000", "--assumptions", "a.toml")


def test_csv_html_and_terminal_tell_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = [RECIPE, "--queries", "100000/month", *MODEL]
    made = data(capsys, *args)
    assert cli.main(["breakeven", *args, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[-1]["own_cumulative_usd"] == made["cash_flow"][-1]["own"]["cumulative_usd"] and len(rows) == 25
    assert cli.main(["breakeven", *args, "--html", "b.html"]) == 0
    said = capsys.readouterr().out
    assert "not given" in said and "literature" in said and ">= " in said
    page = (tmp_path / "b.html").read_text()
    assert page.count("<svg") >= 4 and "default-src 'none'" in page and "not given" in page
    assert "http://" not in page and "<script" not in page


def test_templates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["breakeven", "--template", "a.toml", "--own-template", "o.toml"]) == 0
    capsys.readouterr()
    data(capsys, RECIPE, "--queries", "1000", "--assumptions", "a.toml")
    assert "missing" in refused(capsys, "--own", "o.toml")
    assert "exists" in refused(capsys, "--template", "a.toml")


def test_rent_or_buy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "o.toml").write_text(OWN + 'usd_per_gpu_hour = "2.50 USD/hour"\n')
    made = data(capsys, "--own", "o.toml")
    assert made["is_lower_bound"] and made["monthly_usd"]["people"] == "1280.000000"
    assert Decimal(made["owned_usd_per_gpu_hour"]["low"]) < Decimal(made["owned_usd_per_gpu_hour"]["high"])
    assert cli.main(["breakeven", "--own", "o.toml", "--html", "o.html"]) == 0
    assert "utilisation" in capsys.readouterr().out and (tmp_path / "o.html").read_text().count("<svg") >= 4


def test_rent_from_the_book(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from shoestring.cost.prices import PriceBook

    offer = next(o for o in PriceBook.default().offers(gpu="H100", market="on-demand", provider="lambda") if o.facts.gpus > 1)
    f = offer.facts
    (tmp_path / "o.toml").write_text(OWN + f'provider = "{f.provider}"\nsku = "{f.instance}"\nregion = "{f.region}"\n')
    made = data(capsys, "--own", "o.toml")
    assert offer.usd_per_gpu_hour is not None
    assert abs(Decimal(made["rented_usd_per_gpu_hour"]) - offer.usd_per_gpu_hour) < Decimal("0.000001")
    by = {a["key"]: a for a in made["assumptions"]}
    assert by["rent.usd_per_gpu_hour"]["basis"] == "literature" and f.instance in by["rent.usd_per_gpu_hour"]["note"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "give a recipe"),
        ([RECIPE], "give --queries"),
        ([RECIPE, "--queries", "many"], "is not a number"),
        ([RECIPE, "--queries", "0"], "above zero"),
        ([RECIPE, "--queries", "10/week"], "is not a number"),
        ([RECIPE, "--queries", "10", "--months", "0"], "--months"),
        ([RECIPE, "--queries", "10", "--tokens-in", "0"], "--tokens-in"),
        ([RECIPE, "--queries", "10", "--model-price", "litellm/no-such"], "no price is known"),
        ([RECIPE, "--queries", "10", "--assumptions", "none.toml"], "none.toml: cannot be read"),
        ([RECIPE, "--own", "o.toml"], "leave the recipe"),
        (["--own", "none.toml"], "cannot be read"),
        ([RECIPE, "--queries", "10", "--html", "no/where.html"], "cannot be written"),
    ],
)
def test_refusals(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *args)


def test_a_recipe_that_asks_benchmarks_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its questions are measured like any others; without their data one line says what to give."""
    (tmp_path / "sums.jsonl").write_text(
        "".join(json.dumps({"question": f"What is {i} and {i}?", "answer": f"{i} and {i} are #### {2 * i}"}) + "\n" for i in range(20))
    )
    text = """name = "b"
budget = "1 USD"
rate = "0.1 USD/hour"
base = "smollm2-135m-instruct"
[[stage]]
use = "evaluate"
benchmarks = ["gsm8k"]
data = { gsm8k = "%s" }
"""
    (tmp_path / "r.toml").write_text(text % (tmp_path / "sums.jsonl"))
    made = data(capsys, str(tmp_path / "r.toml"), "--queries", "1000/month", *MODEL)
    by = {a["key"]: a for a in made["assumptions"]}
    assert Decimal(by["tokens_in"]["mid"]) > 10 and "20 test problems" in by["tokens_in"]["note"]
    (tmp_path / "r.toml").write_text(text % (tmp_path / "none.jsonl"))
    assert "none.jsonl" in refused(capsys, str(tmp_path / "r.toml"), "--queries", "1000/month", *MODEL)
