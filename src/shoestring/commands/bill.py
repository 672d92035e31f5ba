"""`shoestring bill`: the itemised bill of one run or several, against the plan, under any price book."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.commands import _options, _runs

if TYPE_CHECKING:
    from shoestring.cost.statement import RunBill


def add(sub: Any) -> argparse.ArgumentParser:
    c = sub.add_parser("bill", help="the itemised bill of a run, or of several")
    c.add_argument("run", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    form = c.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as data (docs/json/bill.md)")
    _runs.out_argument(form, "csv", "a table for a spreadsheet")
    _runs.out_argument(form, "html", "a page that loads nothing")
    _options.price_arguments(c)
    return c


def run(args: argparse.Namespace) -> int:
    from shoestring.commands.recipes import console
    from shoestring.cost import statement
    from shoestring.report import statement as shown
    from shoestring.report import terminal

    loaded = _runs.load(args.run, args.prices, args.rate)
    bills = [run_bill(m) for m in loaded]
    data = statement.of(bills, _runs.priced_with(args.prices, args.rate))
    if args.json:
        print(json.dumps(data, indent=1))
    elif args.csv:
        _runs.write(args.csv, statement.to_csv(data), bom=True)
    elif args.html:
        _runs.write(args.html, shown.page(data, [m.folder for m in loaded]))
    else:
        screen = console()
        for m in loaded:
            terminal.print_bill(m.bill, screen, m.folder.run)
        shown.print_statement(data, screen)
    return 0


def run_bill(m: _runs.Loaded) -> RunBill:
    """A run's bill with its variance, charges, score and funding."""
    from shoestring.cost import variance
    from shoestring.cost.statement import RunBill
    from shoestring.report import scores

    plan, against, why = m.folder.plan, None, ""
    if plan.get("stages"):
        steps = {name: m.folder.steps(name) for name in m.folder.stage_order()}
        try:
            against = variance.of(plan, m.bill, variance.work_done(plan, steps))
        except (AttributeError, TypeError, ValueError, ArithmeticError) as e:  # a plan.json that somebody edited
            why = f"plan.json is not understood: {type(e).__name__}"
    else:
        why = m.folder.why_absent("plan.json") or "the plan has no stages"
    best = scores.final(m.folder)
    accuracy = best and {k: best.get(k) for k in ("model", "accuracy", "ci95")}
    return RunBill(
        m.name, str(m.path), m.bill, m.state.charges, str(m.folder.run.get("status") or ""), against, why,
        accuracy if accuracy and isinstance(accuracy["ci95"], list) else None, _funding(m), _answers(m),
    )  # fmt: skip


def _answers(m: _runs.Loaded) -> list[dict[str, Any]]:
    """What a thousand answers like its evaluation's cost, of every model that the run scored."""
    from shoestring.report import frontier

    rows = []
    for model in frontier.models(m.folder, m.bill, m.name)[0]:
        s = model.serving
        usd = s.usd and {"low": f"{s.usd.low:f}", "mid": f"{s.usd.mid:f}", "high": f"{s.usd.high:f}", "basis": "measured"}
        rows.append({"model": model.model, "stage": s.stage, "usd_per_1000": usd, "tokens_per_answer": s.tokens_per_answer,
                     "tokens_per_second": s.tokens_per_second, "why_unknown": s.why})  # fmt: skip
    return rows


def _funding(m: _runs.Loaded) -> list[dict[str, Any]]:
    """Who pays the metered total: the recipe's free credits first, then cash. Credits pay a cost, they never lower it."""
    from decimal import Decimal

    from shoestring.cost.funding import funding, parse

    amount = m.recipe.terms.credits
    if not amount:
        return []
    rows = funding(Decimal(m.bill["marginal"]["total"]), parse(amount))
    return [
        {"source": r.source, "amount": f"{r.amount:f}", "left": None if r.left is None else f"{r.left:f}"} for r in rows
    ]
