"""NF4: frozen matrices in four bits a weight, with double quantisation (QLoRA, Dettmers et al. 2023, section 3).

A matrix is read row by row in blocks of 64 weights. A block keeps its largest magnitude and, for each weight, the index of
the nearest of 16 levels, which are the quantiles of a normal distribution (appendix E gives them). The magnitudes are
quantised again: their mean is taken off and blocks of 256 are stored in eight bits of the dynamic data type (Dettmers et
al. 2022, section 2.1). That makes 4 + 8/64 + 32/(64 * 256) = 4.127 bits a weight. Codes and values are bitsandbytes' own.

Products dequantise one matrix at a time and drop it; the backward pass dequantises it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from shoestring.models.decoder import Decoder
from shoestring.models.lora import FUSED, Adapter, install
from shoestring.records import UserError

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
OUTER = 256  # magnitudes in a block of the second quantisation
CHUNK = 1 << 17  # bytes of codes dequantised at once: the fp32 values of a chunk stay in a core's cache


CODE = torch.tensor(LEVELS, dtype=torch.float32, device="cpu")


def _dynamic() -> torch.Tensor:
    """[256] fp32, ascending: the signed dynamic data type.

    Decade e (0.1 to 1, times 10^-e, e from 0 to 6) is cut into 2^(6 - e) equal parts, whose middles are levels with
    either sign; 0 and 1 complete them.
    """
    found = [0.0, 1.0]
    for e in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (6 - e) + 1, dtype=torch.float32, device="cpu")
        middles = (10**-e) * ((edges[:-1] + edges[1:]) / 2)
        found += middles.tolist() + (-middles).tolist()
    return torch.tensor(sorted(found), dtype=torch.float32, device="cpu")


DYNAMIC = _dynamic()
# [256, 2]: the two weights, over their block's magnitude, that a byte holds; the first in its high half
PAIRS = torch.stack([CODE.repeat_interleave(16), CODE.repeat(16)], 1)
TABLES = {"code": CODE, "dynamic": DYNAMIC, "pairs": PAIRS}


@cache
def _copy(name: str, device: torch.device) -> torch.Tensor:
    return TABLES[name].to(device)


def _table(name: str, device: torch.device) -> torch.Tensor:
    return TABLES[name] if device.type == "cpu" else _copy(name, device)


@dataclass(frozen=True)
class Quantised:
    """A matrix in NF4.

    packed uint8 [blocks * block / 2], two codes a byte (the tail of the last block is zeros). absmax [blocks]: uint8
    codes if `outer` (fp32 [ceil(blocks / 256)], the largest magnitude of each outer block) and `mean` (fp32 []) are
    given, else fp32 magnitudes.
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    outer: torch.Tensor | None
    mean: torch.Tensor | None
    shape: tuple[int, ...]
    block: int

    def bytes(self) -> int:
        held = (self.packed, self.absmax, self.outer, self.mean)
        return sum(t.numel() * t.element_size() for t in held if t is not None)


