"""Our side: the same public pieces that the stages use. Run by benchmarks.run as a worker.

python -m benchmarks.ours prepare OUT.json                    write the workload
python -m benchmarks.ours sft|decode|grpo WORKLOAD SETTINGS   a worker
python -m benchmarks.ours sft|decode|grpo --profile           where the time of a step goes, by operator
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.protocol import Channel, Stopwatch
from benchmarks.workload import GRPO, NEW, SFT, batch, chats, questions, reward, sums


def prepare(out: Path) -> None:
    """Write the workload: the model's folder (made from the packaged GGUF on first use), chats, prompts, sums."""
    from shoestring.export import base_folder
    from shoestring.models.tokenizer import Tokenizer

    folder = base_folder("smollm2-135m-instruct")
    tokenizer = Tokenizer(folder)
    made = list(chats(200, lambda m: len(whole(tokenizer, m))))
    asked, summed = questions(32), sums(64)
    out.write_text(
        json.dumps(
            {
                "model": str(folder),
                "chats": made,
                "prompts": [tokenizer.chat(q) for q in asked],
                "sums": [{"messages": m, "answer": a} for m, a in summed],
            }
        )
    )


def whole(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[int, ...]:
    """Ids of a finished chat, exactly as the template writes them."""
    return tuple(tokenizer.inner.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])


def trainable(folder: Path, settings: dict[str, Any]) -> tuple[Any, Any]:
    """bf16 weights that compute and fp32 masters with the base's own values, as the stages open them."""
    import torch

    from shoestring import allocator
    from shoestring.models.folder import load
    from shoestring.train.optimiser import MasterAdamW
    from shoestring.train.recompute import wrapper

    allocator.keep_freed_memory()
    model = load(folder, torch.float32)
    masters = {n: p.detach() for n, p in model.named_parameters()}
    model = model.to(torch.bfloat16)
    model.wrap = wrapper(settings["recompute"])
    return model, MasterAdamW(model, settings["lr"], tuple(settings["betas"]), masters=masters)


def fastest(run: Callable[[], object], times: int = 5) -> float:
    """Seconds of the best of `times` calls, after one that is not counted."""
    run()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


