"""Linear layers for decoding: weights in the CPU library's own blocked layout, where that is faster.

At a few rows a product is bound by reading the weights, and the plain call re-orders them every time. Prepacking costs
one copy of the weights and paid 1.2 to 1.9 times here (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Linear = Callable[[torch.Tensor], torch.Tensor]


def can_prepack(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def prepack(weight: torch.Tensor, rows: int) -> Linear:
    """A function x [rows, in] → [rows, out] for weight [out, in]. Exact in the sense of the library's own rounding."""
    w = weight.detach()
    if not can_prepack(w):
        return lambda x: F.linear(x, w)
    packed = torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), rows)
    run = torch.ops.mkldnn._linear_pointwise
    return lambda x: run(x, packed, None, "none", [], "")
