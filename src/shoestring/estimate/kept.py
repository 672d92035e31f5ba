"""A table kept in the cache folder from run to run, as JSON. It is only a cache: what cannot be read or written is no error."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """The table; empty where there is none, or where the file does not hold one."""
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def write(table: Mapping[str, Any], path: Path) -> bool:
    """Put the table in the place of the old one, whole or not at all, by atomic rename; the folder is made where missing.

    False where the place cannot be written: no reason to stop a run.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
        try:
            with os.fdopen(handle, "w") as f:
                json.dump(table, f, indent=1)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError:
        return False
    return True
