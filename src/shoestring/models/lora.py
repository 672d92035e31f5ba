"""LoRA: a frozen matrix plus a trained product of two thin ones (Hu et al. 2021, section 4.1).

y = W x + scale B A x, with A [rank, in] and B [out, rank] for each Hugging Face projection, so that a PEFT adapter file is
exact. Our matrices are fused (`qkv`, `gate_up`): the A's of one fused matrix are multiplied as one matrix, and each B adds
into its rows of the result. A base that is not dense (models.nf4) is dequantised for each product and not kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from shoestring.estimate.adapters import TARGETS
from shoestring.models.config import DecoderConfig
from shoestring.models.decoder import Decoder
from shoestring.records import UserError, content_hash

FUSED = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "out": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
ALL = "all-linear"
CHILD = "adapted"  # the blocks' submodule that holds the adapters, and so a part of every parameter's name


@dataclass(frozen=True)
class LoraConfig:
    """rank: columns of B. alpha: the scale is alpha / rank, or alpha / sqrt(rank) with `rslora` (Kalajdzievski 2023).

    targets: PEFT's names of projections, or "all-linear" for every one. ValueError names the key that is wrong.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] | str = ALL
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be positive, not {self.alpha}")
        given = TARGETS if self.targets == ALL else (self.targets,) if isinstance(self.targets, str) else self.targets
        unknown = [t for t in given if t not in TARGETS]
        if unknown or not given:
            what = f"no projection {unknown[0]!r}" if unknown else "none given"
            raise ValueError(f"targets: {what}; give {ALL!r} or some of {', '.join(TARGETS)}")
        object.__setattr__(self, "targets", tuple(t for t in TARGETS if t in given))  # one order, so that names are stable

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def spans(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Target → (first row, rows) within its fused matrix."""
    q, kv, wide = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.intermediate
    return {
        "q_proj": (0, q),
        "k_proj": (q, kv),
        "v_proj": (q + kv, kv),
        "o_proj": (0, config.hidden),
        "gate_proj": (0, wide),
        "up_proj": (wide, wide),
        "down_proj": (0, config.hidden),
    }


def _dense(base: Any, dtype: torch.dtype) -> torch.Tensor:
    return base if isinstance(base, torch.Tensor) else base.dequantise(dtype)


def _spread(factors: Sequence[torch.Tensor], at: Sequence[tuple[int, int]], rows: int, scale: float) -> torch.Tensor:
    """scale B of every part in its rows and its columns, zeros elsewhere [rows, sum of ranks]."""
    rank = factors[0].shape[1]
    out = factors[0].new_zeros(rows, rank * len(at))
    for i, ((start, count), b) in enumerate(zip(at, factors, strict=True)):
        out[start : start + count, i * rank : (i + 1) * rank] = b * scale
    return out


class _Product(torch.autograd.Function):
    """x [N, in] → x Wᵀ + bias + scale x Aᵀ Bᵀ [N, out].

    at: the rows of each B. factors: every A, then every B. Base and adapter are one product, [x, x Aᵀ] times [W, scale B],
    because the sum must be rounded once: an update added to a bf16 result is lost where it is below half a unit in the
    last place, and early updates are (docs/LOG.md). Kept for the backward pass: x and x Aᵀ [N, sum of ranks].
    """

    @staticmethod
    def forward(ctx, x, base, bias, scale, at, *factors):
        w, low, wide = _dense(base, x.dtype), None, x
        if factors:
            low = F.linear(x, torch.cat(factors[: len(at)]))
            wide, w = torch.cat([x, low], 1), torch.cat([w, _spread(factors[len(at) :], at, w.shape[0], scale)], 1)
        dense = isinstance(base, torch.Tensor)
        ctx.base, ctx.scale, ctx.at = None if dense else base, scale, at
        ctx.save_for_backward(x if factors or ctx.needs_input_grad[1] else None, base if dense else None, low, *factors)
        return F.linear(wide, w, bias)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, base, low, *factors = ctx.saved_tensors
        at, count = ctx.at, len(ctx.at)
        needs = ctx.needs_input_grad
        wide, below = grad, []
        grad_a: list[torch.Tensor] = []
        grad_b: list[torch.Tensor] = []
        if count:
            thin = []
            for (start, rows), h, b in zip(at, low.chunk(count, 1), factors[count:], strict=True):
                part = grad[:, start : start + rows]
                thin.append(part @ b)
                grad_b.append((part.t() @ h).mul_(ctx.scale))
            grad_low = torch.cat(thin, 1).mul_(ctx.scale)
            grad_a = list((grad_low.t() @ x).chunk(count))
            if needs[0]:
                wide, below = torch.cat([grad, grad_low], 1), factors[:count]
        grad_x = None
        if needs[0]:
            w = _dense(ctx.base if base is None else base, grad.dtype)
            grad_x = wide @ (torch.cat([w, *below]) if below else w)
        grad_base = grad.t() @ x if needs[1] else None
        grad_bias = grad.sum(0) if needs[2] else None
        return grad_x, grad_base, grad_bias, None, None, *grad_a, *grad_b


def _rounded(wide: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """wide [out, in] fp32 (overwritten) in `dtype`; to bf16 with a fixed dither, up with the probability of the remainder.

    Rounding to the nearest would give back the base's own bf16 weight wherever the update is below half a unit in its last
    place, so a rollout would not see what training sees. The dither is a Weyl sequence over the positions: the result
    is a function of the weights alone, and an update of zero leaves the base as it is.
    """
    if dtype != torch.bfloat16:
        return wide.to(dtype)
    bits = wide.view(torch.int32).view(-1)
    dither = torch.arange(bits.numel(), dtype=torch.int32, device=bits.device).bitwise_and_(0xFFFF)
    dither.mul_(25033).bitwise_and_(0xFFFF)  # 2^16 times the golden section, made odd: every remainder once in 2^16
    return bits.add_(dither).bitwise_and_(-0x10000).view(torch.float32).view(wide.shape).to(dtype)


class Adapter(nn.Module):
    """What stands in for one fused product of a block: the base, dense or quantised, and the LoRA parts on it, if any.

    Parameters: `<target>_A` [rank, in], `<target>_B` [rows, rank].
    """

    def __init__(self, config: LoraConfig | None = None, parts: Mapping[str, tuple[int, int]] | None = None) -> None:
        super().__init__()
        self.config, self.parts = config, dict(parts or {})

    def factors(self) -> list[tuple[tuple[int, int], torch.Tensor, torch.Tensor]]:
        """((first row, rows), A, B) of each part."""
        return [(at, getattr(self, t + "_A"), getattr(self, t + "_B")) for t, at in self.parts.items()]

    def forward(self, x: torch.Tensor, base: Any, bias: torch.Tensor | None) -> torch.Tensor:
        """x [N, in], base [out, in] or quantised, bias [out] → [N, out]."""
        found = self.factors()
        scale = self.config.scale if self.config else 0.0
        at = tuple(f[0] for f in found)
        return _Product.apply(x, base, bias, scale, at, *(f[1] for f in found), *(f[2] for f in found))  # pyright: ignore[reportReturnType]

    def merged(
        self,
        base: Any,
        dtype: torch.dtype | None = None,
        source: Mapping[str, torch.Tensor] | None = None,
        prefix: str = "",
        overwrite: bool = False,
    ) -> torch.Tensor:
        """W + scale B A [out, in], added in fp32, in `dtype` (the base's own by default), detached.

        W is what training multiplies by: a quantised base in its compute type.
        source: A and B by prefix + parameter name, such as fp32 masters, in place of the adapter's own. overwrite: an fp32
        base may be added to in place.
        """
        with torch.no_grad():
            out = _dense(base, base.dtype).to(torch.float32, copy=not overwrite)
            for name, (start, rows) in self.parts.items():
                a, b = (
                    (getattr(self, name + x) if source is None else source[prefix + name + x]).to(out.device, torch.float32)
                    for x in ("_A", "_B")
                )
                assert self.config is not None
                out[start : start + rows].addmm_(b, a, alpha=self.config.scale)
            return _rounded(out, dtype or base.dtype)


def install(block: Any, name: str, adapter: Adapter | None) -> None:
    """Let `adapter` compute the block's product `name`; None takes away what stood there.

    The submodule gives the parameters their names; the dict is what `Decoder.project` reads.
    """
    if CHILD not in block._modules:
        block.add_module(CHILD, nn.ModuleDict())
    held: nn.ModuleDict = block._modules[CHILD]
    if adapter is not None:
        held[name] = adapter
    elif name in held:
        del held[name]
    block.adapters = dict(held.items()) or None
    if not held:
        del block._modules[CHILD]


def matrices(model: Decoder) -> list[tuple[int, Any, str, str]]:
    """(layer, block, fused name, prefix of the adapter's parameters) for every block matrix."""
    return [(i, b, n, f"blocks.{i}.{CHILD}.{n}.") for i, b in enumerate(model.blocks) for n in FUSED]


def adapter_of(block: Any, name: str) -> Adapter | None:
    return (block.adapters or {}).get(name)


def config_of(model: Decoder) -> LoraConfig | None:
    """The config that the model's LoRA was attached with; None without one."""
    for _, block, name, _ in matrices(model):
        found = adapter_of(block, name)
        if found is not None and found.config is not None:
            return found.config
    return None


def attach(model: Decoder, config: LoraConfig, seed: int) -> dict[str, nn.Parameter]:
    """Freeze the model and add trainable A and B, in the model's type; returns them by name, in the model's order.

    A is uniform in ±1 / sqrt(in) (Kaiming with a = sqrt 5, PEFT's default), a function of `seed` and its name; B is zero, so
    the model computes what it did. ValueError where a LoRA is attached already.
    """
    if config_of(model) is not None:
        raise ValueError("a LoRA is attached already; merge or detach it first")
    for p in model.parameters():
        p.requires_grad_(False)
    where = spans(model.config)
    for _, block, fused, prefix in matrices(model):
        parts = {t: where[t] for t in FUSED[fused] if t in config.targets}
        if not parts:
            continue
        base: Any = getattr(block, fused)
        adapter = Adapter(config, parts)
        for target, (_, rows) in parts.items():
            g = torch.Generator().manual_seed(int(content_hash(str(seed), f"{prefix}{target}_A"), 16) >> 1)
            a = torch.empty(config.rank, base.shape[1])
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=g)
            adapter.register_parameter(target + "_A", nn.Parameter(a.to(base.device, base.dtype)))
            b = torch.zeros(rows, config.rank, device=base.device, dtype=base.dtype)
            adapter.register_parameter(target + "_B", nn.Parameter(b))
        install(block, fused, adapter)
    return trainable(model)


def trainable(model: Decoder) -> dict[str, nn.Parameter]:
    """The LoRA parameters by name; the names are those of `model.named_parameters()` and do not change from run to run."""
    return {n: p for n, p in model.named_parameters() if f".{CHILD}." in n and p.requires_grad}


def restore(model: Decoder, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill the attached LoRA from tensors by name (a checkpoint's masters). UserError where they are another LoRA's."""
    own = {n: p for n, p in model.named_parameters() if f".{CHILD}." in n}
    odd = sorted(own.keys() ^ {n for n in tensors if f".{CHILD}." in n})
    odd += [n for n, p in own.items() if n in tensors and p.shape != tensors[n].shape]
    if odd:
        raise UserError(f"{odd[0]}: the saved LoRA has another rank or other targets than the recipe; restore the recipe")
    with torch.no_grad():
        for n, p in own.items():
            p.copy_(tensors[n])


def detach(model: Decoder) -> None:
    """Take the LoRA away without merging; the base's parameters train again (a quantised matrix has none)."""
    for _, block, name, _ in matrices(model):
        if (found := adapter_of(block, name)) is not None and found.parts:
            install(block, name, None if isinstance(getattr(block, name), torch.Tensor) else Adapter())
    for p in model.parameters():
        p.requires_grad_(True)


def merged(
    model: Decoder,
    source: Mapping[str, torch.Tensor] | None = None,
    base: Mapping[str, torch.Tensor] | None = None,
    overwrite: bool = False,
) -> dict[str, torch.Tensor]:
    """Every parameter of the plain decoder by name, fp32, the LoRA added: what `folder.save` takes as `source`.

    source: the LoRA's fp32 masters in place of the model's own copies. base: the frozen parameters at fp32, where the model
    holds narrower ones; a quantised matrix is what it was trained against, so there the model's own is used. overwrite: the
    base's fp32 tensors are given away, and become the result.
    """
    wide = dict(base or {})
    out: dict[str, torch.Tensor] = {}
    for n, p in model.named_parameters():
        if f".{CHILD}." not in n:
            out[n] = wide.get(n, p).detach().to(torch.float32, copy=not (overwrite and n in wide))
    for i, block, fused, prefix in matrices(model):
        name, held = f"blocks.{i}.{fused}", getattr(block, fused)
        if (adapter := adapter_of(block, fused)) is not None:
            dense = wide.get(name, held) if isinstance(held, torch.Tensor) else held
            out[name] = adapter.merged(dense, torch.float32, source, prefix, overwrite and dense is wide.get(name))
    return out


def merge(model: Decoder, source: Mapping[str, torch.Tensor] | None = None) -> None:
    """Turn the model, in place, into a plain one: each adapted or quantised matrix becomes a parameter of the model's type.

    The sum is made in fp32 and rounded once, to bf16 with a dither; `source` as in `merged`. Every parameter trains again.
    """
    for _, block, name, prefix in matrices(model):
        adapter, base = adapter_of(block, name), getattr(block, name)
        if adapter is None:
            continue
        dense = adapter.merged(base, None, source, prefix)
        install(block, name, None)
        if not isinstance(base, torch.Tensor):
            delattr(block, name)
        block.register_parameter(name, nn.Parameter(dense))
    for p in model.parameters():
        p.requires_grad_(True)


def snapshot(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of every B among `tensors` (the optimiser's masters, or `trainable(model)`), for `check_moved`."""
    return {n: t.detach().clone() for n, t in tensors.items() if f".{CHILD}." in n and n.endswith("_B")}


def check_moved(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], lr: float, norm: float
) -> tuple[int, int]:
    """(matrices B that the step changed, all of them). UserError, with the likely cause, if it changed none.

    before: a `snapshot`. after: the same tensors after the step. lr: the step's learning rate, schedule included. norm:
    its gradient norm. A step that has nothing to learn (every advantage zero) proves nothing: check the next one.
    """
    if not before:
        raise UserError("the LoRA has not moved: the optimiser holds none of its parameters (frozen, or attached after it)")
    lost: Sequence[str] = [n for n in before if n not in after]
    if lost:
        raise UserError(f"the LoRA has not moved: {lost[0]} and {len(lost) - 1} more left the optimiser")
    moved = sum(not torch.equal(t, after[n].detach().to(t)) for n, t in before.items())
    if moved:
        return moved, len(before)
    if not math.isfinite(norm):
        why = f"the gradient norm is {norm}, so the step was skipped; lower the learning rate"
    elif norm == 0:
        why = "no gradient reached it; the loss does not depend on the adapted matrices"
    elif lr == 0:
        why = "the learning rate is 0; give a positive one"
    else:
        why = f"an update at learning rate {lr:g} is below the parameters' precision; keep fp32 masters or raise it"
    raise UserError(f"the LoRA has not moved after a step: {why}")
