"""`shoestring init`: a commented recipe, from a template or compiled from a budget. Nothing is overwritten unless told."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.commands._options import amount, hourly, price_arguments, write
from shoestring.commands.parser import nearest
from shoestring.records import UserError

if TYPE_CHECKING:
    from shoestring.compile import Candidate

OUT = Path("recipe.toml")
NAMED = 3  # bad lines that a refusal quotes; it counts the others
ONLY = ("base", "problems", "gpu", "pick", "rate", "prices")  # options that mean nothing beside a template


def templates() -> dict[str, Path]:
    """Name → file, sorted."""
    folder = Path(str(resources.files("shoestring") / "templates"))
    return {p.stem: p for p in sorted(folder.glob("*.toml"))}


def about(path: Path) -> str:
    """A template's first line, which says what it is for."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def add(sub: Any) -> argparse.ArgumentParser:
    said = "Write a commented recipe: from a template, or compiled from a budget, a base model and problems."
    c = sub.add_parser("init", help="write a commented recipe", description=said)
    c.add_argument("template", nargs="?", metavar="TEMPLATE", help="its name; without it the templates are listed")
    c.add_argument("--budget", metavar="USD", help="compile this budget into three candidates, such as 50 or '0.05 USD'")
    c.add_argument("--base", metavar="MODEL", help="the model to train: a name, a folder, a .gguf or a hub id")
    c.add_argument("--problems", metavar="FILE", help="problems with answers to check: a file, bundled:NAME or a hub id")
    c.add_argument("--gpu", metavar="NAME", help="rent this GPU, such as H100 (default: this machine)")
    c.add_argument("--pick", metavar="NAME", help="write this candidate: distil-sft, sft-grpo or lora")
    price_arguments(c)
    c.add_argument("--out", type=Path, metavar="FILE", help=f"where to (default: TEMPLATE.toml, or {OUT})")
    c.add_argument("--force", action="store_true", help="overwrite the file")
    c.add_argument("--list", action="store_true", help="list the templates")
    c.add_argument("--json", action="store_true", help="the candidates, as one JSON object")
    return c


def run(args: argparse.Namespace) -> int:
    if args.budget is not None:
        return _compiled(args)
    beside = [name for name in ONLY if getattr(args, name)]
    if beside or args.json:
        raise UserError(f"init: --{beside[0] if beside else 'json'} needs --budget, such as --budget 50")
    known = templates()
    if args.list or args.template is None:
        for name, path in known.items():
            print(f"{name:<12} {about(path)}")
        return 0
    if args.template not in known:
        near = nearest(args.template, list(known)) or f"; there are {', '.join(known)}"
        raise UserError(f"init: no template {args.template!r}{near}")
    out: Path = args.out or Path(f"{args.template}.toml")
    _write(out, known[args.template].read_text(encoding="utf-8"), args.force)
    print(f"wrote {out}; see what it costs: shoestring plan {out}")
    return 0


def _write(out: Path, text: str, over: bool) -> None:
    _check(out, over)
    write(out, text, over)


def _check(out: Path, over: bool) -> None:
    if out.is_dir():
        raise UserError(f"{out}: is a folder; give a file name with --out")
    if out.exists() and not over:
        raise UserError(f"{out}: this file exists; choose another with --out, or overwrite it with --force")


# a budget


def _compiled(args: argparse.Namespace) -> int:
    from shoestring import compile as compiler
    from shoestring.cost.prices import PriceBook

    if args.template is not None or args.list:
        raise UserError("init: a template has its own budget; leave --budget away, or the template")
    for name in ("base", "problems"):
        if not getattr(args, name):
            raise UserError(f"init: --budget needs --{name}, so: init --budget 50 --base MODEL --problems FILE")
    if args.pick is not None and args.pick not in compiler.KINDS:
        near = nearest(args.pick, list(compiler.KINDS)) or f"; there are {', '.join(compiler.KINDS)}"
        raise UserError(f"init: no candidate {args.pick!r}{near}")
    out: Path = args.out or OUT
    _check(out, args.force)
    budget = amount(args.budget if re.search(r"[A-Za-z$]", args.budget) else f"{args.budget} USD", "--budget")
    rate = hourly(args.rate or None)
    spec, copy = _problems(args.problems, out)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", out.stem).strip("-")[:64] or "run"
    written = False
    try:
        if copy is not None:
            _write(Path(spec), copy, True)  # before the plan, which reads it
            written = True
        asked = compiler.Asked(budget, args.base, _pool(spec), PriceBook.default(args.prices), name, rate)
        candidates = compiler.make(asked, args.gpu or "")
        best = compiler.chosen(candidates)
        taken = next((c for c in candidates if c.kind == args.pick), best) if args.pick else best
        if taken.plan is None:
            needs = f"; the least that works is {taken.least:f} USD" if taken.least else ""
            raise UserError(f"init: {taken.kind} does not run: {taken.why_not}{needs}")
        _write(out, taken.text, args.force)
        written = False
    finally:
        if written:
            Path(spec).unlink(missing_ok=True)
    if args.json:
        made = [compiler.to_dict(c, c is best) for c in candidates]
        said = {"budget": f"{budget:f}", "base": args.base, "problems": vars(asked.pool), "wrote": str(out)}
        print(json.dumps({**said, "picked": taken.kind, "candidates": made}, indent=1, ensure_ascii=False))
        return 0
    _show(candidates, best)
    if copy is not None:
        print(f"wrote {spec}: your problems with a split, because training and test problems were not told apart")
    print(f"wrote {out} ({taken.kind}); see what it costs: shoestring plan {out}; then: shoestring run {out}")
    return 0


