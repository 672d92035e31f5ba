"""Measure shoestring and the usual tools in turns, in one run, and say whether we are as fast as we must be.

python -m benchmarks.run --peer-python .peers/bin/python [--quick]

Exit code 1 when a row misses what it must reach. The full run writes benchmarks/results/cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.protocol import Worker
from benchmarks.results import Must, Row, medians, missed, print_table, same_share, significant, write

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("startup", "sft", "decode", "grpo")
SFT = {"batch": 8, "rows": 2048, "lr": 1e-4, "betas": [0.9, 0.999]}
GRPO = {"prompts": 4, "group": 8, "new": 64, "rows": 2048, "lr": 1e-5, "betas": [0.9, 0.999]}
NEW = 64  # tokens decoded for each prompt
CALLS = 7  # of each start-up command


@dataclass(frozen=True)
class Effort:
    """blocks of each kind, and the steps or calls in one block"""

    blocks: int = 5
    sft: int = 4
    decode: int = 2
    grpo: int = 2


FULL, QUICK = Effort(), Effort(3, 2, 1, 1)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Sides:
    """One worker a side, asked in turns; the side that goes first changes from block to block."""

    def __init__(self, kind: str, peer_python: str, workload: Path, settings: dict[str, Any]) -> None:
        self._stack, self._turn = ExitStack(), 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        given = [kind, str(workload), json.dumps(settings)]
        say(f"{kind}: loading both sides")
        self.ours = self._start("ours", [sys.executable, "-m", "benchmarks.ours", *given], environment)
        self.peer = self._start("peer", [peer_python, "-m", "benchmarks.peer", *given], environment)

    def _start(self, name: str, command: Sequence[str], environment: dict[str, str]) -> Worker:
        return self._stack.enter_context(Worker(name, command, environment))

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def ask(self, do: str, **command: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        order = [self.ours, self.peer] if self._turn % 2 == 0 else [self.peer, self.ours]
        self._turn += 1
        reply = {w.name: w.ask(do, **command) for w in order}
        return reply["ours"], reply["peer"]

    def blocks(self, effort: int, label: str, **command: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        ours, peer = [], []
        for n in range(effort):
            a, b = self.ask("block", **command)
            say(f"{label}: block {n + 1}/{effort}, ours {a['seconds']:.2f} s, peer {b['seconds']:.2f} s")
            ours.append(a)
            peer.append(b)
        return ours, peer


def rate(replies: Sequence[dict[str, Any]], seconds: str = "seconds") -> list[float]:
    return [r["tokens"] / r[seconds] for r in replies]


def by_cpu(ours: list[dict[str, Any]], peer: list[dict[str, Any]]) -> str:
    """The same comparison in tokens for each CPU second, which a busy neighbour disturbs less."""
    times = statistics.median(rate(ours, "cpu")) / statistics.median(rate(peer, "cpu"))
    return f"{times:.2f}x by CPU time"


def named(peer: Worker, package: str, label: str) -> dict[str, Any]:
    return {"peer_name": label, "peer_version": peer.ready["versions"][package]}


def sft_rows(peer_python: str, workload: Path, effort: Effort, batch: int) -> Iterator[Row]:
    with Sides("sft", peer_python, workload, SFT | {"batch": batch}) as sides:
        sides.ask("block", steps=1)  # both sides learn from it, neither is timed
        ours, peer = sides.blocks(effort.blocks, "sft", steps=effort.sft)
        losses = sides.ask("held_out")
        name = named(sides.peer, "trl", "TRL SFTTrainer, bf16 weights, no checkpointing")
    a, b = (x["held_out"] for x in losses)
    equal = all(x["tokens"] == y["tokens"] for x, y in zip(ours, peer, strict=True))
    tokens = sum(x["tokens"] for x in ours)
    data = f"the same {tokens:,} tokens in the same order" if equal else "THE TWO SIDES SAW DIFFERENT TOKENS"
    yield medians(
        f"SFT, batch {batch}", "tokens/s", "higher", rate(ours), rate(peer), must=Must(ratio_at_least=2.3),
        correctness=f"{data}; held-out loss {a:.3f} against {b:.3f} after {losses[0]['steps']} steps; "
        + by_cpu(ours, peer),
        sound=equal and a <= b, **name,
    )  # fmt: skip
    yield Row(
        "SFT, held-out loss", "nats/token", "lower", a, b, must=Must(ratio_at_least=1.0),
        correctness=f"16 chats, after {losses[0]['steps']} steps on equal tokens", sound=equal, **name,
    )  # fmt: skip
    yield Row(
        "SFT, peak memory", "GiB", "lower", max(x["peak_gib"] for x in ours), max(x["peak_gib"] for x in peer),
        must=Must(ours_at_most=6.0), correctness="resident set of the whole process", **name,
    )  # fmt: skip


def decode_rows(peer_python: str, workload: Path, effort: Effort) -> Iterator[Row]:
    with Sides("decode", peer_python, workload, {}) as sides:
        name = named(sides.peer, "transformers", "transformers generate, bf16")
        for batch in (8, 32):
            sides.ask("block", batch=batch, new=NEW, times=1)
            ours, peer = sides.blocks(effort.blocks, f"decode at {batch}", batch=batch, new=NEW, times=effort.decode)
            counts = {len(row) for r in (*ours, *peer) for row in r["chosen"]}
            same = same_share(ours[0]["chosen"], peer[0]["chosen"])
            yield medians(
                f"decode, batch {batch}", "tokens/s", "higher", rate(ours), rate(peer), must=Must(ratio_at_least=1.25),
                correctness=f"greedy, prompts included in the time; {same:.0%} of tokens identical in bf16; "
                + by_cpu(ours, peer),
                sound=counts == {NEW}, **name,
            )  # fmt: skip


def grpo_rows(peer_python: str, workload: Path, effort: Effort) -> Iterator[Row]:
    with Sides("grpo", peer_python, workload, GRPO) as sides:
        sides.ask("block", steps=1)
        ours, peer = sides.blocks(effort.blocks, "grpo", steps=effort.grpo)
        name = named(sides.peer, "trl", "TRL GRPOTrainer, bf16 weights")

    def told(replies: list[dict[str, Any]]) -> str:
        answers = sum(r["answers"] for r in replies)
        length = sum(r["tokens"] for r in replies) / answers
        return f"{length:.1f} tokens an answer, reward {sum(r['reward'] * r['answers'] for r in replies) / answers:.2f}"

    a, b = ([r["seconds"] / effort.grpo for r in side] for side in (ours, peer))
    c, d = ([r["seconds"] / r["tokens"] * 1000 for r in side] for side in (ours, peer))
    shape = f"{GRPO['prompts']} x {GRPO['group']}"
    yield medians(
        f"GRPO step, {shape}", "s/step", "lower", a, b, must=Must(ratio_at_least=2.2),
        correctness=f"ours {told(ours)}; peer {told(peer)}", **name,
    )  # fmt: skip
    yield medians(
        "GRPO, by tokens", "s/1000 tokens", "lower", c, d,
        correctness=f"the same steps by sampled token, as lengths differ; {by_cpu(ours, peer)}", **name,
    )  # fmt: skip
    share = statistics.median(r["rollout"] / r["seconds"] for r in ours)
    yield Row(
        "GRPO, peak memory", "GiB", "lower", max(x["peak_gib"] for x in ours), max(x["peak_gib"] for x in peer),
        correctness=f"our rollout takes {share:.0%} of the step", **name,
    )  # fmt: skip


def startup_rows(scratch: Path) -> Iterator[Row]:
    run = finished_run(scratch)
    recipe = str(ROOT / "recipes" / "quickstart.toml")
    commands = {"--help": ["--help"], "plan": ["plan", recipe], "bill": ["bill", str(run)]}
    program = Path(sys.executable).with_name("shoestring")
    looked = "import sys; from shoestring.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    looked += "print('torch' in sys.modules, file=sys.stderr)"
    for name, arguments in commands.items():
        runs = []
        for n in range(CALLS + 1):
            began = time.perf_counter()
            done = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=scratch)
            if n:  # the first call fills the disk cache
                runs.append(time.perf_counter() - began)
            if done.returncode:
                raise RuntimeError(f"shoestring {name} ended with exit code {done.returncode}: {done.stderr[-500:]}")
        seen = subprocess.run([sys.executable, "-c", looked, *arguments], capture_output=True, text=True, cwd=scratch)
        free = seen.stderr.strip().endswith("False")
        said = "torch is not imported" if free else "TORCH IS IMPORTED"
        say(f"startup: {name} {statistics.median(runs):.2f} s")
        yield medians(
            f"start, shoestring {name}", "s", "lower", runs, [], must=Must(ours_at_most=0.4), correctness=said, sound=free
        )


def finished_run(scratch: Path) -> Path:
    """A run folder as `shoestring bill` reads it: the quickstart's recipe and a ledger of 400 usages."""
    from shoestring import recipe, stages
    from shoestring.cost.ledger import Ledger
    from shoestring.cost.prices import PriceBook
    from shoestring.records import Usage

    folder = scratch / "run"
    folder.mkdir()
    made = recipe.load(ROOT / "recipes" / "quickstart.toml", stages.configs())
    (folder / "recipe.toml").write_text(made.to_toml(), "utf-8")
    sku = PriceBook.default().machine_sku(made.machine, made.rate)
    with Ledger.open(folder / "ledger.jsonl") as ledger:
        ledger.begin("attempt-1")
        for n in range(400):
            ledger.post(Usage(sku, 1.5, "second", ("distill", "sft", "grpo")[n % 3], "attempt-1", 0.0, 1.5))
        ledger.end("attempt-1", "finished")
    return folder


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


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--peer-python", required=True, help="python of the environment with trl and transformers")
    p.add_argument("--quick", action="store_true", help=f"{QUICK.blocks} small blocks instead of {FULL.blocks}")
    p.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="only these rows")
    p.add_argument("--blocks", type=int, help="that many blocks, to try the scripts out")
    p.add_argument("--sft-batch", type=int, default=SFT["batch"], help="smaller, to try the scripts out")
    p.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results/cpu.json for a full run)")
    args = p.parse_args(argv)
    effort = QUICK if args.quick else FULL
    if args.blocks:
        effort = replace(effort, blocks=args.blocks)
    here = machine()
    if here["load_at_start"] > 0.5:
        say(f"warning: the machine is not idle (load {here['load_at_start']}); two-thread torch suffers most")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        if "startup" in args.only:
            rows += startup_rows(Path(scratch))
        workload = Path(scratch) / "workload.json"
        if set(args.only) != {"startup"}:
            subprocess.run([sys.executable, "-m", "benchmarks.ours", "prepare", str(workload)], check=True, cwd=ROOT)
        if "sft" in args.only:
            rows += sft_rows(args.peer_python, workload, effort, args.sft_batch)
        if "decode" in args.only:
            rows += decode_rows(args.peer_python, workload, effort)
        if "grpo" in args.only:
            rows += grpo_rows(args.peer_python, workload, effort)
    print_table(rows, here)
    out = args.out
    if out is None and effort == FULL and tuple(args.only) == KINDS and args.sft_batch == SFT["batch"]:
        out = ROOT / "benchmarks" / "results" / "cpu.json"
    if out is not None:
        write(rows, here, out)
        print(f"wrote {out}")
    short = missed(rows)
    for r in short:
        print(f"missed: {r.what}: {significant(r.ours)} {r.unit}, must be {r.must}; {r.correctness}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
