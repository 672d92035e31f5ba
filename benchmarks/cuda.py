"""The H100 rows: training, decoding and GRPO on one GPU, by the pieces that the stages use.

python -m benchmarks.cuda                          all rows; on an H100 stored in benchmarks/results/h100.json
python -m benchmarks.cuda --only decode --blocks 1 to try something out: nothing is stored
python -m benchmarks.cuda --small                  tiny models on any device, to see that the script runs; nothing is stored

Weights are random in the shape of the model named, and so are the tokens: neither changes the time. Peers (TRL with Liger,
a PPO actor-critic) are not run here, and their columns stay empty.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.protocol import say
from benchmarks.results import GPU_STORED, Row, load, medians, merge, print_table, same_share, write
from benchmarks.table import of_family, spec
from benchmarks.workload import GRPO, NEW, SFT

SMALL_135M: dict[str, Any] = dict(
    family="llama", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152, norm_eps=1e-5,
    rope_theta=100_000.0, tied=True, max_positions=8192,
)  # fmt: skip
QWEN_15B: dict[str, Any] = dict(
    family="qwen2", layers=28, hidden=1536, heads=12, kv_heads=2, head_dim=128, intermediate=8960, vocab=151_936,
    norm_eps=1e-6, rope_theta=1_000_000.0, tied=True, max_positions=32_768, qkv_bias=True,
)  # fmt: skip
TINY: dict[str, Any] = dict(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=211)


@dataclass(frozen=True)
class Effort:
    """blocks, steps a block, rows a micro-batch, tokens of a training step, prompt and new tokens of decoding."""

    blocks: int = 5
    steps: int = 3
    rows: int = 16_384
    tokens: int = 65_536
    prompt: int = 128
    new: int = 256
    batches: tuple[int, ...] = (1, 8, 64, 256)
    square: int = 8192
    tiny: bool = False


class Card:
    """The device, its clock, and what its data sheet says (None off the table of estimate.gpus: no peak is guessed)."""

    def __init__(self) -> None:
        import torch

        from shoestring.estimate import gpus
        from shoestring.models.device import choose
        from shoestring.records import UserError

        self.device = choose()
        self.cuda = self.device.type == "cuda"
        self.name = torch.cuda.get_device_name(self.device) if self.cuda else platform.machine()
        try:
            self.sheet = gpus.gpu(self.name)
        except UserError:
            self.sheet = None

    def wait(self) -> None:
        import torch

        if self.cuda:
            torch.cuda.synchronize(self.device)

    @contextmanager
    def timed(self, into: list[float]) -> Iterator[None]:
        self.wait()
        began = time.perf_counter()
        yield
        self.wait()
        into.append(time.perf_counter() - began)

    def peak_gib(self) -> float:
        """The most memory that tensors held since `forget`; 0 off CUDA."""
        import torch

        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.cuda else 0.0

    def forget(self) -> None:
        import gc

        import torch

        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def matmul(self, n: int) -> float:
        """FLOP/s of a bf16 product of n³ here and now, the best of five."""
        import torch

        a, b = (torch.randn(n, n, device=self.device).bfloat16() for _ in range(2))
        seconds: list[float] = []
        for _ in range(6):
            with self.timed(seconds):
                torch.mm(a, b)
        return 2.0 * n**3 / min(seconds[1:])


def model_of(sizes: dict[str, Any], card: Card, effort: Effort) -> Any:
    import torch

    from shoestring.models.config import DecoderConfig
    from shoestring.models.decoder import Decoder

    config = DecoderConfig(**(sizes | (TINY if effort.tiny else {})))
    with torch.device("meta"):
        model = Decoder(config)
    model = model.to(torch.bfloat16).to_empty(device=card.device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if name.endswith("norm") else p.normal_(0.0, 0.02)
    return model


def shape_of(model: Any) -> Any:
    from shoestring.estimate.flops import ModelShape

    c = model.config
    return ModelShape(c.layers, c.hidden, c.heads, c.kv_heads, c.head_dim, c.intermediate, c.vocab, c.tied)


def sft(name: str, sizes: dict[str, Any], rows: int, card: Card, effort: Effort) -> list[Row]:
    """Tokens/s and MFU of full training: the same documents again and again, 40 to 600 tokens each, loss on every one."""
    from shoestring.data.packing import pack
    from shoestring.estimate.flops import training_flops
    from shoestring.records import Example
    from shoestring.train.optimiser import MasterAdamW
    from shoestring.train.step import accumulate

    card.forget()
    model = model_of(sizes, card, effort)
    optimiser = MasterAdamW(model, SFT["lr"], tuple(SFT["betas"]))
    rng, data, total = random.Random(0), [], 0
    while total < effort.tokens:
        tokens = tuple(rng.randrange(model.config.vocab) for _ in range(rng.randint(40, 600)))
        data.append(Example(tokens, (0.0,) + (1.0,) * (len(tokens) - 1), 1))
        total += len(tokens)
    losses: list[float] = []

    def step() -> None:
        losses.append(accumulate(model, pack(data, rows)).loss)
        optimiser.step(1.0, 1.0)

    step()  # not counted: kernels are chosen and memory is asked for
    packing: list[float] = []
    with card.timed(packing):
        pack(data, rows)
    blocks: list[float] = []
    for _ in range(effort.blocks):
        with card.timed(blocks):
            for _ in range(effort.steps):
                step()
    flops = training_flops(shape_of(model), [len(e.tokens) for e in data]) * effort.steps
    rate, peak = card.matmul(effort.square), card.sheet.bf16_flops if card.sheet else None
    falls = losses[-1] < losses[0]
    packed = packing[0] * effort.steps / statistics.median(blocks)
    said = f"{total:,} tokens a step in micro-batches of {rows:,} rows; loss {losses[0]:.2f} to {losses[-1]:.2f} over "
    said += f"{len(losses)} steps on the same documents; {packed:.0%} of the time is packing; peak {card.peak_gib():.1f} GiB"
    out = [medians(spec(f"H100: SFT, {name}"), [total * effort.steps / s for s in blocks], correctness=said, sound=falls)]
    if peak:
        mfu = [100 * flops / s / peak for s in blocks]
        said = f"of the data sheet's {peak / 1e12:.0f} TFLOP/s; a product of {effort.square}³ reaches {rate / 1e12:.0f} here"
        out.append(medians(spec(f"H100: SFT MFU, {name}"), mfu, correctness=said, sound=falls))
    return out


def decode(card: Card, effort: Effort) -> list[Row]:
    """The floor over the median step: a step cannot be faster than reading the weights and the cache once."""
    from shoestring.estimate.memory import kv_cache_bytes
    from shoestring.generate.engine import Engine, Request

    card.forget()
    model = model_of(SMALL_135M, card, effort)
    shape, out = shape_of(model), []
    for batch in effort.batches:
        rng = random.Random(batch)
        requests = [
            Request(tuple(rng.randrange(model.config.vocab) for _ in range(effort.prompt)), effort.new) for _ in range(batch)
        ]

        def block(engine: Engine, requests: Sequence[Request] = requests) -> tuple[list[float], list[Any], Any]:
            """(seconds of every decode step, completions in order, the session's steps)"""
            done, seconds = {}, []
            with engine.open(engine._needed(requests)) as session:
                names = {session.add(r): k for k, r in enumerate(requests)}
                while not session.idle:
                    before = engine.counters.steps
                    with card.timed(took := []):
                        events = session.step()
                    seconds += took if engine.counters.steps > before else []
                    done |= {names[e[0]]: e[1].tokens for e in events if len(e) == 2}
                steps = session._steps
                counts = (steps.captured, steps.replays) if steps else (0, 0)
            return seconds, [done[k] for k in sorted(done)], counts

        _, eager, _ = block(Engine(model, batch, graphs=False))
        engine = Engine(model, batch)
        context = effort.prompt + effort.new // 2  # at the median step
        read = 2 * shape.parameters() + kv_cache_bytes(shape, batch * context)
        shares, last, counts = [], eager, (0, 0)
        for _ in range(effort.blocks):
            seconds, last, counts = block(engine)
            step = statistics.median(seconds)
            if card.sheet:
                shares.append(100 * read / card.sheet.bytes_per_second / step)
            say(f"decode, batch {batch}: {1000 * step:.2f} ms a step, {batch / step:,.0f} tokens/s")
        said = f"{read / 2**30:.2f} GiB a step; {effort.prompt} prompt and {effort.new} new tokens, greedy; "
        same = same_share(last, eager)
        said += f"{counts[0]} graphs, {counts[1]} replays; {100 * same:.0f}% of tokens as without graphs"
        if shares:
            out.append(medians(spec(f"H100: decode, batch {batch}"), shares, correctness=said, sound=same > 0.9))
    return out


def grpo(card: Card, effort: Effort) -> list[Row]:
    """A step as the CPU row's: 4 prompts of 8 answers, random rewards, one update; and its peak memory."""
    from shoestring.data.packing import pack
    from shoestring.generate.engine import Engine, Request
    from shoestring.generate.sampling import request_seed
    from shoestring.records import Trace
    from shoestring.stages.grpo import advantages, to_example
    from shoestring.train.optimiser import MasterAdamW
    from shoestring.train.policy import Policy
    from shoestring.train.step import accumulate

    card.forget()
    model = model_of(SMALL_135M, card, effort)
    optimiser = MasterAdamW(model, GRPO["lr"], tuple(GRPO["betas"]))
    engine, rng = Engine(model, GRPO["prompts"] * GRPO["group"]), random.Random(0)
    norms: list[float] = []

    def step(number: int) -> None:
        engine.refresh()
        prompts = [tuple(rng.randrange(model.config.vocab) for _ in range(64)) for _ in range(GRPO["prompts"])]
        requests = [
            Request(p, NEW, 1.0, request_seed(0, number, place, k))
            for place, p in enumerate(prompts)
            for k in range(GRPO["group"])
        ]
        done, examples = engine.generate(requests), []
        for at in range(0, len(done), GRPO["group"]):
            values = [rng.random() for _ in range(GRPO["group"])]
            for d, r, a in zip(done[at:], requests[at:], advantages(values, "std"), strict=False):
                examples.append(
                    to_example(Trace("", r.prompt, d.tokens, (True,) * len(d.tokens), d.logprobs, d.reason, "bench"), a)
                )
        accumulate(model, pack(examples, effort.rows), Policy(0.2, 0.2, 1.0))
        norms.append(optimiser.step(1.0, 1.0))

    step(0)
    blocks: list[float] = []
    for block in range(effort.blocks):
        with card.timed(blocks):
            for k in range(effort.steps):
                step(1 + block * effort.steps + k)
    sound = all(0 < n < float("inf") for n in norms)
    said = f"{GRPO['prompts']} x {GRPO['group']} x {NEW}, no early stop; gradient norms {min(norms):.3g} to {max(norms):.3g}"
    out = [medians(spec("H100: GRPO step"), [s / effort.steps for s in blocks], correctness=said, sound=sound)]
    if card.cuda:
        said = "what torch's allocator held at most"
        out.append(medians(spec("H100: GRPO, peak memory"), [card.peak_gib()], correctness=said, sound=sound))
    return out


FAMILIES: dict[str, Callable[[Card, Effort], list[Row]]] = {
    "sft": lambda card, e: sft("135M", SMALL_135M, e.rows, card, e),
    "sft-1.5b": lambda card, e: sft("random weights of Qwen2.5-1.5B's shape", QWEN_15B, e.rows // 2, card, e),
    "decode": decode,
    "grpo": grpo,
}


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="benchmarks.cuda", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--only", default=",".join(FAMILIES), help=f"some of {','.join(FAMILIES)}")
    p.add_argument("--blocks", type=int, help=f"blocks in place of {Effort.blocks}; nothing is stored")
    p.add_argument("--small", action="store_true", help="tiny models on any device; nothing is stored")
    p.add_argument("--out", type=Path, default=GPU_STORED, help="the file that an H100's rows are merged into")
    args = p.parse_args(argv)
    wanted = args.only.split(",")
    if unknown := [f for f in wanted if f not in FAMILIES]:
        p.error(f"--only: no {unknown[0]!r}; there are {', '.join(FAMILIES)}")
    card = Card()
    if not card.cuda and not args.small:
        p.error("torch sees no CUDA device here; --small tries the script on a CPU")
    effort = replace(Effort(), blocks=args.blocks or Effort.blocks)
    if args.small:
        effort = Effort(1, 1, 1024, 1500, 20, 12, (1, 3), 64, True)
    import torch

    stamp = {
        "date": datetime.date.today().isoformat(),
        "machine": {"gpu": card.name, "system": f"{platform.system()} {platform.machine()}", "torch": torch.__version__},
    }
    rows: list[Row] = []
    for family in wanted:
        say(f"{family}: begins on {card.name}")
        rows += [replace(r, **stamp) for r in FAMILIES[family](card, effort)]
    stored = card.sheet is not None and "H100" in card.sheet.name and not args.small and args.blocks is None
    table = merge(load(args.out) if stored else [], rows, of_family("h100"))
    if stored:
        write(table, args.out)
        print(f"stored in {args.out}; python -m benchmarks.results --write-docs puts it into the page")
    print_table(table)
    if not stored:
        print(f"nothing is stored: {'tiny models' if args.small else 'a trial'} on {card.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
