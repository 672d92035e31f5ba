"""Where to compute: the one place that decides, asked by whoever opens a model. Everything else follows the model."""

from __future__ import annotations

import os

import torch

from shoestring.records import UserError

VARIABLE = "SHOESTRING_DEVICE"


def choose() -> torch.device:
    """A CUDA device where torch sees one, else the CPU; SHOESTRING_DEVICE (cpu, cuda, cuda:1) decides otherwise.

    UserError for a name that torch does not know or a device that is not there.
    """
    name = os.environ.get(VARIABLE, "").strip()
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{VARIABLE} = {name!r} is no device; give cpu, cuda or cuda:0") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UserError(f"{VARIABLE} = {name!r} is not supported; give cpu, cuda or cuda:0")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise UserError(f"{VARIABLE} = {name!r}: torch sees {count} CUDA device(s) here; unset it or give another")
    return device


def free_bytes(device: torch.device | None = None) -> int | None:
    """Memory that the device has left; None on a CPU, where the system is asked (estimate.memory.available_bytes)."""
    device = device or choose()
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
