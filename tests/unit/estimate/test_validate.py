"""`plan --validate`: the accuracy asked for, rows in order, outcomes unread, and a file that holds nonsense."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from shoestring import cli
from shoestring.estimate.throughput import DATA
from shoestring.estimate.validate import validate

REPO = Path(__file__).resolve().parents[3]
FILES = ("throughput_llmfoundry.csv", "throughput_torchtitan.csv", "runs.csv", "memory_lora_litgpt.csv")
OUTCOMES = {
    "hours", "gpu_hours", "train_flops_reported", "mfu_reported", "cost_amount", "implied_usd_per_gpu_hour", "implied_allin_mfu_6nd", "mfu_pct", "hfu_pct",
    "tok_s", "tok_s_gpu", "mem_gib", "max_gpu_ram_gb", "minutes_per_1k_iter", "notes", "note", "flags", "evidence",
}  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_throughput_table() -> None:
    report = validate(DATA / "throughput_llmfoundry.csv")
    assert report["median_error"] <= 0.06 and report["p90_error"] <= 0.20 and report["covered"] >= 0.8
    assert len(report["rows"]) == 180 and report["refused"] == []
    for row, line in zip(rows_of(DATA / "throughput_llmfoundry.csv"), report["rows"], strict=True):
        assert line["actual"] == float(row["tok_s_gpu"]) and line["unit"] == "tokens/s/GPU" and row["model"] in line["name"]


def test_torchtitan_table() -> None:
    report = validate(DATA / "throughput_torchtitan.csv")
    assert len(report["rows"]) == 22 and report["median_error"] <= 0.12 and report["covered"] >= 0.8


def test_runs() -> None:
    report = validate(DATA / "runs.csv")
    assert len(report["rows"]) == 74 and report["within_factor_2"] >= 0.8 and report["covered"] >= 0.8
    assert report["refused"] == [
        "llm.c GPT-3 125M 300B",
        "Olmo-3-7B Dolci-Think SFT (README estimate)",
        "Olmo-3-7B Dolci-Instruct SFT (README estimate)",
    ]
    silent = [r for r in report["rows"] if r["predicted"] is None]
    assert silent and all(r["reason"] for r in silent)
    assert {r["unit"] for r in report["rows"]} == {"GPU-hours"}


@pytest.mark.parametrize("file", FILES)
def test_outcomes_are_not_read(file: str, tmp_path: Path) -> None:
    rows = rows_of(DATA / file)
    blank = [{k: "" if k in OUTCOMES else v for k, v in row.items()} for row in rows]
    silly = [{k: "1" if k in OUTCOMES - {"flags", "evidence"} else v for k, v in row.items()} for row in rows]
    keys = ("predicted", "low", "high", "name")
    told = [[r[k] for k in keys] for r in validate(DATA / file)["rows"]]
    report = validate(write(tmp_path / "blank.csv", blank))
    assert [[r[k] for k in keys] for r in report["rows"]] == told
    assert report["median_error"] is None and report["refused"] == [] and all(r["actual"] is None for r in report["rows"])
    assert [[r[k] for k in keys] for r in validate(write(tmp_path / "silly.csv", silly))["rows"]] == told


def test_a_bad_row_says_why_and_the_file_goes_on(tmp_path: Path) -> None:
    rows = rows_of(DATA / "throughput_llmfoundry.csv")[:4]
    rows[0]["gpu"], rows[1]["micro_batch"], rows[2]["seq_len"] = "TPU-v5", "", "long"
    report = validate(write(tmp_path / "t.csv", rows))
    reasons = [r.get("reason", "") for r in report["rows"]]
    assert "unknown GPU 'TPU-v5'" in reasons[0] and "micro_batch is not stated" in reasons[1] and "cannot be read" in reasons[2]
    assert reasons[3] == "" and report["rows"][3]["predicted"] > 0
    runs = rows_of(DATA / "runs.csv")[6:8]
    runs[0]["gpu"] = "abacus"
    lines = validate(write(tmp_path / "r.csv", runs))["rows"]
    assert "unknown GPU 'abacus'" in lines[0]["reason"] and lines[1]["predicted"]


def test_an_impossible_row_is_refused_and_predicted(tmp_path: Path) -> None:
    rows = rows_of(DATA / "throughput_llmfoundry.csv")[:3]
    rows[1]["tok_s_gpu"] = "9000"
    report = validate(write(tmp_path / "t.csv", rows))
    assert len(report["refused"]) == 1 and report["rows"][1]["predicted"] and "of the card's peak" in report["rows"][1]["refused"]
    assert report["worst_error"] < 0.3


@pytest.mark.parametrize("file", FILES)
def test_the_command(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    import jsonschema

    assert cli.main(["plan", "--validate", str(DATA / file), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, json.loads((REPO / "docs/schemas/plan-validate.schema.json").read_text()))
    assert len(report["rows"]) == len(rows_of(DATA / file))
    assert cli.main(["plan", "--validate", str(DATA / file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "median error" in said and ("refused, because" in said) == bool(report["refused"])


def test_the_command_complains_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        (["plan"], "name a recipe (TOML), or --validate FILE.csv"),
        (["plan", "a.toml", "--validate", "b.csv"], "not both"),
        (["plan", "--validate", str(tmp_path / "none.csv")], "cannot be read"),
    ):
        assert cli.main(argv) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_empty_table(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text(",".join(rows_of(DATA / "runs.csv")[0]) + "\n")
    report = validate(tmp_path / "e.csv")
    assert report["rows"] == [] and report["median_error"] is None and report["covered"] is None
