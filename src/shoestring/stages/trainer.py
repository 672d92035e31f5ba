"""What the stages that train share: their common keys, opening and restoring, one guarded update, when to save.

Torch is imported inside; the keys and the forecast need none.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

from shoestring.estimate import adapters
from shoestring.estimate.flops import ModelShape, training_flops
from shoestring.estimate.memory import MemoryForecast, choose_recompute, state_bytes
from shoestring.records import Checkpoint, Example, UserError
from shoestring.stages.context import Context, Pace

if TYPE_CHECKING:
    from shoestring.train.step import Objective, StepResult


ALL_LINEAR = "all-linear"
BESIDE = ("reference/", "critic/")  # what a checkpoint keeps for others than the trained model's own optimiser
ADAPTER_KEYS = ("lora_alpha", "lora_targets", "rslora", "quantise")  # which mean nothing without `lora`


@dataclass(frozen=True)
class TrainerConfig:
    """Keys of every stage that trains.

    rows: packed rows a micro-batch, at most (a longer example stands alone). max_norm: gradients are clipped to it; 0:
    not at all. optimiser: "adamw", "adamw8bit" (moments in 8 bits: 6 bytes a weight less) or "muon" (the blocks'
    matrices by Muon, the rest by AdamW). schedule: "cosine", "linear", "constant" or "wsd", the rate's course after the
    warm-up; floor: the share of lr that cosine, linear and wsd end at; decay: the last share of the steps, in which wsd falls.
    recompute: activations made again in the backward pass, "none", "selective" (norms and gates: about 30% of the bytes for
    1% of the FLOPs), "full" (all but each layer's input, for a third more) or "auto": the first of the three that fits into
    memory_gib, or into what the machine has where that is 0. save_total_limit: checkpoints kept.

    lora: rank of the adapters that train in place of the weights (Hu et al. 2021); 0 trains every weight. lora_alpha: their
    scale is lora_alpha / lora, or lora_alpha / sqrt(lora) with `rslora`. lora_targets: PEFT's names of projections (a list,
    or one text with commas) or "all-linear". quantise: "nf4" keeps the frozen matrices in 4 bits a weight (QLoRA).
    """

    rows: int = 2048
    max_norm: float = 1.0
    optimiser: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    floor: float = 0.0
    decay: float = 0.1
    recompute: Literal["auto", "none", "selective", "full"] = "auto"
    memory_gib: float = 0.0
    save_total_limit: int = 1
    lora: int = 0
    lora_alpha: float = 32.0
    lora_targets: tuple[str, ...] | str = ALL_LINEAR
    rslora: bool = False
    quantise: Literal["none", "nf4"] = "none"

    def check(self) -> None:
        """ValueError that names the key."""
        choices = {
            "optimiser": ("adamw", "adamw8bit", "muon"),
            "schedule": ("cosine", "linear", "constant", "wsd"),
            "recompute": ("auto", "none", "selective", "full"),
            "quantise": ("none", "nf4"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} = {getattr(self, key)!r} must be one of {', '.join(allowed)}")
        for key in ("rows", "save_total_limit"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} = {getattr(self, key)} must be at least 1")
        for key in ("max_norm", "memory_gib"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key} = {getattr(self, key)} must be 0 or more")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor = {self.floor} is a share of lr, from 0 to 1")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay = {self.decay} is a share of the steps, above 0 and up to 1")
        self._check_adapter()

    def _check_adapter(self) -> None:
        if self.lora < 0:
            raise ValueError(f"lora = {self.lora} is a rank, 1 or more (0: every weight trains)")
        if not self.lora:
            plain = {f.name: f.default for f in fields(TrainerConfig)}
            for key in ADAPTER_KEYS:
                if getattr(self, key) != plain[key]:
                    raise ValueError(f"{key} = {getattr(self, key)!r} needs lora: without a rank no adapter trains; set lora")
            return
        if not 0 < self.lora_alpha < math.inf:
            raise ValueError(f"lora_alpha = {self.lora_alpha} must be above zero")
        wrong = [t for t in self.targets() if t not in adapters.TARGETS]
        if wrong or not self.targets():
            what = f"no projection {wrong[0]!r}" if wrong else "names none"
            raise ValueError(f'lora_targets: {what}; give "{ALL_LINEAR}" or some of {", ".join(adapters.TARGETS)}')
        if self.optimiser == "muon":
            raise ValueError('optimiser = "muon" is for whole matrices; with lora take "adamw" or "adamw8bit"')

    def targets(self) -> tuple[str, ...]:
        """The projections that get an adapter."""
        if self.lora_targets == ALL_LINEAR:
            return adapters.TARGETS
        given = self.lora_targets.split(",") if isinstance(self.lora_targets, str) else self.lora_targets
        return tuple(t.strip() for t in given if t.strip())

    def memory(
        self, shape: ModelShape, beside: Mapping[str, int] | None = None, available: int | None = None
    ) -> MemoryForecast:
        """Bytes by part at the peak, and the policy of recomputation.

        beside: what else the process will hold. available: bytes that there are, if not the machine's main memory.
        """
        adapter = None
        if self.lora:
            quantised = self.quantise == "nf4"
            adapter = adapters.adapter_training_bytes(shape, self.lora, self.targets(), quantised, self.optimiser)
        return choose_recompute(
            shape, self.rows, self.recompute, self.optimiser, self.memory_gib, beside, available, adapter=adapter
        )

    def checkpoint_bytes(self, shape: ModelShape) -> int:
        """Bytes of the largest checkpoint: masters and state; with an adapter its own, and the merged weights in fp32."""
        if not self.lora:
            return 4 * shape.parameters() + state_bytes(shape, self.optimiser)
        return 4 * shape.parameters() + 12 * adapters.adapter_parameters(shape, self.lora, self.targets())

    def training_flops(self, shape: ModelShape, lengths: Iterable[int], head_tokens: int | None = None) -> float:
        """FLOPs of forward and backward; arguments as `estimate.flops.forward_flops`."""
        if not self.lora:
            return training_flops(shape, lengths, head_tokens)
        return adapters.adapter_training_flops(shape, lengths, self.lora, self.targets(), head_tokens)


@dataclass(frozen=True)
class EpochsConfig(TrainerConfig):
    """`epochs` passes over the traces in steps of `batch` of them.

    lr peaks after a `warmup` share of the steps; beta1, beta2 and weight_decay are AdamW's.
    """

    epochs: float = 2.0
    batch: int = 32
    lr: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95

    def check(self) -> None:
        """ValueError for a value that means nothing."""
        for key in ("epochs", "batch", "lr", "rows"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"{key} = {getattr(self, key)} must be above zero")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} = {getattr(self, key)} must be 0 or more and below 1")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup = {self.warmup} is a share of the steps, from 0 to below 1")
        super().check()


class Beside(Protocol):
    """What is saved and restored with the model: a reference policy, a critic's optimiser."""

    def tensors(self) -> dict[str, Any]: ...
    def restore(self, tensors: Mapping[str, Any]) -> None: ...


