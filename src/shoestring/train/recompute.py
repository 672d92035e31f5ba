"""Activation recomputation: what a block keeps for its backward pass, and what it computes again.

`model.wrap = wrapper(policy)` puts a policy around every block of a decoder:

* none: everything is kept;
* selective: outputs of the norms and of the gated activation are not kept. A byte of theirs costs about 5 FLOPs to make
  again (a few operations for a two-byte value); a byte of a matrix product's output costs `hidden` FLOPs (2 x hidden for
  two bytes, whatever the product), 576 in SmolLM2-135M, and attention's more still. So the cheap third goes, the dear
  rest stays. Measured on SmolLM2-135M: 0.3 GiB less at 1,800 rows, the step's CPU time within 1%;
* full: only the block's input is kept, and the block runs forward once more (Chen et al. 2016): a third more FLOPs.

Selective is exact and needs no second pass: a saved tensor that came out of a cheap kernel is replaced by its recipe, the
kernel's own saved inputs, which are kept anyway (Korthikanti et al. 2022, section 5, chooses by the same ratio).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from shoestring import native
from shoestring.estimate.memory import POLICIES

Policy = Literal["none", "selective", "full"]
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def _normed(node: Any) -> torch.Tensor:
    """`models.kernels.rms_norm` from what its node keeps: x [N, D], weight [D], scale [N, 1] fp32."""
    x, weight, scale = node.saved_tensors
    if native.usable(x, weight):
        return native.norm_again(x, weight, scale)
    return (x.float() * scale).to(x.dtype) * weight


def _gated(node: Any) -> torch.Tensor:
    """`models.kernels.gate` from what its node keeps: x [N, 2 * intermediate], gate and up."""
    x = node.saved_tensors[0]
    if native.usable(x):
        return native.gate(x, node.activation)
    gate, up = x.chunk(2, dim=-1)
    return (F.silu(gate) if node.activation == "silu" else F.gelu(gate, approximate="tanh")) * up


RECIPES: dict[str, Callable[[Any], torch.Tensor]] = {
    "_RmsNormBackward": _normed,
    "_GatedBackward": _gated,
}


class _Again:
    """Stands for a saved tensor that is made again when the backward pass asks for it."""

    def __init__(self, node: Any, recipe: Callable[[Any], torch.Tensor]) -> None:
        self.node, self.recipe = node, recipe


def _keep(tensor: torch.Tensor) -> torch.Tensor | _Again:
    node = tensor.grad_fn
    recipe = RECIPES.get(node.name()) if node is not None else None
    # detached, because an output that its own node keeps would hold itself alive
    return tensor.detach() if recipe is None else _Again(node, recipe)


def _give(kept: torch.Tensor | _Again) -> torch.Tensor:
    return kept.recipe(kept.node) if isinstance(kept, _Again) else kept


def wrapper(policy: Policy) -> Wrap | None:
    """What to set as a decoder's `wrap`; None for "none". Under no_grad a wrapped block is the block itself."""
    if policy not in POLICIES:
        raise ValueError(f"{policy=} must be one of {', '.join(POLICIES)}")
    if policy == "none":
        return None

    def wrap(block: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **rest: Any) -> Any:
            if not torch.is_grad_enabled():
                return block(*args, **rest)
            if policy == "full":
                return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, **rest)
            with saved_tensors_hooks(_keep, _give):
                return block(*args, **rest)

        return run

    return wrap
