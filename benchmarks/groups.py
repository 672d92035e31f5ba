"""The families of rows: which workers each needs, how they are asked in turns, and what is read from their replies."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.protocol import Worker, say
from benchmarks.results import Row, medians, same_share
from benchmarks.table import EQUAL, of_family, spec
from benchmarks.workload import GRPO, NEW, SFT

ROOT = Path(__file__).resolve().parent.parent
CALLS = 7  # of each start-up command
VLLM_CACHE_GIB = 1  # 32 requests of 200 tokens take 0.15


@dataclass(frozen=True)
class Effort:
    """blocks of each side, and the steps or calls in one block"""

    blocks: int = 5
    steps: int = 3


@dataclass(frozen=True)
class Bench:
    """What a family needs to know: where the peers' interpreters and the workload are, how long to measure."""

    effort: Effort
    scratch: Path
    threads: int
    peer_python: str
    vllm_python: str = ""
    sft_batch: int = SFT["batch"]

    @property
    def workload(self) -> Path:
        return self.scratch / "workload.json"


def environment(threads: int) -> dict[str, str]:
    """The same threads for everybody; vLLM pins its own to the first cores that this process may use."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(threads))
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores[:threads])),
        "VLLM_CPU_KVCACHE_SPACE": str(VLLM_CACHE_GIB),
    }


class Sides:
    """One worker a side, asked in turns; the side that goes first changes from block to block."""

    def __init__(self, bench: Bench, kind: str, settings: Mapping[str, Any], peer: Sequence[str] | None = None) -> None:
        self._stack, self._turn, self._bench = ExitStack(), 0, bench
        given = [kind, str(bench.workload), json.dumps(settings)]
        say(f"{kind}: loading both sides")
        began = time.perf_counter()
        try:
            self.ours = self._start("ours", [sys.executable, "-m", "benchmarks.ours", *given])
            self.peer = self._start("peer", [*(peer or (bench.peer_python, "-m", "benchmarks.peer")), *given])
        except BaseException:
            self._stack.close()
            raise
        memory = ", ".join(f"{w.name} {w.ready['peak_gib']:.1f} GiB" for w in (self.ours, self.peer))
        say(f"{kind}: loaded in {time.perf_counter() - began:.0f} s, {memory}")

    def _start(self, name: str, command: Sequence[str]) -> Worker:
        return self._stack.enter_context(Worker(name, command, environment(self._bench.threads)))

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def ask(self, do: str, **command: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        order = [self.ours, self.peer] if self._turn % 2 == 0 else [self.peer, self.ours]
        self._turn += 1
        reply = {w.name: w.ask(do, **command) for w in order}
        return reply["ours"], reply["peer"]

    def blocks(self, label: str, **command: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        ours, peer, effort = [], [], self._bench.effort.blocks
        for n in range(effort):
            a, b = self.ask("block", **command)
            say(f"{label}: block {n + 1}/{effort}, ours {a['seconds']:.2f} s, peer {b['seconds']:.2f} s")
            ours.append(a)
            peer.append(b)
        return ours, peer

    def version(self, package: str) -> str:
        versions = self.peer.ready["versions"]
        return f"{versions[package]}, torch {versions['torch']}"


def rate(replies: Sequence[dict[str, Any]], seconds: str = "seconds") -> list[float]:
    return [r["tokens"] / r[seconds] for r in replies]


def by_cpu(ours: list[dict[str, Any]], peer: list[dict[str, Any]]) -> str:
    """The same comparison in tokens for each CPU second, which a busy neighbour disturbs less."""
    times = statistics.median(rate(ours, "cpu")) / statistics.median(rate(peer, "cpu"))
    return f"{times:.2f}x by CPU time"


def peaks(replies: Sequence[dict[str, Any]]) -> float:
    return max(r["peak_gib"] for r in replies)


def mfu(ours: Sequence[dict[str, Any]], rows: int) -> Row:
    """Model FLOP/s of every block over the matmul rate measured right after it in the same process."""
    rates = [r["matmul"] for r in ours]
    shares = [100 * r["flops"] / r["seconds"] / m["square"] for r, m in zip(ours, rates, strict=True)]
    tera = {k: statistics.median(m[k] for m in rates) / 1e12 for k in ("square", "model", "head")}
    achieved = statistics.median(r["flops"] / r["seconds"] for r in ours) / 1e12
    said = (
        f"{achieved:.3f} TFLOP/s of {tera['square']:.2f} at 2048 x 2048 x 2048 in bf16, measured after every block; "
        f"{100 * achieved / tera['model']:.1f}% of the {tera['model']:.2f} that the layers' own products reach at {rows} rows; "
        f"the head alone reaches {tera['head']:.2f}"
    )
    return medians(spec("SFT, MFU"), shares, correctness=said)


def sft_rows(bench: Bench, family: str) -> Iterator[Row]:
    mode = "bf16" if family == "sft" else "defaults"
    speed, loss = of_family(family)[:2]
    settings = SFT | {"batch": bench.sft_batch, "mode": mode}
    with Sides(bench, "sft", settings) as sides:
        sides.ask("block", steps=1)  # both sides learn from it, neither is timed
        ours, peer = sides.blocks(f"sft, {mode}", steps=bench.effort.steps, matmul=family == "sft")
        losses = sides.ask("held_out")
        version = sides.version("trl")
    a, b = (x["held_out"] for x in losses)
    equal = all(x["tokens"] == y["tokens"] for x, y in zip(ours, peer, strict=True))
    tokens, steps = sum(x["tokens"] for x in ours), losses[0]["steps"]
    data = f"the same {tokens:,} tokens in the same order" if equal else "THE TWO SIDES SAW DIFFERENT TOKENS"
    yield medians(
        speed, rate(ours), rate(peer), peer_version=version, sound=equal and a * EQUAL <= b,
        correctness=f"batch {bench.sft_batch}; {data}; held-out loss {a:.3f} against {b:.3f} after {steps} steps; "
        + by_cpu(ours, peer),
    )  # fmt: skip
    yield Row(
        loss, a, b, version, sound=equal,
        correctness=f"16 chats that neither side trained on, after {steps} steps on equal tokens; within 2% counts as equal",
    )  # fmt: skip
    if family == "sft":
        yield mfu(ours, settings["rows"])
    else:
        yield Row(
            spec("SFT, peak memory"), peaks(ours), peaks(peer), version,
            correctness="resident set of the whole process over all blocks, "
            f"{bench.sft_batch} chats of up to 600 tokens a step",
        )  # fmt: skip


def decode_rows(bench: Bench, family: str) -> Iterator[Row]:
    vllm = family == "vllm"
    peer_command = (bench.vllm_python, "-m", "benchmarks.peer_vllm") if vllm else None
    with Sides(bench, "decode", {"batch": 32}, peer_command) as sides:
        version = sides.version("vllm" if vllm else "transformers")
        for row in of_family(family):
            batch = 8 if "batch 8" in row.what else 32
            command = {"batch": batch, "new": NEW}
            sides.ask("block", **command, times=1)
            ours, peer = sides.blocks(f"{family}, batch {batch}", **command, times=bench.effort.steps)
            counts = {len(chosen) for r in (*ours, *peer) for chosen in r["chosen"]}
            same = same_share(ours[0]["chosen"], peer[0]["chosen"])
            yield medians(
                row, rate(ours), rate(peer), peer_version=version, sound=counts == {NEW},
                correctness=f"greedy, {NEW} tokens each, prompts included in the time; "
                f"{same:.0%} of tokens identical in bf16; {by_cpu(ours, peer)}",
            )  # fmt: skip


def grpo_rows(bench: Bench, family: str) -> Iterator[Row]:
    with Sides(bench, "grpo", GRPO) as sides:
        sides.ask("block", steps=1)
        ours, peer = sides.blocks("grpo", steps=bench.effort.steps)
        version = sides.version("trl")

    def told(replies: list[dict[str, Any]]) -> str:
        answers = sum(r["answers"] for r in replies)
        length = sum(r["tokens"] for r in replies) / answers
        return f"{length:.1f} tokens an answer, reward {sum(r['reward'] * r['answers'] for r in replies) / answers:.2f}"

    answers = bench.effort.steps * GRPO["prompts"] * GRPO["group"]
    sound = all(r["answers"] == answers for r in (*ours, *peer))
    step, token, memory = of_family(family)
    a, b = ([r["seconds"] / bench.effort.steps for r in side] for side in (ours, peer))
    yield medians(
        step, a, b, peer_version=version, sound=sound,
        correctness=f"{answers} answers a block; ours {told(ours)}; peer {told(peer)}",
    )  # fmt: skip
    a, b = ([r["seconds"] / r["tokens"] * 1000 for r in side] for side in (ours, peer))
    yield medians(
        token, a, b, peer_version=version, sound=sound,
        correctness=f"the same steps by sampled token, as lengths differ; {by_cpu(ours, peer)}",
    )  # fmt: skip
    share = statistics.median(r["rollout"] / r["seconds"] for r in ours)
    yield Row(
        memory, peaks(ours), peaks(peer), version, correctness=f"our rollout takes {share:.0%} of the step",
    )  # fmt: skip


def startup_rows(bench: Bench, family: str) -> Iterator[Row]:
    run = finished_run(bench.scratch)
    recipe = str(ROOT / "recipes" / "quickstart.toml")
    program = Path(sys.executable).with_name("shoestring")
    looked = "import sys; from shoestring.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    looked += "print('torch' in sys.modules, file=sys.stderr)"
    for arguments in (["--help"], ["plan", recipe], ["bill", str(run)]):
        runs = []
        for n in range(CALLS + 1):
            began = time.perf_counter()
            done = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=bench.scratch)
            if n:  # the first call fills the disk cache
                runs.append(time.perf_counter() - began)
            if done.returncode:
                raise RuntimeError(f"shoestring {arguments[0]} ended with {done.returncode}: {done.stderr[-500:]}")
        command = [sys.executable, "-c", looked, *arguments]
        seen = subprocess.run(command, capture_output=True, text=True, cwd=bench.scratch)
        free = seen.stderr.strip().endswith("False")
        said = "torch is not imported" if free else "TORCH IS IMPORTED"
        say(f"startup: {arguments[0]} {statistics.median(runs):.2f} s")
        yield medians(spec(f"start, shoestring {arguments[0]}"), runs, correctness=said, sound=free)


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


MAKERS: dict[str, Callable[[Bench, str], Iterator[Row]]] = {
    "startup": startup_rows,
    "sft": sft_rows,
    "sft-defaults": sft_rows,
    "decode": decode_rows,
    "vllm": decode_rows,
    "grpo": grpo_rows,
}