class Trainer:
    """A model in training: open it, `update` step by step, `save` when `due`, `finish`.

    step: steps done; a step of several `descend`s counts once. rows: packed rows a micro-batch; halved for good when a step
    ran out of memory.
    """

    def __init__(
        self,
        config: TrainerConfig,
        context: Context,
        total: int,
        warmup: int,
        lr: float,
        memory: MemoryForecast,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        from shoestring import allocator
        from shoestring.stages.workbench import adapter_config, open_trainable, resumable
        from shoestring.train.checkpoints import Checkpoints, read_manifest, read_tensors
        from shoestring.train.optimiser import make
        from shoestring.train.recompute import wrapper

        self.config, self.context, self.total, self.warmup = config, context, total, warmup
        self.rows, self.step = config.rows, 0
        self.saves = Checkpoints(context.checkpoints, context.recipe_hash, config.save_total_limit)
        self.saves.sweep()
        allocator.keep_freed_memory()
        self.model, masters = open_trainable(context, adapter_config(config), config.quantise == "nf4")
        self.model.wrap = wrapper(memory.recompute)  # pyright: ignore[reportArgumentType]
        self.optimiser = make(config.optimiser, self.model, lr, betas=betas, weight_decay=weight_decay, masters=masters)
        self._beside: dict[str, Beside] = {}
        self._latest = latest = self.saves.latest()
        if latest is not None:
            found = {k: t for k, t in read_tensors(latest.path).items() if not k.startswith(BESIDE)}
            self.optimiser.restore(resumable(found))
            self.step = latest.step
            self.rows = read_manifest(latest.path)["state"].get("rows", config.rows)
        self._news = _memory_news(memory)
        self._unproved = bool(config.lora)  # whether an update is still to show that the adapters move
        self._saved_at = context.clock()

    def join(self, name: str, beside: Beside) -> None:
        """Save and restore `beside` with the model, under `name` (one of BESIDE); restored at once where there is a state."""
        from shoestring.train.checkpoints import read_tensors

        self._beside[name] = beside
        if self._latest is not None:
            prefix = f"{name}/"
            beside.restore({k.removeprefix(prefix): t for k, t in read_tensors(self._latest.path, prefix).items()})

    def factor(self) -> float:
        """The schedule's share of the learning rate in the step that is ahead."""
        from shoestring.train.schedules import rate

        config = self.config
        return rate(config.schedule, self.step, self.total, self.warmup, config.decay, config.floor)

    def update(self, data: Sequence[Example], objective: Objective | None = None) -> tuple[StepResult, float]:
        """One step on `data` at the schedule's rate: (what was computed, the gradient's norm)."""
        done = self.descend(data, objective)
        self.step += 1
        return done

    def descend(self, data: Sequence[Example], objective: Objective | None = None) -> tuple[StepResult, float]:
        """One optimiser step of those that make a step; the step is not counted."""
        result = self._accumulate(data, objective)
        if result is None:
            result = self._with_less(data, objective)
        factor = self.factor()
        before = self._before_first(factor)
        try:
            norm = self.optimiser.step(factor, self.config.max_norm)
        except (MemoryError, RuntimeError) as e:
            if not out_of_memory(e):
                raise
            raise UserError(
                f"stage {self.context.stage!r}: out of memory for the optimiser's state; "
                'set optimiser = "adamw8bit", take a smaller model or free memory'
            ) from None
        if before is not None:
            from shoestring.models import lora

            moved, _ = lora.check_moved(before, self.optimiser.masters, self.optimiser.lr * factor, norm)
            weights = sum(m.numel() for m in self.optimiser.masters.values())
            self._news = {**self._news, "trained_weights": weights, "adapters_moved": moved}
            self._unproved = False
        return result, norm

    def _before_first(self, factor: float) -> Mapping[str, Any] | None:
        """The adapters' state where this process's first real update is ahead; what it did is checked after it."""
        if not self._unproved or factor == 0:
            return None
        from shoestring.models import lora

        return lora.snapshot(self.optimiser.masters)

    def skip(self) -> tuple[StepResult, None]:
        """A step that had nothing to learn from."""
        from shoestring.train.step import StepResult

        self.step += 1
        return StepResult(), None

    def _accumulate(self, data: Sequence[Example], objective: Objective | None) -> StepResult | None:
        """Forward and backward; None where the memory ran out."""
        from shoestring.data import packing
        from shoestring.train import step

        try:
            return step.accumulate(self.model, packing.pack(data, self.rows), objective)
        except (MemoryError, RuntimeError) as e:
            if not out_of_memory(e):
                raise
        return None  # out here the error is gone, and with it the frames that held the step's tensors

    def _with_less(self, data: Sequence[Example], objective: Objective | None) -> StepResult:
        """The step once more at half the rows, from clean gradients. UserError if that is still too much."""
        before, self.rows = self.rows, max(1, self.rows // 2)
        self.optimiser.zero()
        gc.collect()
        if self.model.output_weight.is_cuda:
            import torch

            torch.cuda.empty_cache()  # pieces of the failed step's sizes are of no use to the smaller one
        result = self._accumulate(data, objective)
        if result is None:
            self.optimiser.zero()
            longest = max(len(e.tokens) for e in data)
            raise UserError(
                f"stage {self.context.stage!r}, step {self.step + 1}: out of memory with {before} packed rows a micro-batch "
                f'and with {self.rows} (longest example: {longest} tokens); lower rows, set recompute = "full" or '
                'optimiser = "adamw8bit", or leave longer examples out'
            )
        said = f"step {self.step + 1} ran out of memory at {before} rows a micro-batch; done again, and on, at {self.rows}"
        self._news = {**self._news, "rows": self.rows, "notice": f"{self.context.stage}: {said}"}
        return result

    def news(self) -> dict[str, Any]:
        """What the next report should tell once: the memory's forecast, a step that was done again."""
        told, self._news = self._news, {}
        return told

    def due(self, pace: Pace) -> bool:
        """Whether to save now, so that a kill during the next step costs at most `checkpoint_seconds`."""
        context = self.context
        return self.step < self.total and context.clock() - self._saved_at + pace.upper() > context.checkpoint_seconds

    def save(self, final: bool = False, readable: bool = False) -> Checkpoint:
        """readable: with weights that later stages open. Those of an adapter are merged for it: 4 bytes a weight."""
        tensors, state = self.optimiser.tensors(), {"rows": self.rows}
        if self.config.lora:
            from shoestring.stages.workbench import adapter_facts, adapter_tensors, merged

            tensors, state = adapter_tensors(tensors), state | adapter_facts(self.config)
            if final or readable:
                wide = self.config.quantise == "none"
                tensors |= merged(self.context, self.model, self.optimiser.masters, wide)
        if not final:  # a finished stage is not gone on from
            tensors |= {f"{name}/{k}": t for name, b in self._beside.items() for k, t in b.tensors().items()}
        made = self.saves.save(self.context.stage, self.step, tensors, state, final=final)
        self._saved_at = self.context.clock()
        return made

    def stop(self) -> Checkpoint:
        """The last checkpoint of a stage that has to stop: on disk when this returns, to be read and to be gone on from."""
        made = self.save(readable=True)
        self.saves.wait()
        self.optimiser.close()
        return made

    def finish(self) -> Checkpoint:
        made = self.save(final=True)
        self.optimiser.close()
        return made


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's own error, torch's, or the plain RuntimeError of its CPU allocator."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)


def _memory_news(memory: MemoryForecast) -> dict[str, Any]:
    gib = {k: round(v / 2**30, 3) for k, v in memory.parts.items() if v}
    told: dict[str, Any] = {
        "recompute": memory.recompute, "memory_forecast_gib": round(memory.total / 2**30, 3), "memory_parts_gib": gib,
    }  # fmt: skip
    if memory.available is not None:
        told["memory_available_gib"] = round(memory.available / 2**30, 3)
        if not memory.fits:
            told["notice"] = (
                f"memory: about {memory.total / 2**30:.1f} GiB are needed and {memory.available / 2**30:.1f} are there; "
                "if the step fails, lower rows"
            )
    return told
