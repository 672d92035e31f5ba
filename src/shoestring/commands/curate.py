"""`shoestring curate`: from sources of any size to N problems, every free step counted. What costs is a run of the stage."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from shoestring.commands import _curate_paid, _one_stage
from shoestring.commands.parser import both
from shoestring.records import UserError

SELECT = ("s1", "random", "longest", "band", "k-centre")
SHOWN = 30  # domains in the table; --json has all


def add(sub: Any) -> argparse.ArgumentParser:
    said = "choose N problems of a pool: format, duplicates, decontamination, quality, then a selector; free of charge"
    c = sub.add_parser("curate", help="choose N problems of a pool", description=f"{said}. See docs/curate.md.")
    c.add_argument("sources", nargs="+", metavar="SOURCE", help="FILE?prompt=COLUMN&answer=COLUMN, org/name, bundled:X, gym:X")
    c.add_argument("--out", type=Path, required=True, metavar="FILE", help="the chosen problems, JSON lines")
    c.add_argument("--count", type=int, default=1000, metavar="N", help="problems to choose (default: 1000)")
    c.add_argument("--against", nargs="+", default=[], metavar="SOURCE", help="evaluation sets that must stay unseen")
    c.add_argument("--select", default="s1", choices=SELECT, help="how to choose (default: s1, a domain uniformly, long first)")
    c.add_argument("--compare", action="store_true", help="how far the selectors' choices agree, and the domains of each")
    c.add_argument("--band", type=float, nargs=2, default=(0.1, 0.9), metavar=("LOW", "HIGH"), help="pass rates of band")
    c.add_argument("--too-easy", type=float, default=0.99, metavar="RATE", help="drop what a recorded pass rate exceeds")
    c.add_argument("--domains", type=int, default=50, metavar="K", help="clusters where rows have no domain (default: 50)")
    c.add_argument("--language", default="en", choices=["en", "any"], help="en drops what is not English")
    c.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    c.add_argument("--work", type=Path, metavar="FOLDER", help="where the steps are kept (default: FILE.steps)")
    c.add_argument("--resume", action="store_true", help="take up the steps that an earlier call has finished")
    c.add_argument("--json", action="store_true", help="as JSON (docs/json/curate.md)")
    _one_stage.server_arguments(c, "labels", "says each problem's domain")
    c.add_argument(*both("label_names"), metavar="A,B", help="the only domains there are (default: any that it says)")
    return c


def run(args: argparse.Namespace) -> int:
    _checked(args)
    if importlib.util.find_spec("numpy") is None:
        raise UserError("curate needs numpy: pip install 'shoestring[curate]'")
    if (server := _one_stage.table(args, "labels", ("label_names",))) is not None:
        code, paid = _curate_paid.run(args, server)
        if paid is not None:
            print(json.dumps(paid, indent=1, ensure_ascii=False)) if args.json else _show(paid)
        return code
    from shoestring.data import choice, selectors
    from shoestring.data.pool import Settings, curate_pool
    from shoestring.stages.workbench import gradable

    work: Path = args.work or args.out.with_name(args.out.name + ".steps")
    _ready(args, work)
    settings = Settings(language=args.language)
    made = curate_pool(args.sources, args.against, work, settings, gradable)
    found = choice.candidates(made.problems_path, args.domains, args.seed)
    funnel = list(made.funnel)
    hard = choice.difficulty(found, args.too_easy)
    if hard:
        funnel.append(hard)
    pool = choice.pool_of(found, (args.band[0], args.band[1]))
    if not found.problems:
        raise UserError(f"--too-easy {args.too_easy:g} leaves no problem; raise it")
    sizes = Counter(p.domain for p in found.problems)
    try:
        chosen = selectors.choose(args.select, pool, args.count, args.seed)
    except ValueError as e:
        raise UserError(f"--select {args.select}: {e}") from None
    if not chosen:
        raise UserError(f"--band {args.band[0]:g} {args.band[1]:g} leaves no problem; widen it")
    counts = Counter(p.domain for p in chosen)
    why = f"{args.select}: {len(counts)} of {len(sizes)} domains"
    funnel.append({"step": "diversity", "before": len(found.problems), "after": len(chosen), "why": why})
    choice.write(found, chosen, args.out)
    result = {
        "out": str(args.out), "work": str(work), "sources": list(args.sources), "against": list(args.against),
        "funnel": funnel,
        "selection": {
            "selector": args.select, "asked": args.count, "chosen": len(chosen), "seed": args.seed,
            "length_basis": found.length_basis, "domains_from": found.domains_from, "rated": len(found.rates),
        },
        "domains": [
            {"domain": d, "pool": n, "chosen": counts[d]} for d, n in sorted(sizes.items(), key=lambda i: (-i[1], i[0]))
        ],
        "licences": [
            {"source": s, "licence": li or None, "problems": n} for (s, li), n in sorted(_licences(chosen).items())
        ],
        "compare": _compared(pool, args, chosen) if args.compare else None,
        "cost": {
            "runner": made.runner, "seconds": made.seconds, "resumed": list(made.resumed),
            "peak_bytes": made.peak, "basis": "measured",
        },
        "paid": None,
    }  # fmt: skip
    print(json.dumps(result, indent=1, ensure_ascii=False)) if args.json else _show(result)
    return 0


def _checked(args: argparse.Namespace) -> None:
    if args.count < 1:
        raise UserError(f"--count {args.count} must be at least 1")
    if args.domains < 1:
        raise UserError(f"--domains {args.domains} must be at least 1")
    low, high = args.band
    if not (math.isfinite(low) and math.isfinite(high) and 0 <= low <= high <= 1):
        raise UserError(f"--band {low:g} {high:g}: pass rates need 0 <= LOW <= HIGH <= 1")
    if not 0 <= args.too_easy <= 1:
        raise UserError(f"--too-easy {args.too_easy:g} must be a pass rate from 0 to 1")


def _ready(args: argparse.Namespace, work: Path) -> None:
    """Nothing of an earlier call is lost or taken up unasked."""
    if args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder; name a file")
    if args.resume:
        return
    if args.out.exists():
        raise UserError(f"{args.out} exists; name another file, or --resume to choose anew from its steps")
    if work.exists() and any(work.iterdir()):
        if not (work / "problems").is_dir() and not (work / "rows").is_dir() and not (work / "format").is_dir():
            raise UserError(f"{work} holds something else; name another folder with --work")
        for step in ("rows", "marks", "format", "duplicates", "near", "decontamination", "quality", "problems"):
            shutil.rmtree(work / step, ignore_errors=True)


def _licences(chosen: Any) -> Counter[tuple[str, str]]:
    return Counter((p.source, p.licence) for p in chosen)


def _compared(pool: Any, args: argparse.Namespace, chosen: Any) -> dict[str, Any]:
    """Every selector's choice beside the others; one that lacks what it needs is named with why."""
    from shoestring.data import selectors

    made, left_out = {args.select: chosen}, {}
    for name in SELECT:
        if name in made:
            continue
        try:
            made[name] = selectors.choose(name, pool, args.count, args.seed)
        except ValueError as e:
            left_out[name] = str(e)
    ordered = {name: made[name] for name in SELECT if name in made}
    return {**selectors.compare(ordered), "chosen": {n: len(c) for n, c in ordered.items()}, "left_out": left_out}


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from shoestring.report.terminal import print_funnel

    screen = Console()
    print_funnel(result["funnel"], screen)
    rows, select = result["domains"], result["selection"]
    table = Table(title=f"domains (from {select['domains_from']})", box=None, title_justify="left")
    for name, side in (("domain", "left"), ("pool", "right"), ("chosen", "right")):
        table.add_column(name, justify=side)  # pyright: ignore[reportArgumentType]
    for row in rows[:SHOWN]:
        table.add_row(row["domain"] or "(none)", f"{row['pool']:,}", f"{row['chosen']:,}")
    if len(rows) > SHOWN:
        pool, chosen = (sum(r[k] for r in rows[SHOWN:]) for k in ("pool", "chosen"))
        table.add_row(f"{len(rows) - SHOWN} more (--json)", f"{pool:,}", f"{chosen:,}")
    screen.print(table)
    if result["compare"]:
        _show_compared(result["compare"], screen, Table)
    unknown = sum(row["problems"] for row in result["licences"] if row["licence"] is None)
    if unknown:
        print(f"{unknown} of the chosen problems name no licence: see `licences` of --json before you train or publish")
    cost = result["cost"]
    spent = sum(cost["seconds"].values())
    print(
        f"{select['chosen']} problems in {result['out']} ({cost['runner']}, {spent:.1f} s, "
        f"{cost['peak_bytes'] / 2**30:.2f} GiB at most, measured)"
    )


def _show_compared(found: dict[str, Any], screen: Any, table: Any) -> None:
    made = table(title="overlap of the choices (Jaccard), and domains covered", box=None, title_justify="left")
    for name in ("", *found["overlap"], "domains", "chosen"):
        made.add_column(name, justify="left" if not name else "right")
    for name, row in found["overlap"].items():
        made.add_row(name, *[f"{v:.2f}" for v in row.values()], f"{found['coverage'][name]:.0%}", str(found["chosen"][name]))
    screen.print(made)
    for name, why in found["left_out"].items():
        print(f"{name}: left out: {why}")
