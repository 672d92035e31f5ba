"""Several runs' bills as one statement: sums, what each outcome cost, charges by hand, and who paid.

Pure: it takes bills as `bill.to_dict` makes them and adds them up. Totals stay apart: the headline (useful and idle time),
the marginal (failures too: every line), charges that no machine sees, sunk costs. Funding pays the total; it lowers none.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from shoestring.cost import charges
from shoestring.cost.charges import Charge
from shoestring.cost.decimals import plain, usd
from shoestring.records import OUTCOMES

ZERO = Decimal(0)
COLUMNS = ("run", "kind", "stage", "resource", "quantity", "unit", "unit_price", "amount", "currency", "outcome",
           "price_source", "price_date", "note")  # fmt: skip
FORMULA = tuple("=+-@\t\r\n|＝＋－＠")  # the wide forms run in spreadsheets of East Asian locales
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class RunBill:
    """One run: `bill` is bill.json's content, `variance` that of `variance.of` or None (`why_no_variance` says why)."""

    run: str
    path: str
    bill: Mapping[str, Any]
    charges: Sequence[Charge] = ()
    status: str = ""
    variance: Mapping[str, Any] | None = None
    why_no_variance: str = ""
    accuracy: Mapping[str, Any] | None = None  # {"model", "accuracy", "ci95"} of the last trained model
    funding: Sequence[Mapping[str, Any]] = field(default=())
    answers: Sequence[Mapping[str, Any]] = field(default=())  # a row a scored model: what a thousand answers cost