def matmul_rates(shape: Any, rows: int) -> dict[str, float]:
    """FLOP/s of bf16 matrix products in this process, now: the best of five each.

    square: 2048³, the rate that MFU is stated against. model: the four products of a layer at `rows` rows, by their
    FLOPs and their time together. head: `rows` / 8 rows onto the vocabulary.
    """
    import torch

    def product(n: int, k: int, m: int) -> tuple[float, float]:
        a, b = torch.randn(n, k).bfloat16(), torch.randn(m, k).bfloat16()
        return 2.0 * n * k * m, fastest(lambda: torch.mm(a, b.T))

    layer = [
        product(rows, shape.hidden, shape.q_width + 2 * shape.kv_width),
        product(rows, shape.q_width, shape.hidden),
        product(rows, shape.hidden, 2 * shape.intermediate),
        product(rows, shape.intermediate, shape.hidden),
    ]
    square, head = product(2048, 2048, 2048), product(rows // 8, shape.hidden, shape.vocab)
    return {
        "square": square[0] / square[1],
        "model": sum(f for f, _ in layer) / sum(s for _, s in layer),
        "head": head[0] / head[1],
    }


class Sft:
    """A step of supervised fine-tuning: pack, forward, backward, AdamW."""

    def __init__(self, work: dict[str, Any], settings: dict[str, Any]) -> None:
        from shoestring.estimate.headers import model_shape
        from shoestring.models.tokenizer import Tokenizer
        from shoestring.records import Example

        folder = Path(work["model"])
        tokenizer = Tokenizer(folder)
        self.shape, self.settings = model_shape(str(folder)), settings
        self.held = [whole(tokenizer, m) for m in work["chats"][-16:]]
        self.examples = []
        for m in work["chats"][:-16]:
            tokens = whole(tokenizer, m)
            # the peer learns every token of the chat but the first, so here we do too
            self.examples.append(Example(tokens, (0.0,) + (1.0,) * (len(tokens) - 1), len(tokenizer.chat(m[:-1]))))
        self.model, self.optimiser = trainable(folder, settings)
        self.step = 0

    def block(self, steps: int, matmul: bool = False) -> dict[str, Any]:
        """flops: by estimate.flops, three forwards a token, of the rows that were computed.

        With `matmul`, the rates of plain products are measured right after the steps, in the same state of the machine.
        """
        from shoestring.data.packing import pack
        from shoestring.estimate.flops import training_flops
        from shoestring.train.step import accumulate

        watch, tokens, rows, loss, flops = Stopwatch(), 0, 0, 0.0, 0.0
        for _ in range(steps):
            chosen = batch(self.examples, self.step, self.settings["batch"])
            with watch:
                result = accumulate(self.model, pack(chosen, self.settings["rows"]), None)
                self.optimiser.step(1.0, 1.0)
            self.step += 1
            lengths = [len(e.tokens) for e in chosen]
            tokens += sum(lengths)
            rows, loss = rows + result.rows, result.loss
            # beginnings that were computed once are work that was not done
            saved = 6.0 * self.shape.layers * self.shape.layer_weights() * (sum(lengths) - result.rows)
            flops += training_flops(self.shape, lengths, head_tokens=result.predictions) - saved
        return {
            "seconds": watch.seconds,
            "cpu": watch.cpu,
            "tokens": tokens,
            "rows": rows,
            "loss": loss,
            "flops": flops,
            "matmul": matmul_rates(self.shape, self.settings["rows"]) if matmul else None,
        }

    def held_out(self) -> dict[str, Any]:
        import torch

        from shoestring.records import Document

        total, count = 0.0, 0
        with torch.no_grad():
            for tokens in self.held:
                ids = torch.tensor(tokens)
                logits = self.model.logits(ids, torch.arange(len(ids)), [Document(0, len(ids))])[:-1].float()
                total += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
                count += len(ids) - 1
        return {"held_out": total / count, "steps": self.step}


class Decode:
    """Greedy decoding of the workload's prompts, prefill included."""

    def __init__(self, work: dict[str, Any], settings: dict[str, Any]) -> None:
        import torch

        from shoestring.allocator import keep_freed_memory
        from shoestring.models.folder import load

        keep_freed_memory()
        self.model, self.prompts = load(Path(work["model"]), torch.bfloat16), work["prompts"]
        self.engines: dict[int, Any] = {}

    def block(self, batch: int, new: int, times: int) -> dict[str, Any]:
        from shoestring.generate.engine import Engine, Request

        if batch not in self.engines:
            self.engines[batch] = Engine(self.model, batch)
        requests = [Request(tuple(p), new, logprobs=False) for p in self.prompts[:batch]]
        watch, done = Stopwatch(), []
        for _ in range(times):
            with watch:
                done = self.engines[batch].generate(requests)
        chosen = [d.tokens for d in done]
        return {"seconds": watch.seconds, "cpu": watch.cpu, "tokens": sum(map(len, chosen)) * times, "chosen": chosen}


class Grpo:
    """A step of reinforcement learning: one rollout, rewards, one update."""

    def __init__(self, work: dict[str, Any], settings: dict[str, Any]) -> None:
        from shoestring.generate.engine import Engine
        from shoestring.models.tokenizer import Tokenizer

        self.tokenizer, self.sums, self.settings = Tokenizer(Path(work["model"])), work["sums"], settings
        self.model, self.optimiser = trainable(Path(work["model"]), settings)
        self.engine = Engine(self.model, settings["prompts"] * settings["group"])
        self.step = 0

    def _roll(self) -> tuple[list[tuple[Any, str]], list[Any]]:
        """(prompt, answer) of the step's sums and the completions, a group after the other."""
        from shoestring.generate.engine import Request
        from shoestring.generate.sampling import request_seed

        self.engine.refresh()
        s, stop = self.settings, frozenset([self.tokenizer.end])
        asked = [(self.tokenizer.chat(x["messages"]), x["answer"]) for x in batch(self.sums, self.step, s["prompts"])]
        requests = [
            Request(prompt, s["new"], 1.0, request_seed(0, self.step, place, k), stop)
            for place, (prompt, _) in enumerate(asked)
            for k in range(s["group"])
        ]
        return asked, self.engine.generate(requests)

    def _examples(self, asked: list[tuple[Any, str]], done: list[Any]) -> tuple[list[Any], list[float]]:
        from shoestring.records import Trace
        from shoestring.stages.grpo import advantages, to_example

        group, end = self.settings["group"], self.tokenizer.end
        examples, scores = [], []
        for place, (prompt, answer) in enumerate(asked):
            mine = done[place * group : (place + 1) * group]
            texts = [self.tokenizer.decode([t for t in d.tokens if t != end]) for d in mine]
            values = [reward(t, answer) for t in texts]
            scores += values
            # the stage leaves groups without variance out; the peer trains on them, so here we do too
            for d, value in zip(mine, advantages(values, "std"), strict=True):
                trace = Trace("", prompt, d.tokens, (True,) * len(d.tokens), d.logprobs, d.reason, "bench")
                examples.append(to_example(trace, value))
        return examples, scores

    def block(self, steps: int) -> dict[str, Any]:
        from shoestring.data.packing import pack
        from shoestring.train.policy import Policy
        from shoestring.train.step import accumulate

        watch, rollout, tokens, rewards = Stopwatch(), Stopwatch(), 0, []
        for _ in range(steps):
            with watch:
                with rollout:
                    asked, done = self._roll()
                examples, scores = self._examples(asked, done)
                accumulate(self.model, pack(examples, self.settings["rows"]), Policy(0.2, 0.2, 1.0))
                self.optimiser.step(1.0, 1.0)
            self.step += 1
            tokens += sum(len(d.tokens) for d in done)
            rewards += scores
        return {
            "seconds": watch.seconds,
            "cpu": watch.cpu,
            "rollout": rollout.seconds,
            "tokens": tokens,
            "answers": len(rewards),
            "reward": sum(rewards) / len(rewards),
        }


KINDS = {"sft": Sft, "decode": Decode, "grpo": Grpo}


def serve(kind: str, workload: Path, settings: dict[str, Any]) -> None:
    """Work on command until the other side is gone."""
    import torch

    channel = Channel()
    worker = KINDS[kind](json.loads(workload.read_text()), settings)
    channel.send(threads=torch.get_num_threads())
    while (c := channel.receive()) is not None:
        channel.send(**getattr(worker, c.pop("do"))(**c))


def profile(kind: str, size: int, steps: int, top: int) -> str:
    """The operators of `steps` steps by their own time, as a table; the first step is not counted."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with tempfile.TemporaryDirectory() as scratch:
        prepare(out := Path(scratch) / "workload.json")
        work = json.loads(out.read_text())
    settings = {"sft": SFT | {"batch": size}, "grpo": GRPO, "decode": {}}[kind]
    worker = KINDS[kind](work, settings)
    once = {"batch": size, "new": NEW, "times": 1} if kind == "decode" else {"steps": 1}
    worker.block(**once)
    with profiler(activities=[ProfilerActivity.CPU]) as p:
        replies = [worker.block(**once) for _ in range(steps)]
    spent = sum(r["seconds"] for r in replies) / steps
    events = sorted(p.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    lines = [
        f"{kind}{'' if kind == 'grpo' else f', batch {size}'}: {spent:.2f} s a {'call' if kind == 'decode' else 'step'}"
        f" with the profiler on, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{total / steps / 1e6:.2f} s of it in operators",
        "",
        "| operator | share | ms | calls |",
        "|---|---|---|---|",
    ]
    for e in events[:top]:
        ms = e.self_cpu_time_total / steps / 1000
        lines.append(f"| `{e.key}` | {e.self_cpu_time_total / total:.1%} | {ms:.1f} | {e.count / steps:g} |")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(prog="benchmarks.ours", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("kind", choices=("prepare", *KINDS))
    p.add_argument("workload", type=Path, nargs="?", help="the workload's JSON file")
    p.add_argument("settings", type=json.loads, nargs="?", default={}, help="JSON")
    p.add_argument("--profile", action="store_true", help="print the operators by their own time instead")
    p.add_argument("--batch", type=int, help="chats a step, or prompts decoded together (default: 8, or 32)")
    p.add_argument("--steps", type=int, default=3, help="steps or calls that are profiled")
    p.add_argument("--top", type=int, default=20, help="operators that are shown")
    args = p.parse_args()
    if args.profile:
        if args.kind == "prepare":
            p.error("prepare has no profile")
        size = args.batch or (32 if args.kind == "decode" else SFT["batch"])
        print(profile(args.kind, size, args.steps, args.top))
    elif args.workload is None:
        p.error(f"{args.kind} needs a workload's file")
    elif args.kind == "prepare":
        prepare(args.workload)
    else:
        serve(args.kind, args.workload, args.settings)


if __name__ == "__main__":
    main()
