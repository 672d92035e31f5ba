"""`shoestring curate`: the file, the tables, JSON by its schema, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import synthetic_pool

from shoestring.cli import main
from shoestring.commands import curate

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "curate.schema.json").read_text())


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return synthetic_pool.write(tmp_path / "pool.jsonl", 600)


def said(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> Any:
    assert main(["curate", *args]) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_follows_its_schema(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chosen.jsonl"
    made = json.loads(said(capsys, str(pool), "bundled:lcm", "--out", str(out), "--count", "60", "--against", "bundled:lcm", "--compare", "--json"))
    jsonschema.Draft202012Validator(SCHEMA).validate(made)
    steps = [r["step"] for r in made["funnel"]]
    assert steps[-2:] == ["difficulty", "diversity"] and len(steps) == 8
    for before, after in zip(made["funnel"], made["funnel"][1:], strict=False):
        assert before["after"] == after["before"]
    assert len(rows(out)) == 60 == made["selection"]["chosen"] == sum(d["chosen"] for d in made["domains"])
    assert made["selection"]["length_basis"] == "tokens" and made["selection"]["domains_from"] == "rows"
    assert set(made["compare"]["overlap"]) == {"s1", "random", "longest", "band", "k-centre"}
    assert {r["licence"] for r in rows(out)} <= {"CC0-1.0", "Apache-2.0"} and all(r["source"] for r in rows(out))
    assert all(r.get("pass_rate", 0) <= 0.99 for r in rows(out))


def test_the_same_seed_the_same_bytes(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {}
    for name, more in {"a": [], "b": [], "c": ["--seed", "1"], "d": ["--select", "random"], "e": ["--select", "k-centre"]}.items():
        out = tmp_path / f"{name}.jsonl"
        said(capsys, str(pool), "--out", str(out), "--count", "40", *more)
        files[name] = out.read_bytes()
    assert files["a"] == files["b"] and len(set(files.values())) == 4


def test_tables_and_resume(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chosen.jsonl"
    text = said(capsys, str(pool), "--out", str(out), "--count", "40", "--compare")
    for word in ("Funnel", "near duplicates", "domains (from rows)", "overlap of the choices", "40 problems in", "measured"):
        assert word in text
    first = out.read_bytes()
    assert "exists; name another file" in said(capsys, str(pool), "--out", str(out), code=2)
    again = json.loads(said(capsys, str(pool), "--out", str(out), "--count", "40", "--resume", "--json"))
    assert out.read_bytes() == first and set(again["cost"]["resumed"]) >= {"near", "problems"}


def test_domains_by_clusters_where_rows_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [{**r, "domain": "", "tokens": None, "pass_rate": None, "licence": ""} for r in synthetic_pool.rows(300)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    args = [str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "o.jsonl"), "--count", "30", "--domains", "5", "--compare"]
    found = json.loads(said(capsys, *args, "--json"))
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert found["selection"] | {"rated": 0} == found["selection"] and found["selection"]["domains_from"] == "clusters"
    assert 1 < len(found["domains"]) <= 5 and all(r["domain"] for r in rows(tmp_path / "o.jsonl"))
    assert set(found["compare"]["left_out"]) == {"longest", "band"} and found["licences"][0]["licence"] is None
    assert "name no licence" in said(capsys, *args, "--resume")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--count", "0"], "--count 0 must be at least 1"),
        (["--domains", "0"], "--domains 0"),
        (["--band", "0.9", "0.1"], "0 <= LOW <= HIGH <= 1"),
        (["--band", "nan", "0.1"], "0 <= LOW <= HIGH <= 1"),
        (["--too-easy", "2"], "--too-easy 2 must be a pass rate"),
        (["--band", "0.3", "0.4", "--select", "band"], "leaves no problem; widen it"),
        (["--too-easy", "0", "--select", "band"], "leaves no problem"),
    ],
)
def test_refusals(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    assert says in said(capsys, str(pool), "--out", str(tmp_path / "o.jsonl"), *args, code=2)
    assert not (tmp_path / "o.jsonl").exists()


def test_more_refusals(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a folder" in said(capsys, str(pool), "--out", str(tmp_path), code=2)
    assert "holds something else" in said(capsys, str(pool), "--out", str(tmp_path / "o"), "--work", str(tmp_path), code=2)
    assert "no such file" in said(capsys, str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "o"), code=2)
    lone = tmp_path / "lone.jsonl"
    lone.write_text('{"prompt": "what is it", "answer": "7"}\n')
    assert "needs lengths" in said(capsys, str(lone), "--out", str(tmp_path / "o"), "--select", "longest", code=2)


def test_without_numpy(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'shoestring[curate]'" in said(capsys, str(pool), "--out", str(tmp_path / "o.jsonl"), code=2)


def test_the_selectors_are_those_of_the_package() -> None:
    from shoestring.data.selectors import SELECTORS

    assert tuple(SELECTORS) == curate.SELECT
