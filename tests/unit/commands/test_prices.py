"""`shoestring prices`: tables, plain lines, JSON by its schema, the user's book, and newer catalogues."""

from __future__ import annotations

import csv
import json
import re
import textwrap
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import start_time

from shoestring import cli
from shoestring.cost import book as own
from shoestring.cost.sources import DATA

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "prices.schema.json").read_text())


def call(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    assert cli.main(["prices", *args]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def as_json(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    made = json.loads(call(capsys, *args, "--json"))
    jsonschema.Draft202012Validator(SCHEMA).validate(made)
    return made


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        ([], {"machines"}),
        (["--gpu", "A100", "--market", "spot", "--provider", "aws", "--region", "us-east-1"], {"machines"}),
        (["--machine", "p5.48"], {"machines"}),
        (["--teachers", "--provider", "openai"], {"teachers"}),
        (["--storage"], {"storage", "egress"}),
        (["--conflicts"], {"conflicts"}),
        (["--gpu", "H100", "--teachers", "--rate", "0.2 USD/hour"], {"machines", "teachers"}),
    ],
)  # fmt: skip
def test_json_follows_its_schema(capsys: pytest.CaptureFixture[str], args: list[str], keys: set[str]) -> None:
    made = as_json(capsys, *args)
    assert set(made) == {"currency", "this", *keys} and all(made[k] for k in keys)


def test_json_amounts_are_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(capsys, "--gpu", "H100", "--market", "spot")["machines"]
    each = [Decimal(r["usd_per_gpu_hour"]) for r in rows]
    assert each == sorted(each) and {r["gpu"] for r in rows} == {"H100"} and {r["market"] for r in rows} == {"spot"}
    files = {
        (r["provider"], r["instance_type"], r["region"], r["zone"]): r for r in csv.DictReader((DATA / "instances.csv").open())
    }
    for r in rows:
        assert Decimal(r["usd_per_hour"]) == Decimal(
            files[r["provider"], r["instance"], r["region"], r["zone"]]["spot_usd_per_hour"]
        )
    assert as_json(capsys, "--rate", "0.2 USD/hour")["this"]["usd_per_hour"] == "0.2"


def test_the_table_is_sorted_dated_and_says_what_is_uncertain(capsys: pytest.CaptureFixture[str]) -> None:
    out = call(capsys, "--gpu", "H100", "--provider", "aws")
    each = [Decimal(m[1]) for m in re.finditer(r"^ *([\d.]+) +[\d.]+ +\dx H100", out, re.M)]
    assert len(each) > 20 and each == sorted(each)
    assert "catalogs/v8/aws/vms.csv, read between 2025-11-18 and 2026-11-21" in out and "~ low confidence" in out
    assert " spot* " in out and "* no discount: spot costs as much" in out and "us-east-1/az1, az4" in out  # zones of one price share a line
    assert 'machine = "this": 0.1008 USD/hour' in out and "comparable, not an invoice" in out
    assert "the same thing, two prices" in (said := call(capsys, "--conflicts")) and "two sources disagree" in said
    assert "teacher" in call(capsys, "--teachers") and "storage:aws/ebs_gp3" in call(capsys, "--storage")


def test_machine_text_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = call(capsys, "--machine", "H100", "--market", "spot", "--provider", "nebius").splitlines()
    assert lines and all(re.fullmatch(r"nebius/\S+/spot/machine-second  [\d.]+ USD/hour  .* \(.*\)", line) for line in lines)
    assert "USD/1M tokens" in call(capsys, "--machine", "litellm/o3/")
    assert "USD/gb-month" in call(capsys, "--machine", "storage:")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpu", "H10"], 'no machine with --gpu "H10"; did you mean "H100"?'),
        (["--provider", "awz"], 'no machine with --provider "awz"; did you mean "aws"?'),
        (["--region", "mars"], 'no machine with --region "mars"'),
        (["--gpu", "GH200", "--market", "spot"], "no machine has a known price with --gpu GH200 --market spot"),
        (["--machine", "zzz"], "no price for 'zzz'"),
        (["--rate", "free"], "--rate 'free' is not an amount"),
        (["--prices", "none.toml"], "none.toml: cannot be read"),
        (["--out", "x.toml"], "--out belongs to --import FILE"),
        (["--import", "x.csv"], "--import needs --out"),
        (["--import", "none.csv", "--out", "x.toml"], "none.csv: cannot be read"),
        (["--import", "none.csv", "--out", "x.toml", "--date", "today"], "--date must be a day"),
    ],
)  # fmt: skip
def test_mistakes(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    err = call(capsys, *args, code=2)
    assert said in err and err.count("\n") == 1


def test_own_book_from_the_docs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The example of docs/prices.md is a book, and its prices show."""
    page = (ROOT / "docs" / "prices.md").read_text()
    example = textwrap.dedent(
        "\n".join(re.findall(r"^(?:    .*)?$", page[page.index("    [book]") : page.index("Machines can be a CSV")], re.M))
    )
    path = tmp_path / "mine.toml"
    path.write_text(example)
    rows = as_json(capsys, "--prices", str(path), "--machine", "gpu_8x_h100_sxm5")["machines"]
    assert [r["usd_per_hour"] for r in rows if r["source"].startswith("own book mine.toml")] == ["9", "20.5"]
    assert "in place of the shipped $31.92/h" in rows[1]["note"]
    assert {c["kind"] for c in as_json(capsys, "--prices", str(path), "--conflicts")["conflicts"]} >= {"own"}
    assert "+ your own price" in call(capsys, "--prices", str(path), "--gpu", "H100", "--provider", "lambda")


def test_import_writes_a_book_that_is_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cloud = tmp_path / "lambda"
    cloud.mkdir()
    (cloud / "vms.csv").write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice\n"
        "gpu_1x_gh200,GH200,1.0,64.0,432.0,1.49,us-east-1,,\ncpu_4x,,,4.0,16.0,0.0,us-east-1,,\n"
    )
    out = tmp_path / "new.toml"
    said = call(capsys, "--import", str(cloud / "vms.csv"), "--out", str(out), "--date", "2026-11-20")
    assert "left out, no price or $0 (unknown, not free): 1 rows" in said and "1 rows, 1 prices of 2026-11-20" in said
    (row,) = as_json(capsys, "--prices", str(out), "--gpu", "GH200")["machines"]
    assert (row["usd_per_hour"], row["date"], row["low_confidence"]) == ("1.49", "2026-11-20", False)
    assert "in place of the shipped $2.29/h" in row["note"]
    call(capsys, "--import", str(DATA / "instances.csv"), "--gpu", "B300", "--out", str(tmp_path / "b.csv"))
    assert {p.machine.gpu for p in own.read(tmp_path / "b.csv").values() if p.machine} == {"B300"}
    assert "exists" in call(capsys, "--import", str(cloud / "vms.csv"), "--out", str(out), code=2)


def test_starts_quickly(tmp_path: Path) -> None:
    """0.4 s of the processor's time for the whole table, the best of at most three, with torch hidden."""
    assert start_time.seconds(tmp_path, "prices") <= start_time.LIMIT
