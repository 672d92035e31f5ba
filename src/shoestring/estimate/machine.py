"""What this machine does in a second: the measured profile where there is one, else a wide prior from literature.

The profile is measured by whoever has torch at hand and kept in `profile.json` under the cache folder, keyed by the
processor, the core count and the torch version, because each of the three changes the numbers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shoestring.estimate import kept
from shoestring.records import Quantity

PROC = "/proc/cpuinfo"
MEASURED = 4  # of what a profile holds and how it is measured: older ones are measured anew
SMOLLM2_135M = 134_515_008  # parameters of the model that the token rates below were measured with


@dataclass(frozen=True)
class Profile:
    """Rates of one machine. Token rates hold for a model of `parameters` weights; `tokens_for` carries them over."""

    train_flops: Quantity  # FLOP/s achieved in training, by the count in flops.py
    decode_tokens: Quantity  # tokens/s decoded at batch 32
    prefill_tokens: Quantity  # tokens/s of prompts
    load_seconds: Quantity  # from start to a model in memory, imports included
    disk_bytes_per_second: Quantity  # writing and syncing a checkpoint
    basis: Literal["measured", "simulated", "literature"]
    parameters: int = SMOLLM2_135M
    step_seconds: Quantity | None = None  # the optimiser's own part of a step, every weight trained; None: not measured
    start_seconds: Quantity | None = None  # from the process's start to the first stage, without this measurement

    def tokens_for(self, rate: Quantity, parameters: int) -> Quantity:
        """A token rate carried over to another size: inversely as the weights, which is right where weights dominate."""
        return rate.scaled(self.parameters / max(parameters, 1))


def cpu_flags(cpuinfo: str | Path = PROC) -> frozenset[str]:
    """The processor's flags ("amx_bf16", "avx512_bf16", …); empty where the system does not say."""
    return frozenset(_cpuinfo(cpuinfo, "flags").split())


def cpu_model(cpuinfo: str | Path = PROC) -> str:
    """The processor's model name, "unknown" where the system does not say. Family and model numbers are added,
    because virtual machines give every generation the same name."""
    name = _cpuinfo(cpuinfo, "model name") or "unknown"
    numbers = [_cpuinfo(cpuinfo, key) for key in ("cpu family", "model")]
    return f"{name} ({'/'.join(numbers)})" if all(numbers) else name


def cores() -> int:
    """The cores that this process may use; fewer where OMP_NUM_THREADS allows fewer threads."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(found, int(told)) if told.isdecimal() and int(told) > 0 else found


def _cpuinfo(path: str | Path, key: str) -> str:
    table = _own() if str(path) == PROC else _table(path)
    return table.get(key, "")


@functools.cache
def _own() -> dict[str, str]:
    """The system's table: a plan asks for it some hundred times, and it does not change."""
    return _table(PROC)


def _table(path: str | Path) -> dict[str, str]:
    """What the first processor of such a file says, by key."""
    table: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                name, _, value = line.partition(":")
                table.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    return table


def prior(flags: Iterable[str], cores: int) -> Profile:
    """Rates from literature for a processor with these flags; training scales with the cores, from two.

    Two AMX cores trained SmolLM2-135M at 499 tokens/s (0.41 TFLOP/s of 2.4 in matmul) and decoded 421 tokens/s at
    batch 32. Two AVX-512-bf16 cores reach 0.95 TFLOP/s in matmul; without bf16 units fp32 reaches 0.34 and training
    about 0.1. The intervals are wide on purpose: measure the machine to narrow them.
    """
    have = frozenset(flags)
    pairs = max(cores, 1) / 2

    def guess(low: float, mid: float, high: float, scale: float = pairs) -> Quantity:
        return Quantity(low * scale, mid * scale, high * scale, "literature")

    if "amx_bf16" in have:
        train, decode, prefill = guess(0.2e12, 0.41e12, 0.8e12), guess(200, 420, 1000), guess(700, 1500, 4000)
    elif "avx512_bf16" in have:
        train, decode, prefill = guess(0.1e12, 0.25e12, 0.5e12), guess(120, 300, 800), guess(350, 900, 2500)
    else:
        train, decode, prefill = guess(0.03e12, 0.1e12, 0.25e12), guess(40, 120, 400), guess(100, 350, 1000)
    load, disk = guess(1, 4, 20, 1.0), guess(5e7, 4e8, 3e9, 1.0)  # torch's import alone takes one second
    return Profile(train, decode, prefill, load, disk, "literature")


def cache_folder() -> Path:
    """SHOESTRING_CACHE, else $XDG_CACHE_HOME/shoestring, else ~/.cache/shoestring."""
    if folder := os.environ.get("SHOESTRING_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "shoestring"


def _path(path: Path | None) -> Path:
    return path or cache_folder() / "profile.json"


def profile_key(torch_version: str, model: str | None = None, count: int | None = None) -> str:
    """The key of this machine's profile; the caller gives torch's version, because this module must not import it."""
    return f"v{MEASURED} {model or cpu_model()} | {count or cores()} cores | torch {torch_version}"


def load_profile(key: str, path: Path | None = None) -> Profile | None:
    """The measured profile under this key; None where there is none or the cache cannot be read (it is only a cache)."""
    try:
        return _profile(kept.read(_path(path))[key])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def latest_profile(path: Path | None = None) -> Profile | None:
    """The newest profile of this processor under any torch version, for commands which must not import torch."""
    begins = profile_key("")
    for key in reversed([k for k in kept.read(_path(path)) if k.startswith(begins)]):
        if made := load_profile(key, path):
            return made
    return None


def save_profile(key: str, profile: Profile, path: Path | None = None) -> bool:
    """Keep a profile, newest last, by atomic rename. False where the cache cannot be written: no reason to stop a run."""
    path = _path(path)
    table = {k: v for k, v in kept.read(path).items() if k != key} | {key: asdict(profile)}
    return kept.write(table, path)


def current_profile(torch_version: str | None = None, path: Path | None = None) -> Profile:
    """This machine's measured profile, or the prior. Without a torch version the newest measurement counts."""
    found = load_profile(profile_key(torch_version), path) if torch_version else latest_profile(path)
    return found or prior(cpu_flags(), cores())


_probing = 0.0


def spent_probing(seconds: float | None = None) -> float:
    """Seconds that this process has spent measuring the machine; they belong to the start of its run."""
    global _probing
    if seconds is not None:
        _probing += seconds
    return _probing


def _profile(data: Any) -> Profile:
    rates = {k: Quantity(**v) for k, v in data.items() if isinstance(v, dict)}
    return Profile(**rates, basis=data["basis"], parameters=int(data["parameters"]))
