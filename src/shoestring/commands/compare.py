"""`shoestring compare`: the cost–accuracy frontier of runs, with intervals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from shoestring.commands import _options, _runs
from shoestring.records import UserError


def add(sub: Any) -> argparse.ArgumentParser:
    c = sub.add_parser("compare", help="accuracy against what it costs to train and to ask, over runs")
    c.add_argument("run", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    form = c.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as data (docs/json/compare.md)")
    _runs.out_argument(form, "html", "a page that loads nothing")
    _options.price_arguments(c)
    return c


def run(args: argparse.Namespace) -> int:
    from shoestring.commands.recipes import console
    from shoestring.report import frontier, page
    from shoestring.report.statement import print_comparison
    from shoestring.report.style import h, section

    loaded = _runs.load(args.run, args.prices, args.rate)
    found: list[frontier.Model] = []
    unplaced: list[tuple[str, str]] = []
    for m in loaded:
        models, without = frontier.models(m.folder, m.bill, m.name)
        found += models
        unplaced += without
    if not found:
        raise UserError(f"nothing to compare: {'; '.join(f'{n}: {w}' for n, w in unplaced)}")
    asked = {m.families: m.run for m in reversed(found)}
    if len(asked) > 1:
        (a, first), (b, second) = list(asked.items())[:2]
        raise UserError(f"{first} and {second} were scored on different families "
                        f"({', '.join(sorted(set(a) ^ set(b)))}); their accuracies do not compare")  # fmt: skip
    comparison = frontier.compare(found, unplaced)
    if args.json:
        print(json.dumps(frontier.to_dict(comparison), indent=1))
    elif args.html:
        names = ", ".join(m.name for m in loaded)
        body = section("The frontier: accuracy against what it costs", frontier.LEAD, frontier.pictures(comparison))
        _runs.write(args.html, page.shell(f"compare {names}", f"<header><h1>{h(names, 200)}</h1></header>{body}"))
    else:
        print_comparison(comparison, console())
    return 0
