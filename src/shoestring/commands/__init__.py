"""The commands, one file each: `add(sub)` makes the parser, `run(args)` does the work and returns the exit code.

A command is called as its file is (`_` written `-`); a file with several lists them in `COMMANDS`. Importing one costs
little: what a command needs is imported inside `run`, and the others are not imported for it. A new command is a new file here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

SHARED = {"parser", "recipes"}  # parts of commands, no commands themselves


def modules(called: str = "") -> list[ModuleType]:
    """Every module here that adds a command, by name; that of the command `called` alone, where its file is called so too."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    names = [f.stem for f in files if f.stem not in SHARED]
    alone = called.replace("-", "_")
    found = [importlib.import_module(f"{__name__}.{n}") for n in ([alone] if alone in names else names)]
    return found if alone not in names or called in table(found) else modules()


def table(found: Sequence[ModuleType] | None = None) -> dict[str, Callable[[Any], int]]:
    """Command → what runs it."""
    return {
        name: module.run
        for module in (modules() if found is None else found)
        for name in getattr(module, "COMMANDS", (module.__name__.rpartition(".")[2].replace("_", "-"),))
    }