def _problems(spec: str, out: Path) -> tuple[str, str | None]:
    """(the source that the recipe reads, its text where a copy with a split has to be written beside the recipe).

    UserError that names the bad lines of a file.
    """
    from shoestring.data import validate
    from shoestring.data.sources import _files
    from shoestring.stages.workbench import gradable, load_problems

    path = Path(spec)
    if not path.is_file():  # a mapping of columns, a hub id, a source that ships: its own complaints
        train, test = (load_problems([spec], s) for s in ("train", "test"))
        if not {p.id for p in train} & {p.id for p in test}:
            return spec, None
        return _split([asdict(p) for p in train], out)  # rows that state no split belong to both
    rows = list(_files.rows(path))
    found = validate.inspect(iter(rows), spec, "problems", check=gradable)
    if found.bad:
        said = "; ".join(f"{b.where}: {b.message}" for b in found.bad[:NAMED])
        more = f"; and {len(found.bad) - NAMED} more" if len(found.bad) > NAMED else ""
        verb = "line is" if len(found.bad) == 1 else "lines are"
        raise UserError(f"{spec}: {len(found.bad)} {verb} bad: {said}{more}; `shoestring data validate {spec}` lists all")
    if not rows:
        raise UserError(f"{spec}: it holds no problem")
    splits = {str((r.data or {}).get("split") or "") for r in rows}
    if splits == {"train", "test"}:
        return spec, None
    if "" not in splits:
        raise UserError(f"{spec}: every problem is in the split {splits.pop()!r}; training and a score need both")
    return _split([r.data for r in rows if r.data is not None], out)


def _split(rows: list[dict[str, Any]], out: Path) -> tuple[str, str]:
    """Rows that state no split get one by the hash of their question: a tenth for the test, at least 24, at most 300 and never
    more than a third."""
    free = [i for i, r in enumerate(rows) if not r.get("split")]
    free.sort(key=lambda i: hashlib.sha256(str(rows[i].get("prompt")).encode()).hexdigest())
    tests = set(free[: min(300, len(free) // 3, max(24, len(free) // 10))])
    lines = [{**r, "split": r.get("split") or ("test" if i in tests else "train")} for i, r in enumerate(rows)]
    text = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in lines)
    return str(out.with_name(f"{out.stem}.problems.jsonl")), text


def _pool(spec: str) -> Any:
    from shoestring import compile as compiler
    from shoestring.stages.workbench import load_problems

    return compiler.pool_of(spec, load_problems([spec], "train"), load_problems([spec], "test"))


def _show(candidates: list[Candidate], best: Candidate) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from shoestring import compile_text
    from shoestring.commands.recipes import console
    from shoestring.compile import needs

    screen = console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("")
    for c in candidates:
        table.add_column(c.kind + (" (written unless --pick)" if c is best else ""), overflow="fold")

    def row(name: str, *cells: str) -> None:
        table.add_row(Text(name), *(Text(x) for x in cells))

    row("what", *(compile_text.TITLES[c.kind] for c in candidates))
    row("machine", *(c.machine.said for c in candidates))
    usd = compile_text._usd
    totals = [c.plan.total_usd() if c.plan else None for c in candidates]
    row("predicted", *(
        f"{usd(t.mid)} ({usd(t.low)} to {usd(t.high)}, {t.basis})" if t is not None
        else f"does not run: {c.why_not}" + (f"; needs {c.least:f} USD" if c.least else "")
        for t, c in zip(totals, candidates, strict=True)
    ))  # fmt: skip
    kept = "checkpoint, export, final score"
    row("kept for the end", *(f"{usd(float(c.reserve))}: {kept}" if c.plan else "" for c in candidates))
    row("not spent", *(
        f"{usd(float(c.plan.recipe.budget - needs(c.plan)))}" + (": these problems take no more" if c.whole else "")
        if c.plan else "" for c in candidates
    ))  # fmt: skip
    row("problems", *(f"{c.sizes.count}, {c.sizes.epochs:g} passes" if c.plan else "" for c in candidates))
    row("answers a problem", *(f"{c.sizes.samples} of at most {c.sizes.max_new} tokens" if c.plan else "" for c in candidates))
    row("GRPO", *((f"{c.sizes.steps} steps" if c.sizes.steps else "none") if c.plan else "" for c in candidates))
    row("trains", *({"full": "all weights", "lora": "LoRA", "nf4": "LoRA over NF4"}[c.sizes.method] if c.plan else ""
                    for c in candidates))  # fmt: skip
    row("scored on", *(f"{c.sizes.scored} problems" if c.plan else "" for c in candidates))
    screen.print(table)
    for c in candidates:
        screen.print(Text(f"{c.kind} would learn first:"))
        for text, basis, source in compile_text.LEARNS[c.kind]:
            screen.print(Text(f"  - {text} ({basis}: {source})"))
