"""`shoestring plan`: what a recipe will use and cost, before a cent is spent."""

from __future__ import annotations

import argparse
import json
from typing import Any

from shoestring.commands import recipes


def add(sub: Any) -> argparse.ArgumentParser:
    c = recipes.recipe_arguments(sub, "plan", "what a recipe will use and cost")
    c.add_argument("--json", action="store_true")
    return c


def run(args: argparse.Namespace) -> int:
    from shoestring import plan
    from shoestring.report import terminal

    made, book = recipes.planned(recipes.recipe_of(args))
    data = plan.to_dict(made, book)
    if args.json:
        print(json.dumps(data, indent=1))
    else:
        terminal.print_plan(data, recipes.console())
    plan.refuse_if_too_small(made)
    return 0
