"""`shoestring report`: write a run's page again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shoestring.records import UserError


def add(sub: Any) -> argparse.ArgumentParser:
    c = sub.add_parser("report", help="write a run's page again")
    c.add_argument("run", type=Path, help="a run's folder")
    return c


def run(args: argparse.Namespace) -> int:
    from shoestring.report import page

    if not (args.run / "run.json").exists():
        raise UserError(f"{args.run}: no run.json; give the folder of a run, such as runs/quickstart")
    print(page.write(args.run))
    return 0
