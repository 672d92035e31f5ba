"""Measure this machine with the run's own model: a few seconds of prefill, decoding and training.

The rates go into the profile that the plan reads. Measured on the real shapes, because on a CPU a rate taken from a
large square matrix product says little about a step of a small model.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shoestring.estimate.flops import ModelShape, training_flops
from shoestring.estimate.machine import Profile, cache_folder, load_profile, profile_key, save_profile, spent_probing
from shoestring.records import Example, Quantity

PROMPT, ROWS = 60, 64
LIMIT = 60.0  # seconds: what has been tried once is not tried again after two thirds of them
NEW = (8, 40)  # tokens of the shortest and the longest answer: real ones end at different times, and so do these
SHARED, OWN, TRAINED, EXAMPLES = 25, 35, 31, 26  # tokens of a training row: a common beginning, its own prompt, its answer


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
    began = time.perf_counter()
    profile = probe(base, shape)
    spent_probing(time.perf_counter() - began)
    save_profile(key, profile)
    return profile, True


def _quiet(what: str) -> None:
    """Nobody is told."""


def probe(base: Path, shape: ModelShape, say: Callable[[str], None] = _quiet, device: str = "cpu") -> Profile:
    """About fifteen seconds on two cores for a model of 135M parameters.

    Rates are those of whole phases as a run has them: answers of unequal length, rows that share beginnings, the
    optimiser's pass. The best of several tries counts, because a neighbour on the machine can only slow one down; of
    training the middle one, because its steps follow one another for minutes.
    """
    age = process_seconds()
    began = time.perf_counter()
    import torch

    from shoestring.allocator import keep_freed_memory
    from shoestring.models import folder

    keep_freed_memory()  # as in a run: without it page faults are a large part of what is measured
    say("loading the model")
    model = folder.load(base, torch.bfloat16)
    if device != "cpu":
        model = model.to(device)
    load = time.perf_counter() - began
    top = shape.vocab - 1
    say("prompts and answers")
    prefill, decode = _answers(model, top, began)
    say("training")
    train, step = _training(model, shape, top, began)
    say("the disk")
    disk = _disk(cache_folder())

    def band(x: float, low: float = 0.85, high: float = 1.15) -> Quantity:
        return Quantity(x * low, x, x * high, "measured")

    return Profile(
        train_flops=band(train),
        decode_tokens=band(decode),
        prefill_tokens=band(prefill),
        load_seconds=band(load),
        disk_bytes_per_second=band(disk, 0.5, 1.5),
        basis="measured",
        parameters=shape.parameters(),
        step_seconds=band(step),
        start_seconds=band(age, 0.5, 2.0) if age is not None else None,
    )


def process_seconds() -> float | None:
    """Seconds since this process began, None where the system does not say or it has done other things for a minute."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    age = up - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.05, age) if age < 60 else None


def _prompt(k: int, top: int, length: int = PROMPT) -> tuple[int, ...]:
    return tuple((7919 * (i + 1) * (k + 3)) % top for i in range(length))


def _late(began: float) -> bool:
    return time.perf_counter() - began > LIMIT * 2 / 3


def _answers(model: Any, top: int, began: float) -> tuple[float, float]:
    """(prompt tokens a second, answer tokens a second beside that) of `ROWS` answers to eight prompts."""
    from shoestring.generate.engine import Engine, Request

    engine = Engine(model, ROWS)
    engine.generate([Request(_prompt(0, top), 2, 1.0, 1)] * 4)
    rates = []
    for again in range(2):
        t = time.perf_counter()
        engine.generate([Request(_prompt(16 * again + k, top), 1, 1.0, k) for k in range(16)])
        rates.append(16 * PROMPT / (time.perf_counter() - t))
    prefill = max(rates)
    low, high = NEW
    lengths = [low + (high - low) * k // (ROWS - 1) for k in range(ROWS)]
    rates = []
    for again in range(3):
        requests = [Request(_prompt(50 + 8 * again + k % 8, top), n, 1.0, k) for k, n in enumerate(lengths)]
        t = time.perf_counter()
        engine.generate(requests)
        rates.append(sum(lengths) / max(1e-6, time.perf_counter() - t - 8 * PROMPT / prefill))
        if _late(began):
            break
    return prefill, max(rates)


def _training(model: Any, shape: ModelShape, top: int, began: float) -> tuple[float, float]:
    """(useful FLOP/s of forward and backward, seconds of the optimiser's part of a step)."""
    from shoestring.data.packing import pack
    from shoestring.train.optimiser import make
    from shoestring.train.step import accumulate

    weight = (0.0,) * (SHARED + OWN) + (1.0,) * TRAINED
    common = _prompt(0, top, SHARED)
    data = [Example(common + _prompt(k + 1, top, OWN + TRAINED), weight, SHARED + OWN) for k in range(EXAMPLES)]
    batches = pack(data, 2048)
    rows = sum(len(b.tokens) for b in batches)
    whole = SHARED + OWN + TRAINED
    flops = training_flops(shape, [whole], head_tokens=TRAINED) * rows / whole
    optimiser = make("adamw", model, 1e-9)
    speeds, steps = [], []
    for _ in range(4):
        t = time.perf_counter()
        accumulate(model, batches)
        speeds.append(flops / (time.perf_counter() - t))
        t = time.perf_counter()
        optimiser.step(1.0, 1.0)
        steps.append(time.perf_counter() - t)
        if _late(began):
            break
    optimiser.zero()
    optimiser.close()
    return _middle(speeds), _middle(steps)


def _middle(tries: list[float]) -> float:
    """The middle one, without the first, which warms up."""
    counted = sorted(tries[1:] or tries)
    return counted[len(counted) // 2]


def cuda_rates() -> list[dict[str, Any]]:
    """Each card beside its table row: best bf16 product and bytes a second copied. UserError for an unknown card."""
    import torch

    from shoestring.estimate.gpus import gpu

    if not torch.cuda.is_available():
        return []
    found = []
    for i in range(torch.cuda.device_count()):
        card = gpu(torch.cuda.get_device_name(i))
        device = torch.device("cuda", i)
        x = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16 if card.has_bf16 else torch.float16)
        flops = 2 * 8192**3 / _cuda_seconds(lambda x=x: x @ x)
        big = torch.empty(1 << 28, device=device, dtype=torch.float32)
        moved = 2 * big.numel() * 4 / _cuda_seconds(lambda big=big: big.clone())
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        found.append(
            {
                "name": card.name, "memory_gib": round(memory, 1), "matmul_flops": flops, "copy_bytes_per_second": moved,
                "peak_flops": card.bf16_flops, "peak_bytes_per_second": card.bytes_per_second,
            }
        )  # fmt: skip
        del x, big
    return found


def _cuda_seconds(work: Callable[[], Any], tries: int = 8) -> float:
    import torch

    best = float("inf")
    for _ in range(tries):
        torch.cuda.synchronize()
        t = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - t)
    return best


def _disk(folder: Path, size: int = 192 << 20) -> float:
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
