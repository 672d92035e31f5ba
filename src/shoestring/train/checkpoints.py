"""Checkpoints: a directory that exists only when its manifest does.

`state.safetensors` (masters, moments, step counts), then everything is synced to disk, then `manifest.json` is renamed
into place. The syncing runs in a thread: training goes on while the disk works, and a checkpoint that was not synced
when the machine died has no manifest and is swept away.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shoestring.records import Checkpoint, UserError

MANIFEST = "manifest.json"
STATE = "state.safetensors"


class Checkpoints:
    """The checkpoints of one stage under `root` (runs/<name>/checkpoints/<stage>), the last `keep` kept."""

    def __init__(self, root: Path, recipe_hash: str, keep: int = 1) -> None:
        self.root, self.recipe_hash, self.keep = root, recipe_hash, keep
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(
        self, stage: str, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], final: bool = False
    ) -> Checkpoint:
        """Write step-N. Returns at once unless `final`; the directory is valid after `wait`. OSError → UserError.

        A step that stands whole is not written again, for a step number names one set of weights of a stage; only tensors
        that it lacks are put beside those that it has.
        """
        self.wait()
        parent = self.latest()
        path = self.root / f"step-{step}"
        if parent and parent.path == path and parent.stage == stage:
            return self._again(parent, tensors, final)
        manifest = {
            "stage": stage,
            "step": step,
            "recipe_hash": self.recipe_hash,
            "parent": parent.path.name if parent else "",
            "final": final,
            "state": dict(state),
        }
        try:
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that no half-removed directory passes for whole
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, path / STATE)
        except (OSError, SafetensorError) as e:
            shutil.rmtree(path, ignore_errors=True)
            raise UserError(f"{path}: the checkpoint could not be written ({e}); free space and use --resume") from None
        self._thread = threading.Thread(target=self._commit, args=(path, manifest), daemon=True)
        self._thread.start()
        if final:
            self.wait()
        return Checkpoint(path, stage, step, self.recipe_hash, manifest["parent"], final)

    def _again(self, standing: Checkpoint, tensors: Mapping[str, torch.Tensor], final: bool) -> Checkpoint:
        """The step stands whole already (resumed and stopped at once): the same weights, so they are not risked."""
        if not _names(standing.path).issuperset(tensors):
            part = standing.path / (STATE + ".part")
            try:
                save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part)
                _sync(part)
                os.replace(part, standing.path / STATE)
                _sync(standing.path)
            except (OSError, SafetensorError) as e:
                part.unlink(missing_ok=True)
                raise UserError(f"{standing.path}: could not be written ({e}); free space and use --resume") from None
        if standing.final == final:
            return standing
        try:
            _write_manifest(standing.path, {**read_manifest(standing.path), "final": final})
        except OSError as e:
            raise UserError(f"{standing.path}: the manifest could not be written ({e}); use --resume") from None
        return replace(standing, final=final)

    def _commit(self, path: Path, manifest: Mapping[str, Any]) -> None:
        try:
            _sync(path / STATE)
            _write_manifest(path, manifest)
            _sync(self.root)
            for old in self._valid()[: -self.keep]:
                (old / MANIFEST).unlink()
                shutil.rmtree(old)
        except BaseException as e:  # handed to the training thread by `wait`
            self._failure = e

    def wait(self) -> None:
        """Block until the last save is on disk. Raises UserError if it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise UserError(f"{self.root}: the checkpoint could not be written ({failure})")

    def _valid(self) -> list[Path]:
        found = [p for p in self.root.glob("step-*") if (p / MANIFEST).exists() and p.name[5:].isdigit()]
        return sorted(found, key=lambda p: int(p.name[5:]))

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint. Raises UserError if it was written by another recipe."""
        valid = self._valid()
        if not valid:
            return None
        m = read_manifest(valid[-1])
        if m["recipe_hash"] != self.recipe_hash:
            raise UserError(f"{valid[-1]}: written by another recipe; give the run another name or restore the recipe")
        return Checkpoint(valid[-1], m["stage"], m["step"], m["recipe_hash"], m["parent"], m["final"])

    def sweep(self) -> None:
        """Remove directories that never got their manifest."""
        for p in self.root.glob("step-*"):
            if not (p / MANIFEST).exists():
                shutil.rmtree(p, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError) as e:
        raise UserError(f"{path}: unreadable checkpoint manifest ({e})") from None


def _names(path: Path) -> set[str]:
    try:
        with safe_open(path / STATE, framework="pt") as f:
            return set(f.keys())
    except (OSError, SafetensorError) as e:
        raise UserError(f"{path / STATE}: unreadable checkpoint ({e})") from None


def read_tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors whose names begin with `prefix`, keyed by the full name."""
    try:
        with safe_open(path / STATE, framework="pt") as f:
            return {k: f.get_tensor(k) for k in f.keys() if k.startswith(prefix)}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise UserError(f"{path / STATE}: unreadable checkpoint ({e})") from None


def _write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    part = path / (MANIFEST + ".part")
    part.write_text(json.dumps(manifest, indent=2) + "\n")
    _sync(part)
    os.replace(part, path / MANIFEST)
    _sync(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
