"""Weights and bytes of LoRA and QLoRA training, by formula."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shoestring.estimate.flops import ModelShape, training_flops

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # as PEFT names them


def target_shapes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """(rows out, columns in) of each matrix of one layer."""
    return {
        "q_proj": (shape.q_width, shape.hidden),
        "k_proj": (shape.kv_width, shape.hidden),
        "v_proj": (shape.kv_width, shape.hidden),
        "o_proj": (shape.hidden, shape.q_width),
        "gate_proj": (shape.intermediate, shape.hidden),
        "up_proj": (shape.intermediate, shape.hidden),
        "down_proj": (shape.hidden, shape.intermediate),
    }


def adapter_parameters(shape: ModelShape, rank: int, targets: Sequence[str] = TARGETS) -> int:
    """Weights that LoRA trains (Hu et al. 2021, section 4.1): A [rank, in] and B [out, rank] for each target and layer."""
    sizes = target_shapes(shape)
    return shape.layers * rank * sum(sum(sizes[t]) for t in targets)


def nf4_bytes(weights: int, block: int = 64) -> int:
    """Bytes of one matrix in NF4 with double quantisation: half a byte a weight, one a block, four for 256 blocks and four.

    4.127 bits a weight (Dettmers et al. 2023, section 3).
    """
    blocks = -(-weights // block)
    return blocks * block // 2 + blocks + 4 * -(-blocks // 256) + 4


def frozen_bytes(shape: ModelShape, quantised: bool = False, bytes_per_value: int = 2) -> int:
    """Bytes of the base's frozen weights in the compute type; `quantised`: every layer's fused matrices in NF4."""
    if not quantised:
        return bytes_per_value * shape.parameters()
    fused = (
        shape.hidden * (shape.q_width + 2 * shape.kv_width),
        shape.hidden * shape.q_width,
        2 * shape.hidden * shape.intermediate,
        shape.hidden * shape.intermediate,
    )
    rest = shape.parameters() - shape.layers * sum(fused)
    return bytes_per_value * rest + shape.layers * sum(nf4_bytes(n) for n in fused)


def adapter_training_bytes(
    shape: ModelShape, rank: int, targets: Sequence[str] = TARGETS, quantised: bool = False, optimiser: str = "adamw"
) -> dict[str, int]:
    """The weight-bound parts of training an adapter with AdamW, by the names of `memory.training_bytes`.

    A trained weight costs 18 bytes (adamw8bit: 12.03), as in full fine-tuning; a frozen one 2, or NF4's 4.127 bits and one
    dequantised matrix (the largest, in bf16) at a time. Activations are those of full fine-tuning and not in here.
    """
    n = adapter_parameters(shape, rank, targets)
    parts = {
        "master weights": 4 * n,
        "moments": 2 * n + 8 * -(-n // 256) if optimiser == "adamw8bit" else 8 * n,
        "gradients": 4 * n,
        "compute copy": 2 * n + frozen_bytes(shape, quantised),
    }
    if quantised:
        widest = max(shape.q_width + 2 * shape.kv_width, 2 * shape.intermediate)
        parts["dequantised matrix"] = 2 * shape.hidden * widest
    return parts


def adapter_training_flops_share(shape: ModelShape, rank: int, targets: Sequence[str] = TARGETS) -> float:
    """FLOPs of adapter training over those of full training, matrix products of the layers alone.

    The base's weight gradients are not computed (two of three products are left); the adapter adds three small ones.
    """
    base = shape.layers * shape.layer_weights()
    return (2 * base + 3 * adapter_parameters(shape, rank, targets)) / (3 * base)


def adapter_training_flops(
    shape: ModelShape, lengths: Iterable[int], rank: int, targets: Sequence[str] = TARGETS, head_tokens: int | None = None
) -> float:
    """As `flops.training_flops` for an adapter: 4 FLOPs a frozen weight and token, 6 a trained one.

    Attention has no weights and costs what it did; the frozen head has no weight gradient. What dequantising costs is no
    matrix product and not counted.
    """
    listed = list(lengths)
    tokens = sum(listed)
    head = tokens if head_tokens is None else head_tokens
    layers = 6.0 * shape.layers * shape.layer_weights() * tokens
    saved = layers * (1 - adapter_training_flops_share(shape, rank, targets)) + 2.0 * shape.vocab * shape.hidden * head
    return training_flops(shape, listed, head_tokens) - saved
