"""AdamW on fp32 master weights, with a narrower copy that computes.

Pure-bf16 training loses small updates (a bf16 weight has 8 bits of precision); the masters keep them. Gradients arrive
in the compute type, one parameter at a time, and are added to fp32 buffers at once, so that no second full set of
narrow gradients is ever alive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class FOREACH:
    """torch's list operations, one kernel call for many tensors; torch.optim is built on the same."""

    norm: Any = staticmethod(getattr(torch, "_foreach_norm"))  # noqa: B009  (not in torch's stubs)
    mul_: Any = staticmethod(getattr(torch, "_foreach_mul_"))  # noqa: B009
    zero_: Any = staticmethod(getattr(torch, "_foreach_zero_"))  # noqa: B009
    copy_: Any = staticmethod(getattr(torch, "_foreach_copy_"))  # noqa: B009


class MasterAdamW:
    """AdamW (Loshchilov & Hutter 2019) over the parameters of `model`.

    `masters` [name -> fp32 tensor]. Norms and other vectors are not decayed.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        masters: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.lr = lr
        self.parameters: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.masters = masters or {n: p.detach().float().clone() for n, p in self.parameters.items()}
        self.grads = {n: torch.zeros_like(m) for n, m in self.masters.items()}
        matrices = [m for m in self.masters.values() if m.dim() > 1]
        vectors = [m for m in self.masters.values() if m.dim() <= 1]
        self.inner = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=lr,
            betas=betas,
            fused=True,
        )
        self._names = {id(m): n for n, m in self.masters.items()}
        self._handles = [
            p.register_post_accumulate_grad_hook(self._absorb(n)) for n, p in self.parameters.items()
        ]
        self.publish()

    def _absorb(self, name: str) -> Callable[[torch.Tensor], None]:
        def hook(p: torch.Tensor) -> None:
            assert p.grad is not None
            self.grads[name].add_(p.grad)
            p.grad = None

        return hook

    def step(self, factor: float, max_norm: float) -> float:
        """Clip to `max_norm` (0: no clipping), update at lr * factor, zero the gradients; returns the norm before."""
        grads = list(self.grads.values())
        norm = float(torch.linalg.vector_norm(torch.stack(FOREACH.norm(grads))))
        if not math.isfinite(norm):
            self.zero()
            return norm
        if max_norm and norm > max_norm:
            FOREACH.mul_(grads, max_norm / (norm + 1e-6))
        for group in self.inner.param_groups:
            group["lr"] = self.lr * factor
        for n, m in self.masters.items():
            m.grad = self.grads[n]
        self.inner.step()
        for m in self.masters.values():
            m.grad = None
        self.zero()
        self.publish()
        return norm

    def zero(self) -> None:
        FOREACH.zero_(list(self.grads.values()))

    def publish(self) -> None:
        """Copy the masters into the parameters that compute."""
        with torch.no_grad():
            FOREACH.copy_(list(self.parameters.values()), [self.masters[n] for n in self.parameters])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs, by name: masters, first and second moments, step counts."""
        out = {f"master/{n}": m for n, m in self.masters.items()}
        for m, state in self.inner.state.items():
            for key, value in state.items():
                out[f"{key}/{self._names[id(m)]}"] = value
        return out

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of `tensors`. Raises KeyError when a master is missing."""
        with torch.no_grad():
            for n, m in self.masters.items():
                m.copy_(tensors[f"master/{n}"])
                if f"exp_avg/{n}" in tensors:
                    self.inner.state[m] = {k: tensors[f"{k}/{n}"].clone() for k in ("step", "exp_avg", "exp_avg_sq")}
        self.publish()

    def close(self) -> None:
        for h in self._handles:
            h.remove()


def cosine(step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """Linear warm-up over `warmup` steps, then a cosine from 1 to `floor`. step counts from 0."""
    if step < warmup:
        return (step + 1) / warmup
    span = max(1, total - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / span))
