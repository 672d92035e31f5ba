"""One folder a step; its manifest is written last. A folder without one, or of other inputs, does not exist."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def stamp(inputs: Mapping[str, Any]) -> str:
    """A short hash of everything that the steps depend on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def peak_bytes() -> int:
    """The most memory that this process has held, resident (measured)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Folders:
    """The steps' folders under one root. `seconds` and `resumed` tell what ran now and what had been finished."""

    def __init__(self, root: Path, stamp: str) -> None:
        self.root, self.stamp = root, stamp
        self.seconds: dict[str, float] = {}
        self.resumed: list[str] = []
        self._stale = False  # once a step is done anew, what follows is too

    def has(self, step: str) -> bool:
        """Whether the step is finished, for these inputs."""
        return self._read(step) is not None

    def _read(self, step: str) -> dict[str, Any] | None:
        try:
            manifest = json.loads((self.root / step / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and manifest.get("stamp") == self.stamp else None

    def done(self, step: str) -> dict[str, Any] | None:
        """The manifest of a finished step of these inputs, or None: then its folder is empty and ready to be filled."""
        folder = self.root / step
        manifest = None if self._stale else self._read(step)
        if manifest is not None:
            self.resumed.append(step)
            return manifest
        self._stale = True
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return None

    def finish(self, step: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest, by atomic rename."""
        made = {"step": step, "stamp": self.stamp, **manifest}
        path = self.root / step / "manifest.json"
        draft = path.with_suffix(".part")
        with draft.open("w", encoding="utf-8") as f:
            json.dump(made, f, ensure_ascii=False, indent=1)
            f.flush()
            os.fsync(f.fileno())
        os.replace(draft, path)
        return made
