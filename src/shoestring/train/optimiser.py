"""Optimisers on fp32 master weights, with a narrower copy that computes.

Pure-bf16 training loses small updates (a bf16 weight has 8 bits of precision); the masters keep them. Gradients arrive
in the compute type, one parameter at a time. The first of a step is kept as it came; only a second one (another
micro-batch, or a weight used twice) makes an fp32 sum, so a step of one micro-batch never holds wide gradients.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from shoestring import native

Name = Literal["adamw", "adamw8bit", "muon"]
NAMES: tuple[Name, ...] = ("adamw", "adamw8bit", "muon")
EPSILON = 1e-8  # AdamW's, in units of the gradient

_fused_adamw: Any = getattr(torch, "_fused_adamw_")  # noqa: B009  (not in torch's stubs; torch.optim.AdamW is built on it)


class MasterOptimiser(ABC):
    """Masters, gradients, clipping, publishing and checkpoints; what `_update` does with a gradient is the optimiser's own.

    `masters` [name -> fp32 tensor] of the parameters that require a gradient; `grads` [name -> the step's sum so far];
    `state` [name -> its tensors by kind]. Norms and other vectors are not decayed.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        masters: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.parameters: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        given = masters or {}
        self.masters = {
            n: given[n].to(p.device) if n in given else p.detach().float().clone() for n, p in self.parameters.items()
        }
        self.grads: dict[str, torch.Tensor] = {}
        # all of it now: made in the first step, it would stand between activations, which then never find whole gaps
        self.state = {n: self._fresh(n, m) for n, m in self.masters.items()}
        self._handles = [p.register_post_accumulate_grad_hook(self._absorb(n)) for n, p in self.parameters.items()]
        self.publish()

    def _absorb(self, name: str) -> Callable[[torch.Tensor], None]:
        def hook(p: torch.Tensor) -> None:
            assert p.grad is not None
            held = self.grads.get(name)
            if held is None:
                self.grads[name] = p.grad
            elif native.usable(p.grad) and held.is_contiguous():
                self.grads[name] = native.add(held, p.grad)  # without a copy in fp32 of what is added
            else:
                self.grads[name] = held.float().add_(p.grad)
            p.grad = None

        return hook

    def norm(self) -> float:
        """The norm of all gradients of the step, in fp32."""
        parts = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in self.grads.values()]
        return float(torch.linalg.vector_norm(torch.stack(parts))) if parts else 0.0

    @torch.no_grad()
    def step(self, factor: float, max_norm: float) -> float:
        """Clip to `max_norm` (0: no clipping), update at lr * factor, drop the gradients; returns the norm before.

        A norm that is not finite updates nothing. A parameter without a gradient in this step stays as it is.
        """
        norm = self.norm()
        if not math.isfinite(norm):
            self.zero()
            return norm
        scale = max_norm / (norm + 1e-6) if max_norm and norm > max_norm else 1.0
        for name, master in self.masters.items():
            grad = self.grads.pop(name, None)
            if grad is None:
                continue
            wide = grad.float()
            if scale != 1.0:
                wide.mul_(scale)
            self._update(name, master, wide, self.lr * factor)
            self.parameters[name].copy_(master)  # at once, while the master is in the cache
        return norm

    @abstractmethod
    def _fresh(self, name: str, master: torch.Tensor) -> dict[str, torch.Tensor]:
        """The state of a parameter that was never updated, by kind."""

    @abstractmethod
    def _update(self, name: str, master: torch.Tensor, grad: torch.Tensor, lr: float) -> None:
        """Move `master` in place by `grad` (fp32, clipped; it may be overwritten) and keep `self.state[name]`."""

    def _decay(self, master: torch.Tensor) -> float:
        return self.weight_decay if master.dim() > 1 else 0.0

    def zero(self) -> None:
        """Forget every gradient, also one that a step left behind when it broke off."""
        self.grads.clear()
        for p in self.parameters.values():
            p.grad = None

    def publish(self) -> None:
        """Copy the masters into the parameters that compute."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(self.masters[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs, as kind/name: masters and the optimiser's state."""
        out = {f"master/{n}": m for n, m in self.masters.items()}
        for name, kinds in self.state.items():
            out |= {f"{kind}/{name}": value for kind, value in kinds.items()}
        return out

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `tensors`. Raises KeyError for a missing master and for another optimiser's state."""
        with torch.no_grad():
            for n, m in self.masters.items():
                m.copy_(tensors[f"master/{n}"])
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind != "master" and name in self.masters:
                self.state[name][kind].copy_(value)
        self.publish()

    def state_bytes(self) -> int:
        """Bytes of the optimiser's state beyond the masters."""
        return sum(t.numel() * t.element_size() for kinds in self.state.values() for t in kinds.values())

    def close(self) -> None:
        for h in self._handles:
            h.remove()


class MasterAdamW(MasterOptimiser):
    """AdamW (Loshchilov & Hutter 2019) by torch's fused kernel: two fp32 moments a weight."""

    def _fresh(self, name: str, master: torch.Tensor) -> dict[str, torch.Tensor]:
        return moments(master)

    def _update(self, name: str, master: torch.Tensor, grad: torch.Tensor, lr: float) -> None:
        fused_adamw(self.state[name], master, grad, lr, self.betas, self._decay(master))


def moments(master: torch.Tensor) -> dict[str, torch.Tensor]:
    """AdamW's state of one parameter before its first update."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=master.device),  # the fused kernel wants it beside
        "exp_avg": torch.zeros_like(master),
        "exp_avg_sq": torch.zeros_like(master),
    }


def fused_adamw(
    held: dict[str, torch.Tensor],
    master: torch.Tensor,
    grad: torch.Tensor,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """One AdamW update of `master` and of its state `held` (see `moments`), in place."""
    held["step"] += 1
    _fused_adamw(
        [master], [grad], [held["exp_avg"]], [held["exp_avg_sq"]], [], [held["step"]],
        lr=lr, beta1=betas[0], beta2=betas[1], weight_decay=weight_decay, eps=EPSILON, amsgrad=False, maximize=False,
    )  # fmt: skip


def make(name: Name, model: Any, lr: float, **rest: Any) -> MasterOptimiser:
    """The optimiser `name` over `model`; `rest` as for `MasterOptimiser`."""
    if name == "adamw8bit":
        from shoestring.train.adamw8bit import AdamW8bit

        return AdamW8bit(model, lr, **rest)
    if name == "muon":
        from shoestring.train.muon import Muon

        return Muon(model, lr, **rest)
    if name != "adamw":
        raise ValueError(f"optimiser = {name!r} must be one of {', '.join(NAMES)}")
    return MasterAdamW(model, lr, **rest)
