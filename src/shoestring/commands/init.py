"""`shoestring init`: a commented recipe from a template that ships. Nothing is overwritten unless told."""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Any

from shoestring.commands.parser import nearest
from shoestring.records import UserError


def templates() -> dict[str, Path]:
    """Name → file, sorted."""
    folder = Path(str(resources.files("shoestring") / "templates"))
    return {p.stem: p for p in sorted(folder.glob("*.toml"))}


def about(path: Path) -> str:
    """A template's first line, which says what it is for."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def add(sub: Any) -> argparse.ArgumentParser:
    c = sub.add_parser("init", help="write a commented recipe", description="Write a commented recipe from a template.")
    c.add_argument("template", nargs="?", metavar="TEMPLATE", help="its name; without it the templates are listed")
    c.add_argument("--out", type=Path, metavar="FILE", help="where to (default: TEMPLATE.toml)")
    c.add_argument("--force", action="store_true", help="overwrite the file")
    c.add_argument("--list", action="store_true", help="list the templates")
    return c


def run(args: argparse.Namespace) -> int:
    known = templates()
    if args.list or args.template is None:
        for name, path in known.items():
            print(f"{name:<12} {about(path)}")
        return 0
    if args.template not in known:
        near = nearest(args.template, list(known)) or f"; there are {', '.join(known)}"
        raise UserError(f"init: no template {args.template!r}{near}")
    out: Path = args.out or Path(f"{args.template}.toml")
    if out.is_dir():
        raise UserError(f"{out}: is a folder; give a file name with --out")
    try:
        with open(out, "w" if args.force else "x", encoding="utf-8") as f:
            f.write(known[args.template].read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(f"{out}: this file exists; choose another with --out, or overwrite it with --force") from None
    except FileNotFoundError:
        raise UserError(f"{out}: no such folder: {out.parent}") from None
    print(f"wrote {out}; see what it costs: shoestring plan {out}")
    return 0
