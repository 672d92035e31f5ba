"""Safetensors files of a model folder: one, or several with an index, as the Hugging Face hub lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shoestring.records import UserError

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST = 5_000_000_000  # bytes of one file


def files(folder: Path) -> list[Path]:
    """The weight files of a folder: the single one, else those that the index names, else every *.safetensors."""
    if (folder / ONE).is_file():
        return [folder / ONE]
    index = folder / INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        found = sorted({folder / str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{index}: not an index of safetensors files ({e})") from None
    for path in found:
        if not path.is_file():
            raise UserError(f"{path}: the index names this file and it is not there; fetch it again")
    return found


def reader(folder: Path) -> Callable[[str], torch.Tensor]:
    """A function name → tensor over the folder's weights. UserError where there are none or one cannot be read."""
    found = files(folder)
    if not found:
        raise UserError(f"{folder}: no weights; expected *.safetensors beside config.json")
    where: dict[str, Any] = {}
    for file in found:
        try:
            handle = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file}: unreadable weights ({e}); fetch the file again") from None
        for name in handle.keys():  # noqa: SIM118  (safe_open is no mapping)
            where[name] = handle

    def tensor(name: str) -> torch.Tensor:
        if name not in where:
            raise UserError(f"{folder}: tensor {name} is missing from {len(found)} safetensors file(s)")
        return where[name].get_tensor(name)

    return tensor


def write(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], largest: int = LARGEST) -> None:
    """Write tensors as they come, `largest` bytes a file at most (a larger tensor stands alone); an index if over one.

    No more than one file's tensors are held at a time. Raises OSError or SafetensorError where the disk does not take it.
    """
    parts: list[Path] = []
    placed: dict[str, int] = {}
    held: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        parts.append(folder / f"{len(parts)}.part")
        save_file(held, parts[-1], metadata={"format": "pt"})
        held.clear()

    for name, tensor in tensors:
        n = tensor.numel() * tensor.element_size()
        if held and size + n > largest:
            flush()
            size = 0
        held[name] = tensor
        placed[name] = len(parts)
        size, total = size + n, total + n
    flush()
    if len(parts) == 1:
        parts[0].rename(folder / ONE)
        return
    names = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        part.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {k: names[i] for k, i in sorted(placed.items())}}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
