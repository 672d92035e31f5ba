"""docs/files.md and its schemas: every schema is one, is listed, and holds for the synthetic run folder."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import report_fixture as fixture

from shoestring.records import BillLine, PriceRef, Trace, to_json

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'shoestring[test]'")
DOCS = Path(__file__).parents[3] / "docs"
SCHEMAS = sorted((DOCS / "schemas").glob("*.schema.json"))


def validator(name: str) -> Any:
    schema = json.loads((DOCS / "schemas" / f"{name}.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda p: p.name)
def test_schema_is_valid_and_listed(path: Path) -> None:
    validator(path.name.removesuffix(".schema.json"))
    assert f"schemas/{path.name}" in (DOCS / "files.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["plan", "bill", "scores", "gains", "funnel", "traps", "domains", "samples", "run"])
def test_fixture_holds(name: str) -> None:
    validator(name).validate(getattr(fixture, name)())


def test_lines_hold() -> None:
    for line in fixture.metrics():
        validator("metrics").validate(line)
    digest = hashlib.sha256(b"x").hexdigest()
    line = {"seq": 0, "time": 1.5, "kind": "attempt", "payload": {"attempt": "1"}, "prev": "0" * 64, "hash": digest}
    validator("ledger").validate(line)
    trace = Trace("p", (1, 2), (3, 4), (True, False), (-0.5, 0.0), "stop", "base", "text", 1.0)
    validator("trace").validate(json.loads(to_json(trace)))


def test_an_unknown_price_holds() -> None:
    bill = fixture.bill()
    line = json.loads(to_json(BillLine("sft", "h100", "3600", "second", None, None, "useful", None)))
    known = json.loads(
        to_json(BillLine("sft", "h100", "3600", "second", "0.01", "36", "useful", PriceRef("list", "2026-01-01")))
    )
    bill["lines"] += [line, known]
    validator("bill").validate(bill)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("bill", lambda d: d["lines"][0].update(amount=0.5)),
        ("bill", lambda d: d["lines"][0].update(outcome="lost")),
        ("bill", lambda d: d.pop("is_lower_bound")),
        ("plan", lambda d: d["stages"][0]["usd"].update(basis="guessed")),
        ("scores", lambda d: d[0].update(accuracy=1.2)),
        ("scores", lambda d: d[0].update(accuracy=None)),
        ("scores", lambda d: d[-1].pop("loss")),
        ("run", lambda d: d.update(status="done")),
    ],
)
def test_a_wrong_file_is_refused(name: str, spoil: Any) -> None:
    data = copy.deepcopy(getattr(fixture, name)())
    spoil(data)
    assert list(validator(name).iter_errors(data))
