"""`shoestring charge`: post to a run what no machine sees, or take such a line back."""

from __future__ import annotations

import argparse
import fcntl
import json
from pathlib import Path
from typing import Any

from shoestring.commands import _runs
from shoestring.commands._options import amount
from shoestring.records import UserError

MOST = 400  # characters of a note; a bill's cell holds no more


def add(sub: Any) -> argparse.ArgumentParser:
    c = sub.add_parser("charge", help="post to a run what no machine sees: people, labels, invoices")
    c.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    what = c.add_mutually_exclusive_group(required=True)
    what.add_argument("--people", metavar="12h@80", help="hours and US dollars an hour")
    what.add_argument("--amount", metavar="'35 USD'", help="an amount, with --what")
    what.add_argument("--reverse", metavar="ENTRY", help="take a charge back: its line in the ledger, as the bill shows it")
    c.add_argument("--what", help="what the amount paid for, such as labelling")
    c.add_argument("--note", default="", help="anything that explains the line")
    c.add_argument("--json", action="store_true", help="as data (docs/json/charge.md)")
    return c


def run(args: argparse.Namespace) -> int:
    from shoestring.cost import charges, statement
    from shoestring.cost.ledger import Ledger

    _runs.check(args.run)
    if (args.run / "bill.json").is_file():
        _runs.load([args.run], None, None)  # what could not be billed afterwards is not charged
    payload = None if args.reverse else _payload(args)
    with Ledger.open(args.run / "ledger.jsonl") as ledger:
        if payload is None:
            seq = _entry(args.reverse)
            was = charges.open_lines(ledger.refresh().charges).get(seq)
            if was is None:
                raise UserError(f"{args.run / 'ledger.jsonl'}:{seq}: {_why_not(ledger.state.charges, seq)}")
            payload = {"reverses": seq, "note": _text(args.note, "--note")}
        entry = ledger.append("charge", payload)
        posted = list(ledger.refresh().charges)
    rows = statement.charge_rows(args.run.resolve().name, posted)
    mine = next(r for r in rows if r["entry"] == entry.seq)
    written = _rewrite(args.run)
    if args.json:
        total = sum(c.amount for c in charges.settled(posted))
        said = {"run": str(args.run), "charge": mine, "charges_total": f"{total:f}", "bill_rewritten": written}
        print(json.dumps(said, indent=1))
    else:
        print(f"{args.run / 'ledger.jsonl'}:{entry.seq}: {mine['what']}, {mine['amount']} USD"
              + ("" if written else "; the run's bill.json follows when it ends"))  # fmt: skip
    return 0


def _payload(args: argparse.Namespace) -> dict[str, Any]:
    from decimal import Decimal

    from shoestring.cost import charges
    from shoestring.cost.decimals import MICRO

    note = _text(args.note, "--note")
    if args.people:
        hours, rate = charges.people(args.people)
        return charges.payload(_text(args.what or "people", "--what"), charges.HOURS, hours, "hour", rate, note)
    if not args.what:
        raise UserError('--amount needs --what, as in --amount "35 USD" --what labelling')
    usd = amount(args.amount, "--amount")
    if usd != usd.quantize(MICRO) or usd >= 10**12:
        raise UserError(f"--amount {args.amount!r}: at most six decimals and less than a trillion")
    return charges.payload(_text(args.what, "--what"), charges.ITEM, Decimal(1), "item", usd, note)


def _text(text: str, option: str) -> str:
    if len(text) > MOST or not text.isprintable():
        raise UserError(f"{option}: one line of at most {MOST} characters, please")
    return text


def _entry(text: str) -> int:
    if not text.isdecimal() or not text.isascii():
        raise UserError(f"--reverse {text!r}: give the charge's line in the ledger, a number that `shoestring bill` shows")
    return int(text)


def _why_not(posted: list[Any], seq: int) -> str:
    from shoestring.cost import charges

    if any(c.reverses == seq for c in posted):
        return "this charge was taken back already"
    known = ", ".join(str(s) for s in charges.open_lines(posted))
    return f"no charge there; charges stand at lines: {known}" if known else "no charge there; the run has none"


def _rewrite(run: Path) -> bool:
    """bill.json and the page again, with the charges; not while the run works: it writes both when it ends."""
    from shoestring.cost import statement
    from shoestring.report import page

    if not (run / "bill.json").is_file():
        return False
    with open(run / "run.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        m = _runs.load([run], None, None)[0]
        old = m.folder.bill or m.bill  # as it was priced then: a newer price book rewrites no history
        page.replace(run / "bill.json", json.dumps(statement.with_charges(old, m.name, m.state.charges), indent=1) + "\n")
        if (run / "report.html").is_file():
            page.write(run)
    return True
