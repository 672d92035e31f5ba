"""One file a family. A family module has ARCHITECTURES (names in config.json), `config`, `read` and `write`.

`common` holds what they share and is no family.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from shoestring.records import UserError


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "common")


def find(hf_config: Mapping[str, Any], where: str) -> ModuleType:
    """The family module for a Hugging Face config. UserError lists the families when there is none."""
    wanted = set(hf_config.get("architectures") or [])
    for name in names():
        module = importlib.import_module(f"{__name__}.{name}")
        if wanted & set(module.ARCHITECTURES):
            return module
    found = ", ".join(sorted(wanted)) or "none named"
    raise UserError(f"{where}: architecture {found} is not supported; families: {', '.join(names())}")
