"""The commands, one file each: `add(sub)` makes the parser, `run(args)` does the work and returns the exit code.

A command is called as its file is (`_` written `-`); a file with several lists them in `COMMANDS`. Importing one costs
nothing: what a command needs is imported inside `run`. A new command is a new file here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

SHARED = {"parser", "recipes"}  # parts of commands, no commands themselves


def modules() -> list[ModuleType]:
    """Every module here that adds a command, by name."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return [importlib.import_module(f"{__name__}.{f.stem}") for f in files if f.stem not in SHARED]


def table() -> dict[str, Callable[[Any], int]]:
    """Command → what runs it."""
    return {
        name: module.run
        for module in modules()
        for name in getattr(module, "COMMANDS", (module.__name__.rpartition(".")[2].replace("_", "-"),))
    }
