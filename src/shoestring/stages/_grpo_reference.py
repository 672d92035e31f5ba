"""The reference policy that a KL term holds on to: a frozen copy of what trains, or, of an adapter, nothing at all.

An adapter switched off is the policy that the stage began with, so LoRA needs no copy until the reference is replaced, and
then one of the adapter alone. Torch is imported inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shoestring.records import Batch

if TYPE_CHECKING:
    import numpy as np
    import torch


class Reference:
    """copy: name → tensor in the compute type, for the parameters that train; None: the adapter switched off."""

    def __init__(self, model: Any, copy: Mapping[str, torch.Tensor] | None = None) -> None:
        from shoestring.models import lora

        self.model, self.since = model, 0
        self.copy: dict[str, torch.Tensor] | None = None if copy is None else dict(copy)
        if copy is None and lora.config_of(model) is None:
            raise ValueError("a model without an adapter needs a copy of its weights")

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def replace(self, step: int) -> None:
        """The policy as it is now becomes the reference."""
        self.copy = {n: p.detach().clone() for n, p in self._parameters().items()}
        self.since = step

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint; nothing where the reference can be made again from what the stage began with."""
        import torch

        return dict(self.copy or {}) | {"since": torch.tensor(self.since)} if self.since else {}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if tensors:
            at = self._parameters()
            self.since = int(tensors["since"])
            self.copy = {n: t.to(at[n].device) for n, t in tensors.items() if n != "since"}

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Within, the model computes as the reference."""
        import torch

        from shoestring.models import lora

        if self.copy is None:
            held = [b.adapters for b in self.model.blocks]
            for b in self.model.blocks:  # a quantised matrix keeps an adapter without parts, which dequantises it
                quantised = [n for n in b.adapters or {} if not isinstance(getattr(b, n), torch.Tensor)]
                b.adapters = {n: lora.Adapter() for n in quantised} or None
            try:
                yield
            finally:
                for b, own in zip(self.model.blocks, held, strict=True):
                    b.adapters = own
            return
        parameters = self._parameters()
        own = {n: p.data for n, p in parameters.items()}
        for n, p in parameters.items():
            p.data = self.copy[n]
        try:
            yield
        finally:
            for n, p in parameters.items():
                p.data = own[n]

    def logprobs(self, batches: Sequence[Batch], temperature: float, count: int) -> list[np.ndarray]:
        """Of the trained tokens, by example."""
        from shoestring.train import policy

        with self.standing_in():
            return policy.logprobs(self.model, batches, temperature, count)
