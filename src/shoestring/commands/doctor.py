"""`shoestring doctor`: measure this machine for the planner."""

from __future__ import annotations

import argparse
from typing import Any


def add(sub: Any) -> argparse.ArgumentParser:
    c = sub.add_parser("doctor", help="measure this machine for the planner")
    c.add_argument("--base", default="smollm2-135m-instruct")
    return c


def run(args: argparse.Namespace) -> int:
    from shoestring import export, probe
    from shoestring.estimate.headers import model_shape
    from shoestring.estimate.machine import profile_key, save_profile

    base = export.base_folder(args.base)
    shape = model_shape(str(base))
    profile = probe.probe(base, shape)
    save_profile(profile_key(probe.torch_version()), profile)
    print(f"training  {profile.train_flops.mid / 1e12:.3f} TFLOP/s (measured)")
    print(f"decoding  {profile.decode_tokens.mid:.0f} tokens/s at {probe.ROWS} rows (measured)")
    print(f"prefill   {profile.prefill_tokens.mid:.0f} tokens/s (measured)")
    print(f"disk      {profile.disk_bytes_per_second.mid / 1e6:.0f} MB/s, synced (measured)")
    return 0