def outcomes(lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Dollars by outcome, all six, in the order of `records.OUTCOMES`; lines without a price are in none."""
    sums = dict.fromkeys(OUTCOMES, ZERO)
    for line in lines:
        if line.get("amount") is not None:
            sums[line["outcome"]] += Decimal(line["amount"])
    return {k: usd(v) for k, v in sums.items()}


def charge_rows(run: str, posted: Iterable[Charge]) -> list[dict[str, Any]]:
    """Charges and reversals as rows of a bill; `entry` is the line of the ledger, which `charge --reverse` takes."""
    return [
        {
            "run": run, "entry": c.seq, "date": datetime.fromtimestamp(c.time, UTC).strftime("%Y-%m-%d"), "what": c.what,
            "resource": c.sku, "quantity": plain(c.quantity), "unit": c.unit, "unit_price": plain(c.unit_price),
            "amount": f"{c.amount:f}", "reverses": c.reverses, "note": c.note,
        }
        for c in charges.settled(posted)
    ]  # fmt: skip


def section(rows: Sequence[Mapping[str, Any]], marginal: str) -> dict[str, Any]:
    """The charges of a bill with their total, and the marginal total with them."""
    total = sum((Decimal(r["amount"]) for r in rows), ZERO)
    return {"total": usd(total), "with_marginal": usd(total + Decimal(marginal)),
            "lines": [dict(r) for r in rows]}  # fmt: skip


def with_charges(bill: Mapping[str, Any], run: str, posted: Sequence[Charge]) -> dict[str, Any]:
    """bill.json's content with the run's charges, where it has any."""
    rest = {k: v for k, v in bill.items() if k != "charges"}
    return {**rest, "charges": section(charge_rows(run, posted), bill["marginal"]["total"])} if posted else rest


def of(runs: Sequence[RunBill], priced_with: str) -> dict[str, Any]:
    """The content of `bill --json`. One run: what bill.json holds, and more beside it. Several: their sums, each line with
    its run, and each run's own bill under "runs"."""
    many = len(runs) > 1
    lines = [{**({"run": r.run} if many else {}), **line} for r in runs for line in r.bill["lines"]]
    marginal = _sum(r.bill["marginal"]["total"] for r in runs)
    sunk: dict[str, dict[str, Any]] = {}
    for r in runs:
        for row in r.bill["sunk"]:
            sunk.setdefault(str(row), dict(row))
    return {
        "currency": "USD",
        "budget": plain(sum((Decimal(r.bill["budget"]) for r in runs), ZERO)),
        "headline": {"total": _sum(r.bill["headline"]["total"] for r in runs)},
        "marginal": {"total": marginal},
        "sunk": list(sunk.values()),
        "is_lower_bound": any(r.bill["is_lower_bound"] for r in runs),
        "lines": lines,
        "winner": _winner(runs),
        "outcomes": outcomes(lines),
        "charges": section([row for r in runs for row in charge_rows(r.run, r.charges)], marginal),
        "funding": _funding(runs),
        "priced_with": priced_with,
        "runs": [_one(r) for r in runs],
    }


def _one(r: RunBill) -> dict[str, Any]:
    b = r.bill
    return {
        "run": r.run, "path": r.path, "status": r.status, "budget": b["budget"], "headline": b["headline"]["total"],
        "marginal": b["marginal"]["total"], "is_lower_bound": b["is_lower_bound"], "outcomes": outcomes(b["lines"]),
        "charges": section(charge_rows(r.run, r.charges), b["marginal"]["total"]),
        "funding": [dict(row) for row in r.funding], "accuracy": r.accuracy and dict(r.accuracy),
        "variance": r.variance and dict(r.variance), "why_no_variance": r.why_no_variance, "lines": list(b["lines"]),
        "answers": [dict(row) for row in r.answers],
    }  # fmt: skip


def _funding(runs: Sequence[RunBill]) -> list[dict[str, Any]]:
    """Who paid, over the runs that say so: each run's own credits, added up by source."""
    sums: dict[str, tuple[Decimal, Decimal | None]] = {}
    for row in (row for r in runs for row in r.funding):
        amount, left = sums.get(row["source"], (ZERO, None))
        rest = None if row["left"] is None else (left or ZERO) + Decimal(row["left"])
        sums[row["source"]] = amount + Decimal(row["amount"]), rest
    return [{"source": k, "amount": f"{a:f}", "left": None if b is None else f"{b:f}"} for k, (a, b) in sums.items()]


def _winner(runs: Sequence[RunBill]) -> dict[str, Any] | None:
    """The run whose model scored best, which the headline means where several runs were tries at one thing; `tied_with`
    are the runs whose intervals overlap with its. None where a run has no score."""
    if any(r.accuracy is None for r in runs):
        return None
    best = max(runs, key=lambda r: r.accuracy["accuracy"])  # type: ignore[index]
    low, high = best.accuracy["ci95"]  # type: ignore[index]
    tied = [r.run for r in runs if r is not best and r.accuracy["ci95"][1] >= low and r.accuracy["ci95"][0] <= high]  # type: ignore[index]
    return {"run": best.run, **dict(best.accuracy or {}), "headline": best.bill["headline"]["total"], "tied_with": tied}


def to_csv(statement: Mapping[str, Any]) -> str:
    """One row a line and a charge, so that the amount column sums to the marginal total with charges. A cell of text that a
    spreadsheet would take for a formula begins with an apostrophe (OWASP, CSV injection)."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for run in statement["runs"]:
        for line in run["lines"]:
            ref = line.get("price_ref") or {}
            _write(writer, run["run"], "metered", line["stage"], line["resource"], line["quantity"], line["unit"],
                   line["unit_price"], line["amount"], statement["currency"], line["outcome"], ref.get("source"),
                   ref.get("date"), "" if line["amount"] is not None else "the price is unknown")  # fmt: skip
        for c in run["charges"]["lines"]:
            _write(writer, run["run"], "charge", "", c["what"], c["quantity"], c["unit"], c["unit_price"], c["amount"],
                   statement["currency"], "", f"{c['run']} ledger line {c['entry']}", c["date"], c["note"])  # fmt: skip
    return out.getvalue()


def _write(writer: Any, *cells: Any) -> None:
    writer.writerow([safe(c) for c in cells])


def safe(cell: Any) -> str:
    """A cell that a spreadsheet shows and does not run. Plain numbers stay numbers, negative ones too."""
    text = "" if cell is None else str(cell).replace("\0", "")
    if _NUMBER.fullmatch(text) or not text:
        return text
    return f"'{text}" if text.lstrip(" \u00a0\u3000").startswith(FORMULA) else text


def _sum(amounts: Iterable[str]) -> str:
    return usd(sum((Decimal(a) for a in amounts), ZERO))
