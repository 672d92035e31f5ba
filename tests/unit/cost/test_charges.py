"""Charges by hand: what is read, what is refused, and that a correction is a reversal."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.cost import charges, statement
from shoestring.cost.charges import HOURS, ITEM, people, settled, total
from shoestring.cost.ledger import Ledger, LedgerError
from shoestring.records import Usage, UserError

D = Decimal


@pytest.mark.parametrize("text", ["12h@80", "12 h @ $80", "12H@80 USD", "12h@80 USD/hour", " 12h@80usd/h "])
def test_people(text: str) -> None:
    assert people(text) == (D(12), D(80))


@pytest.mark.parametrize("text", ["", "12@80", "12h", "h@80", "-1h@80", "0h@80", "1h@0", "1h@80 EUR", "1e3h@80", "NaNh@80", "1h@80h@80"])
def test_people_refuses(text: str) -> None:
    with pytest.raises(UserError, match="--people") as e:
        people(text)
    assert "\n" not in str(e.value)


def posted(tmp_path: Path, *payloads: dict) -> list[charges.Charge]:
    with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
        for p in payloads:
            ledger.append("charge", p)
        return list(ledger.state.charges)


HOUR = charges.payload("people", HOURS, D("1.5"), "hour", D("80.10"), "why")
ITEMS = charges.payload("labelling", ITEM, D(1), "item", D(35), "")


def test_a_reversal_takes_back_once(tmp_path: Path) -> None:
    found = posted(tmp_path, HOUR, ITEMS, {"reverses": 1, "note": "wrong run"}, {"reverses": 1}, {"reverses": 77})
    assert [c.amount for c in settled(found)] == [D("120.15"), D(35), D("-120.15")]
    assert total(found) == D(35) and list(charges.open_lines(found)) == [2]
    assert settled(found)[2].what == "reversal of line 1: people" and settled(found)[2].note == "wrong run"
    again = Ledger.read(tmp_path / "ledger.jsonl")
    assert settled(again.charges) == settled(found) and again.usages == []


def test_charges_are_no_usages(tmp_path: Path) -> None:
    """They do not count against the ceiling, and the bill of what is metered does not see them."""
    with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
        ledger.post(Usage("this/machine-second", 1.0, "second", "sft"))
        ledger.append("charge", HOUR)
        assert len(ledger.usages()) == 1 and ledger.verify() == 2


@pytest.mark.parametrize("spoil", [{"unit_price": "x"}, {"quantity": "-1"}, {"currency": "EUR"}, {"quantity": 1.5}])
def test_a_charge_that_makes_no_sense_is_not_written(tmp_path: Path, spoil: dict) -> None:
    with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
        with pytest.raises((ValueError, LedgerError)):
            ledger.append("charge", {**HOUR, **spoil})
        assert ledger.verify() == 0


def test_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="reversal"):
        charges.payload("x", ITEM, D(1), "item", D(0), "")


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-x", "@SUM(A1)", "\t=1", "\r=1", " =1", "－1+1", '=HYPERLINK("http://x")', "|cmd"]
)
def test_a_cell_that_would_run_is_text(cell: str) -> None:
    assert statement.safe(cell) == "'" + cell


@pytest.mark.parametrize("cell", ["-960.000000", "35", "0.000028", "sft", "", "a=b"])
def test_other_cells_stay(cell: str) -> None:
    assert statement.safe(cell) == cell


LINE = {"stage": "sft", "resource": "this/machine-second", "quantity": "1", "unit": "second", "unit_price": "2",
        "amount": "2.000000", "outcome": "useful", "price_ref": {"source": "=cmd|' /C calc'!A0", "date": "2026-01-01"}}  # fmt: skip


def run_bill(posted_charges: list[charges.Charge], run: str = "r") -> statement.RunBill:
    b = {"budget": "5", "headline": {"total": "2.000000"}, "marginal": {"total": "2.000000"}, "sunk": [], "is_lower_bound": False,
         "lines": [LINE]}  # fmt: skip
    return statement.RunBill(run, run, b, posted_charges)


def test_the_amounts_of_the_table_sum_to_the_whole(tmp_path: Path) -> None:
    evil = charges.payload('=HYPERLINK("http://x";"y")', ITEM, D(1), "item", D("7.25"), 'a "quoted", note')
    data = statement.of([run_bill(posted(tmp_path, HOUR, evil, {"reverses": 1}), "@run")], "a book")
    rows = list(csv.DictReader(io.StringIO(statement.to_csv(data))))
    assert sum(D(r["amount"]) for r in rows) == D(data["charges"]["with_marginal"]) == D("9.25")
    assert rows[0]["price_source"].startswith("'=") and rows[0]["run"] == "'@run" and rows[2]["note"] == 'a "quoted", note'
    assert rows[2]["resource"].startswith("'=HYPERLINK") and rows[3]["amount"] == "-120.150000"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_several_runs_are_summed(counts: list[int]) -> None:
    runs = [run_bill([charges.read(i + 1, 0.0, ITEMS) for i in range(n)], f"r{k}") for k, n in enumerate(counts)]
    data = statement.of(runs, "a book")
    assert D(data["marginal"]["total"]) == 2 * len(runs) and D(data["budget"]) == 5 * len(runs)
    assert D(data["charges"]["total"]) == 35 * sum(counts)
    assert D(data["charges"]["with_marginal"]) == sum(D(r["charges"]["with_marginal"]) for r in data["runs"])
    assert sum(D(v) for v in data["outcomes"].values()) == D(data["marginal"]["total"])
    assert all(("run" in line) == (len(runs) > 1) for line in data["lines"])
