"""`shoestring doctor`: measure this machine for the planner, in a minute at most."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any


def add(sub: Any) -> argparse.ArgumentParser:
    c = sub.add_parser("doctor", help="measure this machine for the planner")
    c.add_argument("--base", default="smollm2-135m-instruct", help="the model to measure with (a name, folder or hub id)")
    c.add_argument("--json", action="store_true", help="one JSON object (docs/json/doctor.md)")
    return c


def run(args: argparse.Namespace) -> int:
    import sys
    import time

    from shoestring import export, native, probe
    from shoestring.estimate import machine
    from shoestring.estimate.headers import model_shape
    from shoestring.estimate.memory import available_bytes

    def say(what: str) -> None:
        print(f"measuring: {what}", file=sys.stderr)

    began = time.perf_counter()
    base = export.base_folder(args.base)
    cards = probe.cuda_rates()  # an unknown card ends here: its peak is never guessed
    shape = model_shape(str(base))
    profile = probe.probe(base, shape, say)
    key = machine.profile_key(probe.torch_version())
    kept = machine.save_profile(key, profile)
    room = available_bytes()
    rates = {k: v for k, v in asdict(profile).items() if isinstance(v, dict)}
    compiled, by = native.library()
    data: dict[str, Any] = {
        "cpu": machine.cpu_model(), "cores": machine.cores(), "flags": sorted(machine.cpu_flags() & FLAGS),
        "memory_available_gib": None if room is None else round(room / 2**30, 2), "versions": probe.versions(),
        "native": {"compiled": compiled is not None, "by": by},
        "base": {"model": args.base, "parameters": shape.parameters()}, "gpus": cards, "rates": rates,
        "profile": {"key": key, "kept": kept, "file": str(machine.cache_folder() / "profile.json")},
        "seconds": round(time.perf_counter() - began, 2),
    }  # fmt: skip
    if args.json:
        print(json.dumps(data, indent=1))
    else:
        _show(data)
    return 0


FLAGS = frozenset(("amx_bf16", "avx512_bf16", "avx512f", "avx2"))
ROWS = (  # key of the profile, what it is called, unit, scale
    ("train_flops", "training", "TFLOP/s", 1e-12),
    ("step_seconds", "optimiser", "s a step", 1.0),
    ("decode_tokens", "decoding", "tokens/s", 1.0),
    ("prefill_tokens", "prompts", "tokens/s", 1.0),
    ("load_seconds", "loading", "s", 1.0),
    ("start_seconds", "start", "s", 1.0),
    ("disk_bytes_per_second", "disk, synced", "MB/s", 1e-6),
)


def _show(data: dict[str, Any]) -> None:
    memory = data["memory_available_gib"]
    print(f"processor    {data['cpu']}, {', '.join(data['flags']) or 'no flags known'}")
    print(f"cores        {data['cores']}" + (f", {memory:.1f} GiB of memory to be had" if memory is not None else ""))
    print("versions     " + ", ".join(f"{k} {data['versions'][k]}" for k in ("python", "torch", "transformers", "shoestring")))
    compiled, by = data["native"]["compiled"], data["native"]["by"]
    print("decode steps " + (f"compiled by {by}" if compiled else f"plain, which takes longer on a CPU: {by}"))
    for card in data["gpus"]:
        share = card["matmul_flops"] / card["peak_flops"]
        print(
            f"GPU          {card['name']}, {card['memory_gib']:.0f} GiB: {card['matmul_flops'] / 1e12:.0f} TFLOP/s bf16 "
            f"({share:.0%} of its peak), {card['copy_bytes_per_second'] / 1e9:.0f} GB/s copied (measured)"
        )
    if not data["gpus"]:
        print("GPU          none that torch can use")
    print(f"rates with {data['base']['model']} ({data['base']['parameters'] / 1e6:.0f}M weights):")
    for key, name, unit, scale in ROWS:
        if q := data["rates"].get(key):
            low, mid, high = (q[k] * scale for k in ("low", "mid", "high"))
            print(f"  {name:<13}{mid:8.4g} {unit} ({low:.4g} to {high:.4g}, {q['basis']})")
    print(f"measured in {data['seconds']:.0f} s; the planner uses these rates from now on" + ("" if data["profile"]["kept"] else
          " — but they could not be kept: the cache cannot be written"))  # fmt: skip
