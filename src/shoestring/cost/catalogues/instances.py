"""Our own instances.csv: machines with on-demand and spot prices by zone, dated row by row."""

from __future__ import annotations

import csv
from pathlib import Path

from shoestring.cost.catalogues import Ask, Taken, one_price_each
from shoestring.cost.rows import MachineRow
from shoestring.cost.sources.instances import machine
from shoestring.records import UserError

NAME = "instances"


def fits(path: Path, head: str) -> bool:
    return {"instance_type", "ondemand_usd_per_hour", "spot_status"} <= set(head.partition("\n")[0].strip().split(","))


def rows(path: Path, ask: Ask) -> Taken:
    found: list[MachineRow] = []
    reader = csv.DictReader(path.read_text(encoding="utf-8").splitlines(), strict=True)
    try:
        for line in reader:
            found.append(machine(line))
    except KeyError as e:
        raise UserError(f"{path}:1: the column {e} is missing") from None
    except (ValueError, ArithmeticError, TypeError, AttributeError, csv.Error) as e:
        raise UserError(f"{path}:{reader.line_num}: this row cannot be read: {e}") from None
    taken = Taken()
    priced = [r for r in found if r.ondemand is not None or r.spot is not None]
    one_price_each(priced, lambda r: (r.provider, r.instance, r.region, r.zone), taken)
    if len(priced) < len(found):
        taken.said.append(f"left out, no price or $0 (unknown, not free): {len(found) - len(priced)} rows")
    return taken
