"""AdamW with 8-bit moments: 2.03 bytes of state a weight instead of 8.

Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization": each block of 256 values is divided by its largest
magnitude and every value is stored as the nearest of 256 numbers that lie close together near zero ("dynamic tree",
section 2.1). The signed map serves the first moment, the unsigned one the second, which is never negative.
"""

from __future__ import annotations

import functools

import torch

from shoestring.train.optimiser import EPSILON, MasterOptimiser, fused_adamw, moments

BLOCK = 256
SMALL = 4096  # a tensor of fewer weights keeps fp32 moments: it saves nothing and is often a norm
CPU = torch.device("cpu")
SLICE = BLOCK * 4096  # weights updated at once: 1M, so that the wide moments stay small


def dynamic_map(signed: bool) -> torch.Tensor:
    """The 256 numbers in ascending order, fp32, from 0 (signed: -0.993) to 1.

    A number is 10^-e times a fraction; each smaller power of ten has half as many fractions, so that the precision goes
    where large values are, and the range reaches 10^-6. Fractions are the middles of equal parts of (0.1, 1). Signed: 7
    powers of ten with up to 64 fractions on each side, zero and 1; unsigned: up to 128.
    """
    values: list[float] = []
    for e in range(7):
        count = (64 if signed else 128) >> e
        edges = [0.1 + 0.9 * i / count for i in range(count + 1)]
        middles = [(a + b) / 2 * 10.0**-e for a, b in zip(edges[:-1], edges[1:], strict=True)]
        values += middles
        if signed:
            values += [-m for m in middles]
    values += [0.0, 1.0]
    assert len(set(values)) == 256
    return torch.tensor(sorted(values), dtype=torch.float32)


@functools.cache
def _tables(signed: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The map [256] fp32, and the code of the number nearest to every bf16 value [65536] uint8, by its bits.

    Looking a code up by the leading 16 bits of a float takes one gather where a search takes eight comparisons. Rounding
    to bf16 first can move a value by 2^-8 of itself: added to the error bound of `encode`.
    """
    codes = dynamic_map(signed)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    nearest = torch.bucketize(every.nan_to_num(), (codes[1:] + codes[:-1]) / 2).to(torch.uint8)
    if not signed:
        # a second moment that is not zero never becomes zero: the first moment is divided by its root
        nearest = torch.where((every > 0) & (nearest == 0), 1, nearest)
    return codes.to(device), nearest.to(device)


def encode(x: torch.Tensor, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n] fp32 → codes [n] uint8 and the largest magnitude of each block [ceil(n / 256)] fp32.

    The error of a value is at most half the gap between its neighbours in the map, plus 2^-8 of the value, times the
    block's largest magnitude; of an unsigned value next to zero the whole gap (0.3 millionths).
    """
    n = x.numel()
    blocks = -(-n // BLOCK)
    padded = x if n == blocks * BLOCK else torch.cat([x, x.new_zeros(blocks * BLOCK - n)])
    parts = padded.view(blocks, BLOCK)
    largest = parts.abs().amax(-1)
    bits = (parts / largest.clamp(min=1e-38)[:, None]).to(torch.bfloat16).view(torch.int16).view(-1)[:n]
    return _tables(signed, x.device)[1].index_select(0, bits.int() + 2**15), largest


def decode(codes: torch.Tensor, largest: torch.Tensor, signed: bool) -> torch.Tensor:
    """The inverse of `encode` but for its error: [n] fp32."""
    n = codes.numel()
    wide = _tables(signed, codes.device)[0].index_select(0, codes.int())
    if n % BLOCK:
        return wide.mul_(largest.repeat_interleave(BLOCK)[:n])
    return wide.view(-1, BLOCK).mul_(largest[:, None]).view(-1)


class AdamW8bit(MasterOptimiser):
    """AdamW with moments in 8 bits between steps, widened a slice at a time; tensors under 4,096 weights keep fp32."""

    def _fresh(self, name: str, master: torch.Tensor) -> dict[str, torch.Tensor]:
        if master.numel() < SMALL:
            return moments(master)
        blocks = -(-master.numel() // BLOCK)
        there = master.device
        zero = {s: int(_tables(s, CPU)[1][2**15]) for s in (True, False)}  # the codes of 0.0
        return {
            "step": torch.zeros((), dtype=torch.float32),  # read as a number only, so it stays on the CPU
            "exp_avg": torch.full((master.numel(),), zero[True], dtype=torch.uint8, device=there),
            "exp_avg_largest": torch.zeros(blocks, device=there),
            "exp_avg_sq": torch.full((master.numel(),), zero[False], dtype=torch.uint8, device=there),
            "exp_avg_sq_largest": torch.zeros(blocks, device=there),
        }

    def _update(self, name: str, master: torch.Tensor, grad: torch.Tensor, lr: float) -> None:
        if master.numel() < SMALL:
            fused_adamw(self.state[name], master, grad, lr, self.betas, self._decay(master))
            return
        held = self.state[name]
        held["step"] += 1
        count = float(held["step"])
        first, second = 1 - self.betas[0] ** count, 1 - self.betas[1] ** count
        flat, gradient = master.view(-1), grad.reshape(-1)
        for at in range(0, flat.numel(), SLICE):
            some, blocks = slice(at, at + SLICE), slice(at // BLOCK, (at + SLICE) // BLOCK)
            g = gradient[some]
            m = decode(held["exp_avg"][some], held["exp_avg_largest"][blocks], signed=True)
            v = decode(held["exp_avg_sq"][some], held["exp_avg_sq_largest"][blocks], signed=False)
            m.lerp_(g, 1 - self.betas[0])
            v.mul_(self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
            held["exp_avg"][some], held["exp_avg_largest"][blocks] = encode(m, signed=True)
            held["exp_avg_sq"][some], held["exp_avg_sq_largest"][blocks] = encode(v, signed=False)
            flat[some].mul_(1 - lr * self._decay(master))
            flat[some].addcdiv_(m, v.div_(second).sqrt_().add_(EPSILON), value=-lr / first)
