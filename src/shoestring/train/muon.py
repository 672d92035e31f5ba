"""Muon for the blocks' matrices, AdamW for the rest (embedding, head, norms, biases, adapters).

Jordan et al. 2024, "Muon: An optimizer for hidden layers": the momentum of a matrix is replaced by its nearest
semi-orthogonal matrix, found roughly by five steps of a quintic Newton-Schulz iteration. Liu et al. 2025 ("Muon is
scalable for LLM training", section 2.2) scale the update by 0.2 * sqrt(larger side), the root mean square of AdamW's
updates, so that AdamW's learning rate and decay carry over. State: 4 bytes a weight, half of AdamW's.

It costs products: 5 (4 m² M + 2 m³) FLOPs a step for a matrix with sides m <= M, whatever the batch; 1.5 TFLOP in
SmolLM2-135M, as much as training 1,800 tokens. It is for steps of many tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from shoestring.train.optimiser import MasterOptimiser, fused_adamw, moments

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: the steepest at zero
ITERATIONS = 5
MOMENTUM = 0.95


def orthogonal(x: torch.Tensor, width: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """x [n, m] → about U Vᵀ of its singular value decomposition (singular values in 0.7 .. 1.2), in `width`."""
    a, b, c = COEFFICIENTS
    y = x.to(width)
    if tall := y.shape[0] > y.shape[1]:
        y = y.t()
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = y @ y.t()
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.t() if tall else y


def parts(name: str, rows: int, config: Any) -> list[int] | None:
    """How many rows each matrix inside the parameter `name` has; None for a parameter that Muon leaves to AdamW.

    Matrices that are read together are stored together (`models.decoder`); orthogonal they must be one by one.
    """
    pieces = name.split(".")
    if len(pieces) != 3 or pieces[0] != "blocks":
        return None
    if pieces[2] == "qkv":
        return [config.heads * config.head_dim, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim]
    if pieces[2] == "gate_up":
        return [rows // 2, rows // 2]
    return [rows] if pieces[2] in ("out", "down") else None


class Muon(MasterOptimiser):
    """See the module. `model.config` names the sizes of the fused matrices; `betas` are AdamW's."""

    def __init__(
        self,
        model: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        masters: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.matrices = {
            n: rows
            for n, p in model.named_parameters()
            if p.requires_grad and p.dim() == 2 and (rows := parts(n, p.shape[0], model.config)) is not None
        }
        super().__init__(model, lr, betas, weight_decay, masters)

    def _fresh(self, name: str, master: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"momentum": torch.zeros_like(master)} if name in self.matrices else moments(master)

    def _update(self, name: str, master: torch.Tensor, grad: torch.Tensor, lr: float) -> None:
        if name not in self.matrices:
            fused_adamw(self.state[name], master, grad, lr, self.betas, self._decay(master))
            return
        momentum = self.state[name]["momentum"].lerp_(grad, 1 - MOMENTUM)
        ahead = grad.lerp_(momentum, MOMENTUM)  # Nesterov's
        master.mul_(1 - lr * self._decay(master))
        for part, rows in zip(ahead.split(self.matrices[name]), master.split(self.matrices[name]), strict=True):
            rows.add_(orthogonal(part), alpha=-lr * 0.2 * max(part.shape) ** 0.5)
