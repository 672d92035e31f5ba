"""Measure this machine with the run's own model: a few seconds of prefill, decoding and training.

The rates go into the profile that the plan reads. Measured on the real shapes, because on a CPU a rate taken from a
large square matrix product says little about a step of a small model.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shoestring.estimate.flops import ModelShape, training_flops
from shoestring.estimate.machine import Profile, cache_folder, load_profile, profile_key, save_profile
from shoestring.records import Example, Quantity

PROMPT, NEW, ROWS = 60, 24, 64


def torch_version() -> str:
    return version("torch")


def versions() -> dict[str, str]:
    """What a run was made with, by package."""
    out = {"python": sys.version.split()[0]}
    for name in ("shoestring", "torch", "transformers", "tokenizers", "safetensors", "numpy"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out


def measured_profile(base: Path, shape: ModelShape) -> tuple[Profile, bool]:
    """The kept profile of this machine, or a new one. The flag says whether it was measured now."""
    key = profile_key(torch_version())
    kept = load_profile(key)
    if kept is not None:
        return kept, False
    profile = probe(base, shape)
    save_profile(key, profile)
    return profile, True


def probe(base: Path, shape: ModelShape) -> Profile:
    """About ten seconds on two cores for a model of 135M parameters."""
    began = time.perf_counter()
    import torch

    from shoestring.data.packing import pack
    from shoestring.generate.engine import Engine, Request
    from shoestring.models import folder
    from shoestring.train.step import accumulate

    model = folder.load(base, torch.bfloat16)
    load = time.perf_counter() - began
    top = shape.vocab - 1

    def prompt(k: int) -> tuple[int, ...]:
        return tuple((7919 * (i + 1) * (k + 3)) % top for i in range(PROMPT))

    engine = Engine(model, ROWS)
    engine.generate([Request(prompt(0), 2, 1.0, 1)] * 4)
    t = time.perf_counter()
    engine.generate([Request(prompt(k), 1, 1.0, k) for k in range(16)])
    prefill = 16 * PROMPT / (time.perf_counter() - t)
    rates = []
    for _ in range(3):
        t = time.perf_counter()
        engine.generate([Request(prompt(0), NEW, 1.0, k) for k in range(ROWS)])
        rates.append(ROWS * NEW / (time.perf_counter() - t))
    decode = max(rates)  # a neighbour on the machine can only slow a repetition down
    length, trained = 70, 35
    weight = (0.0,) * (length - trained) + (1.0,) * trained
    data = [Example(prompt(k) + prompt(k + 1)[: length - PROMPT], weight, length - trained) for k in range(20)]
    batches = pack(data, 2048)
    flops = training_flops(shape, [length] * len(data), head_tokens=len(data) * trained)
    speeds = []
    for _ in range(3):
        t = time.perf_counter()
        accumulate(model, batches)
        speeds.append(flops / (time.perf_counter() - t))
    model.zero_grad(set_to_none=True)
    train = max(speeds)

    def band(x: float, low: float = 0.85, high: float = 1.15) -> Quantity:
        return Quantity(x * low, x, x * high, "measured")

    return Profile(
        train_flops=band(train),
        decode_tokens=band(decode),
        prefill_tokens=band(prefill),
        load_seconds=band(load),
        disk_bytes_per_second=band(_disk(cache_folder()), 0.5, 1.5),
        basis="measured",
        parameters=shape.parameters(),
    )


def _disk(folder: Path, size: int = 64 << 20) -> float:
    """Bytes a second, written and synced."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".probe-{os.getpid()}"
    block = os.urandom(1 << 20)
    t = time.perf_counter()
    try:
        with open(path, "wb") as f:
            for _ in range(size >> 20):
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
    finally:
        path.unlink(missing_ok=True)
    return size / (time.perf_counter() - t)
