"""Our side: the same public pieces that the stages use. Run by benchmarks.run as a worker.

python -m benchmarks.ours prepare OUT.json | sft WORKLOAD SETTINGS | decode … | grpo …
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.protocol import Channel, Stopwatch
from benchmarks.workload import batch, chats, questions, reward, sums


def prepare(out: Path) -> None:
    """Write the workload: the model's folder (made from the packaged GGUF on first use), chats, prompts, sums."""
    from shoestring.estimate.locate import locate
    from shoestring.models.gguf import cached_folder
    from shoestring.models.tokenizer import Tokenizer

    base = locate("smollm2-135m-instruct")
    folder = cached_folder(base) if base.is_file() else base
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


def trainable(folder: Path, lr: float, betas: tuple[float, float]) -> tuple[Any, Any]:
    """bf16 weights that compute and fp32 masters with the base's own values, as the stages open them."""
    import torch

    from shoestring.models.folder import load
    from shoestring.train.optimiser import MasterAdamW

    masters = {n: p.detach() for n, p in load(folder, torch.float32).named_parameters()}
    model = load(folder, torch.bfloat16)
    return model, MasterAdamW(model, lr, betas, masters=masters)


def sft(channel: Channel, work: dict[str, Any], settings: dict[str, Any]) -> None:
    import torch

    from shoestring.data.packing import pack
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.records import Document, Example
    from shoestring.train.step import accumulate

    folder = Path(work["model"])
    tokenizer = Tokenizer(folder)
    train, held = work["chats"][:-16], work["chats"][-16:]
    examples = []
    for m in train:
        tokens = whole(tokenizer, m)
        # the peer learns every token of the chat but the first, so here we do too
        examples.append(Example(tokens, (0.0,) + (1.0,) * (len(tokens) - 1), len(tokenizer.chat(m[:-1]))))
    model, optimiser = trainable(folder, settings["lr"], tuple(settings["betas"]))
    step = 0

    def held_out() -> float:
        total, count = 0.0, 0
        with torch.no_grad():
            for m in held:
                ids = torch.tensor(whole(tokenizer, m))
                logits = model.logits(ids, torch.arange(len(ids)), [Document(0, len(ids))])[:-1].float()
                total += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
                count += len(ids) - 1
        return total / count

    channel.send(threads=torch.get_num_threads())
    while (c := channel.receive()) is not None:
        if c["do"] == "held_out":
            channel.send(held_out=held_out(), steps=step)
            continue
        watch, tokens, rows, loss = Stopwatch(), 0, 0, 0.0
        for _ in range(c["steps"]):
            chosen = batch(examples, step, settings["batch"])
            with watch:
                result = accumulate(model, pack(chosen, settings["rows"]), None)
                optimiser.step(1.0, 1.0)
            step += 1
            tokens += sum(len(e.tokens) for e in chosen)
            rows, loss = rows + result.rows, result.loss
        channel.send(seconds=watch.seconds, cpu=watch.cpu, tokens=tokens, rows=rows, loss=loss)


def decode(channel: Channel, work: dict[str, Any], settings: dict[str, Any]) -> None:
    import torch

    from shoestring.generate.engine import Engine, Request
    from shoestring.models.folder import load

    model = load(Path(work["model"]), torch.bfloat16)
    engines: dict[int, Engine] = {}
    channel.send(threads=torch.get_num_threads())
    while (c := channel.receive()) is not None:
        size = c["batch"]
        engine = engines.setdefault(size, Engine(model, size)) if size not in engines else engines[size]
        requests = [Request(tuple(p), c["new"]) for p in work["prompts"][:size]]
        watch, done = Stopwatch(), []
        for _ in range(c["times"]):
            with watch:
                done = engine.generate(requests)
        channel.send(
            seconds=watch.seconds,
            cpu=watch.cpu,
            tokens=sum(len(d.tokens) for d in done) * c["times"],
            chosen=[d.tokens for d in done],
        )


def grpo(channel: Channel, work: dict[str, Any], settings: dict[str, Any]) -> None:
    import torch

    from shoestring.data.packing import pack
    from shoestring.generate.engine import Engine, Request
    from shoestring.generate.sampling import request_seed
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.records import Trace
    from shoestring.stages.grpo import advantages, to_example
    from shoestring.train.step import Clip, accumulate

    tokenizer = Tokenizer(Path(work["model"]))
    model, optimiser = trainable(Path(work["model"]), settings["lr"], tuple(settings["betas"]))
    prompts, group = settings["prompts"], settings["group"]
    engine = Engine(model, prompts * group)
    stop, clip = frozenset([tokenizer.end]), Clip(0.2, 0.2, 1.0)
    step = 0
    channel.send(threads=torch.get_num_threads())
    while (c := channel.receive()) is not None:
        watch, tokens, rewards, rollout = Stopwatch(), 0, [], Stopwatch()
        for _ in range(c["steps"]):
            with watch:
                with rollout:
                    engine.refresh()
                    asked = [(tokenizer.chat(s["messages"]), s["answer"]) for s in batch(work["sums"], step, prompts)]
                    requests = [
                        Request(prompt, settings["new"], 1.0, request_seed(0, step, place, k), stop)
                        for place, (prompt, _) in enumerate(asked)
                        for k in range(group)
                    ]
                    done = engine.generate(requests)
                examples, scores = [], []
                for place, (prompt, answer) in enumerate(asked):
                    mine = done[place * group : (place + 1) * group]
                    texts = [tokenizer.decode([t for t in d.tokens if t != tokenizer.end]) for d in mine]
                    values = [reward(t, answer) for t in texts]
                    scores += values
                    # the stage leaves groups without variance out; the peer trains on them, so here we do too
                    for d, value in zip(mine, advantages(values, "std"), strict=True):
                        trace = Trace("", prompt, d.tokens, (True,) * len(d.tokens), d.logprobs, d.reason, "bench")
                        examples.append(to_example(trace, value))
                accumulate(model, pack(examples, settings["rows"]), clip)
                optimiser.step(1.0, 1.0)
            step += 1
            tokens += sum(len(d.tokens) for d in done)
            rewards += scores
        channel.send(
            seconds=watch.seconds,
            cpu=watch.cpu,
            rollout=rollout.seconds,
            tokens=tokens,
            answers=len(rewards),
            reward=sum(rewards) / len(rewards),
        )


def main() -> None:
    if sys.argv[1] == "prepare":
        return prepare(Path(sys.argv[2]))
    kind = {"sft": sft, "decode": decode, "grpo": grpo}[sys.argv[1]]
    kind(Channel(), json.loads(Path(sys.argv[2]).read_text()), json.loads(sys.argv[3]))


if __name__ == "__main__":
    main()
