"""`shoestring ablate`: arms and seeds of a comparison as runs under one budget.

    shoestring ablate recipes/ablations/s1-mini.toml --plan     # minutes and dollars of each arm; nothing runs
    shoestring ablate recipes/ablations/s1-mini.toml
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from shoestring.records import UserError


def add(sub: Any) -> None:
    said = "runs of a comparison under one budget: arms, seeds, paired gains with intervals"
    c = sub.add_parser("ablate", help=said, description=f"{said[0].upper()}{said[1:]}.")
    c.add_argument("file", type=Path, metavar="FILE.toml", help="name, budget, recipe, seeds and [[arm]] tables")
    c.add_argument("--plan", action="store_true", help="print minutes and dollars of each arm, run nothing")
    c.add_argument("--resume", action="store_true", help="go on with an ablation that was stopped or killed")
    c.add_argument("--only", action="append", default=[], metavar="ARM", help="this arm alone; may be repeated")
    c.add_argument("--seeds", metavar="0,1,2", help="some of the file's seeds")
    c.add_argument("--rate", metavar="'0.10 USD/hour'", help="what an hour of this machine costs you")
    c.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that runs are kept in (default: runs)")
    c.add_argument("--json", action="store_true", help="print what it comes to as JSON; everything else goes to stderr")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from shoestring import stages
    from shoestring.ablate import file, planning, running
    from shoestring.report import ablation as report

    ablation = file.load(args.file, stages.configs(), args.rate or "")
    seeds = _seeds(args.seeds, ablation)
    console = Console(stderr=args.json)
    out = args.runs / ablation.name
    runner = running.Runner(ablation, out, console, seeds, args.only, args.resume, args.started)
    rows = runner.plan()
    planned = planning.to_dict(ablation, rows, seeds)
    report.print_plan(planned, console)
    if args.plan:
        if args.json:
            print(json.dumps(planned, indent=1))
        if not (out / running.PLAN).exists():
            planning.refuse_if_too_small(ablation, planned["needed_usd"])
        return 0
    whole = runner.run()
    made = running.read(out / running.RESULT) if (out / running.RESULT).exists() else None
    if made is not None:
        report.print_result(made, console)
        console.print(f"report {out / 'report.html'}", highlight=False, markup=False)
        if args.json:
            print(json.dumps(made, indent=1, ensure_ascii=False))
    if not whole:
        print(f"not all runs are done; go on with: shoestring ablate {args.file} --resume", file=sys.stderr)
    return 0 if whole else 130


def _seeds(said: str | None, ablation: Any) -> tuple[int, ...]:
    if said is None:
        return ablation.seeds
    try:
        wanted = tuple(dict.fromkeys(int(x) for x in said.split(",") if x.strip()))
    except ValueError:
        raise UserError(f"--seeds {said}: numbers separated by commas, as in 0,1,2") from None
    strange = [s for s in wanted if s not in ablation.seeds]
    if strange or not wanted:
        raise UserError(f"--seeds {said}: the file's seeds are {', '.join(map(str, ablation.seeds))}")
    return wanted
