"""Rotary embedding frequencies: plain, and the ways of stretching them to longer contexts.

Su et al. 2021 (RoPE); linear interpolation: Chen et al. 2023; dynamic NTK: bloc97 and emozilla 2023, as in transformers;
YaRN: Peng et al. 2023, section 3; llama3: the smoothed interpolation of Llama 3.1. All arithmetic is in fp32 and in
transformers' order, because one unit in the last place of a frequency is half a milliradian at position 8,192.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shoestring.records import UserError

KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class Rope:
    """One set of rotary frequencies.

    factor: how far the context is stretched. original: positions of pretraining (dynamic, yarn, llama3).
    low, high: llama3's wavelength bounds, as parts of `original`. fast, slow, truncate: yarn's ramp, in turns over
    `original` positions. attention_factor multiplies cos and sin.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"rope scaling {self.kind!r} is not supported; known: {', '.join(KINDS)}")
        if not self.theta > 0 or not self.factor > 0:
            raise ValueError(f"rope theta {self.theta} and factor {self.factor} must be positive")
        if self.kind in ("dynamic", "yarn", "llama3") and self.original < 1:
            raise ValueError(f"rope scaling {self.kind!r} needs the original number of positions")
        if self.kind == "llama3" and not self.high > self.low:
            raise ValueError("rope scaling llama3 needs high_freq_factor above low_freq_factor")


def _plain(theta: float | torch.Tensor, dim: int) -> torch.Tensor:
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / dim))


def _yarn(rope: Rope, dim: int) -> torch.Tensor:
    def turns_at(turns: float) -> float:
        """The (fractional) pair that turns so many times over the original positions."""
        return dim * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    start, end = turns_at(rope.fast), turns_at(rope.slow)
    if rope.truncate:
        start, end = math.floor(start), math.ceil(end)
    start, end = max(start, 0), min(end, dim - 1)
    if start == end:
        end += 0.001
    powers = rope.theta ** (torch.arange(0, dim, 2).to(torch.float32) / dim)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - start) / (end - start)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _llama3(rope: Rope, dim: int) -> torch.Tensor:
    inv = _plain(rope.theta, dim)
    wave = 2 * math.pi / inv
    longest, shortest = rope.original / rope.low, rope.original / rope.high
    scaled = torch.where(wave > longest, inv / rope.factor, inv)
    smooth = (rope.original / wave - rope.low) / (rope.high - rope.low)
    between = (1 - smooth) * scaled / rope.factor + smooth * scaled
    return torch.where((wave >= shortest) & (wave <= longest), between, scaled)


def frequencies(rope: Rope, head_dim: int, length: int = 0) -> torch.Tensor:
    """Radians a position for each pair, [head_dim / 2] fp32. `length` is the sequence's, which dynamic NTK alone reads."""
    if rope.kind == "yarn":
        return _yarn(rope, head_dim)
    if rope.kind == "llama3":
        return _llama3(rope, head_dim)
    if rope.kind == "linear":
        return _plain(rope.theta, head_dim) / rope.factor
    if rope.kind == "dynamic" and length > rope.original:
        longer = torch.tensor(length, dtype=torch.int64)  # a tensor, so that the base is rounded as in transformers
        stretch = (rope.factor * longer / rope.original) - (rope.factor - 1)
        return _plain(rope.theta * stretch ** (head_dim / (head_dim - 2)), head_dim)
    return _plain(rope.theta, head_dim)


def angles(
    rope: Rope, inverse: torch.Tensor, positions: torch.Tensor, lengths: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin [N, head_dim / 2] fp32 at positions [N], attention factor included; `inverse` are the short frequencies.

    lengths [N]: how long the sequence of each row is; by default it ends at the row, as it does in decoding.
    """
    table = inverse[None, :]
    if rope.kind == "dynamic":
        ends = positions + 1 if lengths is None else lengths
        if int(ends.max()) > rope.original:
            some, which = ends.clamp_min(rope.original).unique(return_inverse=True)
            rows = [frequencies(rope, 2 * inverse.shape[0], int(n)) for n in some]
            table = torch.stack(rows).to(inverse.device)[which]
    angle = positions.to(torch.float32)[:, None] * table
    cos, sin = angle.cos(), angle.sin()
    if rope.attention_factor != 1.0:
        cos, sin = cos.mul_(rope.attention_factor), sin.mul_(rope.attention_factor)
    return cos, sin


def parse(keys: Mapping[str, Any], theta: float, max_positions: int, original: int | None, where: str) -> Rope:
    """A Rope from one table of rope parameters (`rope_parameters` or the older `rope_scaling`) of a config.json.

    theta: where the table names none. original: `original_max_position_embeddings` beside the table, which wins.
    Raises UserError for a kind or a key that would compute something else.
    """
    kind = str(keys.get("rope_type") or keys.get("type") or "default")
    if float(keys.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor is not supported; every family here turns whole heads")
    try:
        values: dict[str, Any] = {"theta": float(keys.get("rope_theta") or theta), "kind": kind}
        base = int(original or keys.get("original_max_position_embeddings") or max_positions)
        if kind == "linear":
            values["factor"] = float(keys["factor"])
        elif kind == "dynamic":
            values |= {"factor": float(keys["factor"]), "original": max_positions}
        elif kind == "llama3":
            values |= {"factor": float(keys["factor"]), "original": base}
            values |= {"low": float(keys["low_freq_factor"]), "high": float(keys["high_freq_factor"])}
        elif kind == "yarn":
            factor = float(keys.get("factor") or max_positions / base)
            values |= {"factor": factor, "original": base, "truncate": bool(keys.get("truncate", True))}
            values |= {"fast": float(keys.get("beta_fast") or 32), "slow": float(keys.get("beta_slow") or 1)}
            values["attention_factor"] = _yarn_attention(keys, factor)
        return Rope(**values)
    except KeyError as missing:
        raise UserError(f"{where}: rope scaling {kind!r} lacks {missing}") from None
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise UserError(f"{where}: {e}") from None


def _yarn_attention(keys: Mapping[str, Any], factor: float) -> float:
    """The temperature of YaRN (section 3.4), on cos and sin: 0.1 ln(factor) + 1 unless the config says otherwise."""

    def size(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if keys.get("attention_factor") is not None:
        return float(keys["attention_factor"])
    if keys.get("mscale") and keys.get("mscale_all_dim"):
        return size(float(keys["mscale"])) / size(float(keys["mscale_all_dim"]))
    return size(1.0)
