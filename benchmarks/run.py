"""Measure shoestring and the usual tools in turns, in one run, and say whether we are as fast as we must be.

python -m benchmarks.run --peer-python .peers/bin/python [--vllm .peers-vllm] [--quick] [--only sft,decode]

Exit code 1 when a row misses what it must reach. Rows are merged into benchmarks/results/cpu.json (--quick:
quick.json beside it): what is measured again replaces what stood there.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.groups import MAKERS, ROOT, Bench, Effort
from benchmarks.protocol import say
from benchmarks.results import NO_GPU, STORED, Row, load, merge, missed, print_table, shown, times, write, write_docs
from benchmarks.table import MEASURED, of_family
from benchmarks.workload import SFT

FULL, QUICK = Effort(5, 3), Effort(2, 1)


def families(text: str) -> list[str]:
    """`decode,sft` → the families in the order of a run. ArgumentTypeError for a name that is none."""
    asked = [f for f in text.replace(",", " ").split() if f]
    unknown = sorted(set(asked) - set(MEASURED))
    if unknown or not asked:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'}: choose from {', '.join(MEASURED)}")
    return [f for f in MEASURED if f in asked]


def vllm_python(folder: Path) -> tuple[str, str]:
    """(interpreter, "") of an environment that `make peers-vllm` finished, or ("", why there is none)."""
    if (folder / "installed").exists():
        return str(folder / "bin" / "python"), ""
    failed = folder / "failed"
    return "", failed.read_text("utf-8").strip() if failed.exists() else f"vLLM is not in {folder.name}; run `make peers-vllm`"


def machine() -> dict[str, Any]:
    from shoestring.estimate.machine import cores, cpu_flags, cpu_model

    flags = cpu_flags()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu_model(),
        "bf16": "AMX" if "amx_bf16" in flags else "AVX-512" if "avx512_bf16" in flags else "none",
        "cores": cores(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or cores()),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def not_run(family: str, reason: str) -> list[Row]:
    return [Row(s, not_run=reason) for s in of_family(family)]


def measure(bench: Bench, family: str, missing: str, stamp: dict[str, Any]) -> tuple[list[Row], bool]:
    """The family's rows with date and machine, and whether it was measured or is allowed to be missing."""
    if family == "vllm" and missing:
        say(f"vllm: not run: {missing}")
        return not_run(family, missing), True
    began = time.perf_counter()
    try:
        rows = [replace(r, **stamp) for r in MAKERS[family](bench, family)]
    except RuntimeError as e:  # a worker died; the other families can still be measured
        say(f"{family}: {e}")
        lines = [x for x in str(e).splitlines() if x.strip()]
        return not_run(family, f"{lines[0]} {lines[-1]}"[:300]), family == "vllm" and lines[0].startswith("peer")
    say(f"{family}: done in {time.perf_counter() - began:.0f} s")
    return rows, True


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--peer-python", required=True, help="python of the environment with trl and transformers")
    p.add_argument("--vllm", type=Path, default=ROOT / ".peers-vllm", help="the environment of `make peers-vllm`")
    p.add_argument("--quick", action="store_true", help=f"{QUICK.blocks} blocks of 1 step, not {FULL.blocks} of {FULL.steps}")
    p.add_argument("--only", type=families, default=list(MEASURED), help=f"only these: {','.join(MEASURED)}")
    p.add_argument("--blocks", type=int, help="that many blocks, to try the scripts out: stored only with --out")
    p.add_argument("--steps", type=int, help="that many steps a block, likewise")
    p.add_argument("--sft-batch", type=int, default=SFT["batch"], help="chats a step, likewise")
    p.add_argument("--out", type=Path, help="the JSON file that the rows are merged into")
    args = p.parse_args(argv)
    effort = QUICK if args.quick else FULL
    tried = Effort(args.blocks or effort.blocks, args.steps or effort.steps)
    here = machine()
    threads = here["threads"]
    if here["load_at_start"] > 0.5:
        say(f"warning: the machine is not idle (load {here['load_at_start']}); two-thread torch suffers most")
    out: Path | None = args.out
    if out is None and tried == effort and args.sft_batch == SFT["batch"]:
        out = STORED.with_name("quick.json") if args.quick else STORED
    stamp = {"date": datetime.date.today().isoformat(), "machine": here}
    began, sound = time.perf_counter(), True
    rows: list[Row] = not_run("h100", NO_GPU)
    python, missing = vllm_python(args.vllm)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(tried, Path(scratch), threads, args.peer_python, python, args.sft_batch)
        if set(args.only) != {"startup"}:
            command = [sys.executable, "-m", "benchmarks.ours", "prepare", str(bench.workload)]
            subprocess.run(command, check=True, cwd=ROOT)
        for family in args.only:
            found, fine = measure(bench, family, missing, stamp)
            rows += found
            sound = sound and fine
            if out is not None:  # after every family, so that a stopped run keeps what it measured
                write(merge(load(out), rows), out)
    print_table(merge(load(out) if out is not None else [], rows))
    if out is not None:
        print(f"stored in {out}")
        if out == STORED:
            write_docs(load(out))
    print(f"measured in {(time.perf_counter() - began) / 60:.1f} minutes")
    short = missed(rows)
    for r in short:
        found = f"{shown(r.ours)} {r.spec.unit}" + (f", {times(r)}" if r.ratio else "")
        print(f"missed: {r.spec.what}: {found}; must be {r.spec.must}; {r.correctness}")
    return 1 if short or not sound else 0


if __name__ == "__main__":
    sys.exit(main())
