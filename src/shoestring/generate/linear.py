"""Linear layers for decoding: weights in the CPU library's own blocked layout, where that is faster.

At a few rows a product is bound by reading the weights, and the plain call re-orders them every time. Prepacking costs
one copy of the weights and paid 1.2 to 1.9 times here (docs/LOG.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def can_prepack(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


class Linear:
    """x [rows, in] → [rows, out] for weight [out, in] and bias [out]. Exact in the sense of the library's rounding."""

    def __init__(self, weight: torch.Tensor, rows: int, bias: torch.Tensor | None = None) -> None:
        w = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.packed = can_prepack(w)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), rows) if self.packed else w

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual + self(x), in one pass where the library can."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return residual + F.linear(x, self.weight, self.bias)
