"""One stage a file: `Config`, `forecast(config, facts) -> list[Usage]`, and a generator `run(config, inputs, context)`.

`names()` lists the modules that have a Config, so a new stage is one new file. Importing a stage never imports torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

HELPERS = {"context", "forecasts", "probing", "prompts", "rows", "scoring", "sizes", "teachers", "trainer", "workbench"}


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in HELPERS and not m.name.startswith("_"))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def configs() -> dict[str, type]:
    """Stage name → its Config dataclass: what `recipe.load` needs."""
    return {n: module(n).Config for n in names()}
