"""SkyPilot's catalogue of one cloud (catalogs/vN/<cloud>/vms.csv): a machine a row, by region and zone.

Its clouds write the same columns differently, and each habit is mended here:
- SpotPrice 0.00 is unknown; a spot column that repeats the on-demand price in every row says nothing either;
- GpuInfo's SizeInMiB is GiB at RunPod (80), the whole node's at Vast, one GPU's elsewhere. TotalGpuMemoryInMiB is one
  GPU's at Lambda, and Count is always 1 at Yotta: neither is read, the row's AcceleratorCount is;
- Vast writes "Texas, US, NA" for a region: the country is the region and the first part the zone.
"""

from __future__ import annotations

import ast
import csv
from decimal import Decimal
from functools import cache
from pathlib import Path

from shoestring.cost.catalogues import Ask, Taken, amount, one_price_each
from shoestring.cost.rows import MachineRow
from shoestring.cost.sources import DATA
from shoestring.cost.sources.instances import SPOT_STATUS
from shoestring.cost.sources.instances import rows as shipped
from shoestring.records import UserError

NAME = "skypilot-csv"
COLUMNS = ("InstanceType", "vCPUs", "MemoryGiB", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region")
NAMES = {"A100": "A100-40GB", "RTXPRO6000S": "RTX-PRO-6000", "RTXPRO6000": "RTX-PRO-6000", "RTXA6000": "A6000",
         "RTX6000-Ada": "RTX-6000-Ada"}  # fmt: skip
VARIANTS = (("A100-40GB", 60, "A100-80GB"), ("H100", 90, "H100-NVL"), ("V100", 24, "V100-32GB"))  # above so many GiB


def fits(path: Path, head: str) -> bool:
    return {"InstanceType", "SpotPrice"} <= set(head.partition("\n")[0].strip().split(","))


def rows(path: Path, ask: Ask) -> Taken:
    provider = (ask.provider or (path.parent.name if path.stem == "vms" else "")).lower()
    if not provider:
        raise UserError(f"{path}: the file does not say whose prices these are; add --provider NAME")
    reader = csv.DictReader(path.read_text(encoding="utf-8").splitlines(), strict=True)
    try:
        lines = [(reader.line_num, line) for line in reader]
    except csv.Error as e:
        raise UserError(f"{path}:{reader.line_num}: this row cannot be read: {e}") from None
    missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}:1: the column {missing[0]} is missing")
    pairs = [(amount(line["Price"]), amount(line["SpotPrice"])) for _, line in lines]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    repeats = bool(both) and all(a == b for a, b in both)
    taken, found = Taken(), []
    unknown = 0
    for (number, line), (usd, spot) in zip(lines, pairs, strict=True):
        spot, remark = _spot(usd, spot, repeats)
        if usd is None and spot is None:
            unknown += 1
            continue
        try:
            found.append(_machine(line, provider, usd, spot, remark, ask))
        except (ValueError, ArithmeticError) as e:
            raise UserError(f"{path}:{number}: this row cannot be read: {e}") from None
    one_price_each(found, lambda r: (r.provider, r.instance, r.region, r.zone), taken)
    if repeats:
        taken.said.append("spot prices left out: the file repeats the on-demand price in every row")
    if unknown:
        taken.said.append(f"left out, no price or $0 (unknown, not free): {unknown} rows")
    if blind := sum(1 for r in taken.rows if isinstance(r, MachineRow) and r.gpus and not r.gpu_memory_gib):
        taken.said.append(f"GPU memory unknown: {blind} rows")
    return taken


def _spot(usd: Decimal | None, spot: Decimal | None, repeats: bool) -> tuple[Decimal | None, str]:
    if spot is None or (repeats and usd is not None):
        return None, ""
    if usd is None:
        return spot, SPOT_STATUS["spot_only"]
    if spot == usd:
        return spot, SPOT_STATUS["no_discount"]
    return spot, SPOT_STATUS["floor_10pct"] if spot * 10 == usd else ""


def _machine(
    line: dict[str, str], provider: str, usd: Decimal | None, spot: Decimal | None, remark: str, ask: Ask
) -> MachineRow:
    place = [p.strip() for p in (line["Region"] or "").split(",")]
    region, zone = (place[1], place[0]) if len(place) == 3 else ((line["Region"] or "").strip(), "")
    count = Decimal(line["AcceleratorCount"] or 0)
    name = (line["AcceleratorName"] or "").strip()
    if count != int(count):
        raise ValueError(f"AcceleratorCount {count} is not whole")
    gpus = int(count) if name else 0
    gpu = NAMES.get(name, name) if gpus else ""
    memory, note = _memory(gpu, gpus, line.get("GpuInfo") or "")
    for base, above, other in VARIANTS:
        if gpu == base and memory > above:
            gpu = other
    return MachineRow(
        provider, (line["InstanceType"] or "").strip(), ask.source, ask.date, region,
        (line.get("AvailabilityZone") or zone).strip(), gpu, gpus, memory, int(Decimal(line["vCPUs"] or 0)),
        float(Decimal(line["MemoryGiB"] or 0)), usd, spot, note, remark,
    )  # fmt: skip


def _memory(gpu: str, gpus: int, info: str) -> tuple[float, str]:
    """GiB of one GPU and what had to be mended; 0.0 where the row does not tell."""
    try:
        size = float(ast.literal_eval(info)["Gpus"][0]["MemoryInfo"]["SizeInMiB"]) if info and gpus else 0.0
    except (ValueError, SyntaxError, KeyError, IndexError, TypeError, RecursionError, MemoryError):
        size = 0.0
    known = _known().get(gpu, ())
    if size <= 0:  # no word about it: what this GPU has elsewhere, where that is one size
        return (known[0], "") if len(known) == 1 else (0.0, "")
    if size < 1024:
        return size, f"GPU memory stated as {size:g} MiB, taken as GiB"
    gib = size / 1024
    if gpus == 1:
        return round(gib, 1), ""
    # one GPU's or the whole node's? The one that this GPU, or another GPU, is known to have
    sizes = known or tuple(m for ms in _known().values() for m in ms)
    one, all_of_them = (min(abs(g / m - 1) for m in sizes) for g in (gib, gib / gpus))
    if min(one, all_of_them) > 0.1 or (not known and abs(one - all_of_them) < 0.1):
        return 0.0, ""
    return (round(gib, 1), "") if one <= all_of_them else (round(gib / gpus, 1), "GPU memory stated for the whole node")


@cache
def _known() -> dict[str, tuple[float, ...]]:
    """GPU → the sizes of one, in GiB, that the shipped machines have; families together ("A100-40GB" has both A100s')."""
    made: dict[str, set[float]] = {}
    for row in shipped(DATA / "instances.csv"):
        made.setdefault(row.gpu, set()).add(row.gpu_memory_gib)
    for base, _, other in VARIANTS:
        made.setdefault(base, set()).update(made.get(other, ()))
    return {gpu: tuple(sorted(sizes)) for gpu, sizes in made.items()}