def _blockwise(values: torch.Tensor, table: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """values [n] fp32, n a multiple of `block` → index of the nearest level [n] uint8, magnitude of each block [n / block]."""
    rows = values.view(-1, block)
    most = rows.abs().amax(1)
    scaled = (rows * (1.0 / most.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
    middles = (table[:-1] + table[1:]) / 2
    return torch.bucketize(scaled, middles, out_int32=True).to(torch.uint8).view(-1), most


def _padded(values: torch.Tensor, block: int) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, -values.numel() % block))


def quantise(weight: torch.Tensor, block: int = 64, double: bool = True) -> Quantised:
    """weight of any shape and float type → NF4. ValueError for values that are not finite or an odd block."""
    if block < 2 or block % 2:
        raise ValueError(f"{block=} must be even and positive: a byte holds two weights")
    flat = weight.detach().reshape(-1).float()
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("weights that are not finite cannot be quantised")
    codes, absmax = _blockwise(_padded(flat, block), _table("code", flat.device), block)
    packed = (codes[0::2] << 4) | codes[1::2]
    if not double:
        return Quantised(packed, absmax, None, None, tuple(weight.shape), block)
    mean = absmax.mean()
    inner, outer = _blockwise(_padded(absmax - mean, OUTER), _table("dynamic", flat.device), OUTER)
    return Quantised(packed, inner[: absmax.numel()].clone(), outer, mean, tuple(weight.shape), block)


def magnitudes(q: Quantised) -> torch.Tensor:
    """fp32 [blocks]: what each block's levels are multiplied by."""
    if q.outer is None or q.mean is None:
        return q.absmax
    inner = _table("dynamic", q.absmax.device)[q.absmax.int()]
    return inner * q.outer.repeat_interleave(OUTER)[: inner.numel()] + q.mean


def dequantise(q: Quantised, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The matrix [shape] in `dtype`, each weight computed in fp32 and rounded once."""
    scale = magnitudes(q)[:, None]
    pairs = _table("pairs", q.packed.device)
    out = torch.empty(scale.numel(), q.block, dtype=dtype, device=q.packed.device)
    # a GPU takes the matrix whole
    step = max(1, 2 * CHUNK // q.block) if out.device.type == "cpu" else max(1, out.shape[0])
    for i in range(0, out.shape[0], step):
        codes = q.packed[i * q.block // 2 : (i + step) * q.block // 2].int()
        out[i : i + step] = pairs.index_select(0, codes).view(-1, q.block).mul_(scale[i : i + step])
    count = 1
    for side in q.shape:
        count *= side
    return out.view(-1)[:count].view(q.shape)


class Nf4Matrix(nn.Module):
    """A quantised matrix in a parameter's place: buffers only, so nothing of it trains. `dtype` follows the model's casts."""

    packed: torch.Tensor
    absmax: torch.Tensor
    outer: torch.Tensor | None
    mean: torch.Tensor | None
    follows: torch.Tensor

    def __init__(self, q: Quantised, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.block = q.shape, q.block
        for name in ("packed", "absmax", "outer", "mean"):
            self.register_buffer(name, getattr(q, name))
        self.register_buffer("follows", torch.empty(0, dtype=dtype, device=q.packed.device), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Nf4Matrix:
        wide = {n: b for n, b in self.named_buffers() if b.dtype == torch.float32 and n != "follows"}
        super()._apply(fn, recurse)
        for name, before in wide.items():  # a model cast to bf16 must not narrow the scales
            after = self.get_buffer(name)
            if after.dtype != before.dtype:
                setattr(self, name, before.to(after.device))
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.follows.dtype

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def quantised(self) -> Quantised:
        return Quantised(self.packed, self.absmax, self.outer, self.mean, self.shape, self.block)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """[out, in]"""
        return dequantise(self.quantised, dtype)


def quantise_model(model: Decoder, block: int = 64, double: bool = True) -> dict[str, int]:
    """Replace every block matrix by its NF4 form, one at a time; embedding, norms, biases and head stay as they are.

    Before or after `lora.attach`. Returns what was done: matrices, weights, bytes (that they take now). UserError for
    weights that are not finite, ValueError for a model that is quantised already.
    """
    done = {"matrices": 0, "weights": 0, "bytes": 0}
    for i, b in enumerate(model.blocks):
        layer: Any = b
        for name in FUSED:
            weight = getattr(layer, name)
            if isinstance(weight, Nf4Matrix):
                raise ValueError(f"blocks.{i}.{name} is quantised already")
            try:
                q = quantise(weight, block, double)
            except ValueError as e:
                raise UserError(f"blocks.{i}.{name}: {e}; the base model's files are damaged") from None
            delattr(layer, name)
            layer.add_module(name, Nf4Matrix(q, weight.dtype))
            if not (layer.adapters and name in layer.adapters):
                install(layer, name, Adapter())
            done["matrices"] += 1
            done["weights"] += weight.numel()
            done["bytes"] += q.bytes()
    return done
