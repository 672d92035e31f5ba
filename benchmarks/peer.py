"""The usual tools' side: TRL's trainers and transformers' generate, in an environment of their own. A worker.

python -m benchmarks.peer sft WORKLOAD SETTINGS | decode … | grpo …

A trainer owns its loop, so the commands are taken in its callbacks: `Gate` holds the loop between blocks.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.protocol import Channel, Stopwatch
from benchmarks.workload import reward

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def gate(channel: Channel, take: Callable[[], dict[str, Any]], others: dict[str, Callable[[], dict[str, Any]]]) -> Any:
    """A trainer callback that works `steps` steps a command and replies with `take()` after them."""
    from transformers import TrainerCallback

    class Gate(TrainerCallback):
        left = 0

        def wait(self, control: Any) -> None:
            while (c := channel.receive()) is not None:
                if c["do"] == "block":
                    self.left, self.watch = c["steps"], Stopwatch()
                    return
                channel.send(**others[c["do"]]())
            control.should_training_stop = True

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            import torch

            channel.send(
                threads=torch.get_num_threads(), versions={n: version(n) for n in ("trl", "transformers", "torch")}
            )
            self.wait(control)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.watch.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.watch.__exit__()
            self.left -= 1
            if self.left == 0:
                channel.send(seconds=self.watch.seconds, cpu=self.watch.cpu, **take())
                self.wait(control)

    return Gate()


def common(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of both trainers: constant rate, nothing logged or saved.

    settings["mode"]: "defaults" is TRL's own choice, fp32 weights under bf16 autocast with checkpointing; otherwise
    bf16 weights and no checkpointing, its fastest on a CPU.
    """
    defaults = settings.get("mode") == "defaults"
    return {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": defaults,
        "max_steps": 100_000,
        "learning_rate": settings["lr"],
        "adam_beta1": settings["betas"][0],
        "adam_beta2": settings["betas"][1],
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": defaults,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }


def load(folder: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.float32 if settings.get("mode") == "defaults" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model, AutoTokenizer.from_pretrained(folder)


def sft(channel: Channel, work: dict[str, Any], settings: dict[str, Any]) -> None:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    model, tokenizer = load(work["model"], settings)
    train, held = work["chats"][:-16], work["chats"][-16:]
    seen = {"tokens": 0, "rows": 0}

    class Counted(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen["tokens"] += int(inputs["attention_mask"].sum())
            seen["rows"] += inputs["input_ids"].numel()
            return super().compute_loss(model, inputs, *args, **kwargs)

    def take() -> dict[str, Any]:
        out = dict(seen)
        seen.update(tokens=0, rows=0)
        return out

    def held_out() -> dict[str, Any]:
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for m in held:
                ids = torch.tensor([tokenizer.apply_chat_template(m, tokenize=True, return_dict=True)["input_ids"]])
                logits = model(input_ids=ids).logits[0, :-1].float()
                total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
                count += ids.shape[1] - 1
        model.train()
        return {"held_out": total / count, "steps": trainer.state.global_step}

    arguments = SFTConfig(
        **common(settings),
        per_device_train_batch_size=settings["batch"],
        train_sampling_strategy="sequential",
        max_length=1024,
    )
    trainer = Counted(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{"messages": m} for m in train]),
        processing_class=tokenizer,
        callbacks=[gate(channel, take, {"held_out": held_out})],
    )
    trainer.train()


def decode(channel: Channel, work: dict[str, Any], settings: dict[str, Any]) -> None:
    import torch

    model, _ = load(work["model"], settings)
    model.eval()
    model.generation_config.eos_token_id = None  # no stopping, and no work spent on forbidding it
    channel.send(threads=torch.get_num_threads(), versions={n: version(n) for n in ("transformers", "torch")})
    while (c := channel.receive()) is not None:
        prompts = work["prompts"][: c["batch"]]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        watch, out = Stopwatch(), None
        for _ in range(c["times"]):
            with watch, torch.inference_mode():
                out = model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=c["new"], do_sample=False, pad_token_id=0
                )
        assert out is not None
        chosen = out[:, width:].tolist()
        tokens = sum(map(len, chosen)) * c["times"]
        channel.send(seconds=watch.seconds, cpu=watch.cpu, tokens=tokens, chosen=chosen)


def grpo(channel: Channel, work: dict[str, Any], settings: dict[str, Any]) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    model, tokenizer = load(work["model"], settings)
    seen: dict[str, Any] = {"tokens": 0, "rewards": []}

    def graded(completions: Any, completion_ids: Any, answer: Any, **_: Any) -> list[float]:
        values = [reward(c[0]["content"], a) for c, a in zip(completions, answer, strict=True)]
        seen["tokens"] += sum(map(len, completion_ids))
        seen["rewards"] += values
        return values

    def take() -> dict[str, Any]:
        values = seen["rewards"]
        out = {"tokens": seen["tokens"], "answers": len(values), "reward": sum(values) / len(values)}
        seen.update(tokens=0, rewards=[])
        return out

    arguments = GRPOConfig(
        **common(settings),
        per_device_train_batch_size=settings["prompts"] * settings["group"],
        num_generations=settings["group"],
        max_completion_length=settings["new"],
        temperature=1.0,
        beta=0.0,
        epsilon=0.2,
        shuffle_dataset=False,
    )
    trainer = GRPOTrainer(
        model=model,
        args=arguments,
        reward_funcs=graded,
        train_dataset=Dataset.from_list([{"prompt": s["messages"], "answer": s["answer"]} for s in work["sums"]]),
        processing_class=tokenizer,
        callbacks=[gate(channel, take, {})],
    )
    trainer.train()


def main() -> None:
    kind = {"sft": sft, "decode": decode, "grpo": grpo}[sys.argv[1]]
    kind(Channel(), json.loads(Path(sys.argv[2]).read_text()), json.loads(sys.argv[3]))


if __name__ == "__main__":
    main()
