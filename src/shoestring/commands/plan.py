"""`shoestring plan`: what a recipe will use and cost, before a cent is spent."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from shoestring.commands import recipes
from shoestring.records import UserError


def add(sub: Any) -> argparse.ArgumentParser:
    c = recipes.recipe_arguments(sub, "plan", "what a recipe will use and cost")
    c.add_argument("--json", action="store_true")
    said = "predict published runs, or a throughput or memory table, and compare"
    c.add_argument("--validate", type=Path, metavar="FILE.csv", help=said)
    for action in c._actions:
        if action.dest == "recipe":  # --validate needs none
            action.nargs, action.required = "?", False
    return c


def run(args: argparse.Namespace) -> int:
    if args.validate:
        return _validate(args)
    if args.recipe is None:
        raise UserError("plan: name a recipe (TOML), or --validate FILE.csv")
    from shoestring import plan
    from shoestring.report import terminal

    recipe = recipes.recipe_of(args)
    made, book = recipes.planned(recipe)
    data = plan.to_dict(made, book)
    if args.json:
        print(json.dumps(data, indent=1))
    else:
        terminal.print_plan(data, recipes.console())
        recipes.say_licences(recipe)
    plan.refuse_if_too_small(made)
    return 0


def _validate(args: argparse.Namespace) -> int:
    from shoestring.estimate import validate

    if args.recipe is not None:
        raise UserError(f"plan: either a recipe ({args.recipe}) or --validate {args.validate}, not both")
    report = validate.validate(args.validate)
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        from shoestring.report.validation import print_validation

        print_validation(report, recipes.console())
    return 0
