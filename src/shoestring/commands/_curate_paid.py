"""`shoestring curate --labels URL`: the same choice with domains that a label model says, as a run of one curate stage."""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from shoestring.commands import _one_stage
from shoestring.records import UserError


def folder_of(args: argparse.Namespace) -> Path:
    return args.work or args.out.with_name(args.out.name + ".run")


def run(args: argparse.Namespace, server: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """(exit code, what `curate` shows; None where it was stopped before there was a choice)."""
    if args.compare:
        raise UserError("--compare is for choices that cost nothing: run it without --labels")
    if args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder; name a file")
    folder = folder_of(args)
    if args.out.exists() and not args.resume:
        raise UserError(f"{args.out} exists; name another file, or --resume to go on with the run in {folder}")
    names = [n.strip() for n in (args.label_names or "").split(",") if n.strip()]
    stage = {
        "use": "curate", "sources": args.sources, "against": args.against, "count": args.count, "candidates": args.count,
        "samples": 0, "select": args.select, "band": list(args.band), "too_easy": args.too_easy, "family_high": 1.0,
        "clusters": args.domains, "language": args.language, "labels": server | ({"names": names} if names else {}),
    }  # fmt: skip
    if args.select == "s1":
        stage["within"] = "length"
    places = {"labels": "--labels", "sources": "SOURCE", "against": "--against", "count": "--count", "band": "--band"}
    code = _one_stage.run(args, "curate", stage, places, folder, args.resume and (folder / "run.json").exists())
    if not (folder / "problems.jsonl").exists():
        return code, None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "problems.jsonl", args.out)
    return code, _result(args, folder)


def _result(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from shoestring.data.pool.folders import peak_bytes

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    chosen = [json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines()]
    licences = Counter((r["source"], r["licence"]) for r in chosen)
    seconds = {r["name"]: float(r["seconds"]) for r in read("run.json")["stages"]}
    return {
        "out": str(args.out), "work": str(folder), "sources": list(args.sources), "against": list(args.against),
        "funnel": read("funnel.json"),
        "selection": {
            "selector": args.select, "asked": args.count, "chosen": len(chosen), "seed": args.seed, "length_basis": None,
            "domains_from": "labels", "rated": sum(r["pass_rate"] is not None for r in chosen),
        },
        "domains": [{k: d[k] for k in ("domain", "pool", "chosen")} for d in read("domains.json")],
        "licences": [{"source": s, "licence": li or None, "problems": n} for (s, li), n in sorted(licences.items())],
        "compare": None,
        "cost": {"runner": "run", "seconds": seconds, "resumed": [], "peak_bytes": peak_bytes(), "basis": "measured"},
        "paid": _one_stage.paid(folder),
    }  # fmt: skip
