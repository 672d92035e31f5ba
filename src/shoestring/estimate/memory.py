"""Bytes by part, for full fine-tuning and for decoding. Formulae; allocator overhead and the runtime are not in them."""

from __future__ import annotations

from shoestring.estimate.flops import ModelShape


def training_bytes(shape: ModelShape, tokens: int, chunk: int = 1024, checkpointing: bool = False) -> dict[str, int]:
    """Bytes of full fine-tuning with AdamW: fp32 masters, moments and gradients, bf16 compute copy and activations.

    `tokens` is the size T of a micro-batch, `chunk` the rows of logits alive at once. A weight costs
    4 (master) + 8 (two moments) + 4 (gradient) + 2 (bf16 copy) = 18 bytes. Activations kept for the backward pass,
    in bf16, a token and a layer: the two residual inputs and the two normed inputs (4 · hidden), q and k before and
    after rotary and v (2 · q + 3 · kv), the attention's output (q) and its log-sum-exp (4 bytes a head), gate, up,
    silu(gate) and their product (4 · intermediate). With `checkpointing` only each layer's input is kept, plus one
    layer's activations while it is recomputed. Logits: fp32 logits and their gradient, 8 bytes a row and word.
    """
    n = shape.parameters()
    layer = activation_bytes(shape)
    if checkpointing:
        activations = tokens * (2 * shape.hidden * shape.layers + layer)
    else:
        activations = tokens * layer * shape.layers
    return {
        "master weights": 4 * n,
        "moments": 8 * n,
        "gradients": 4 * n,
        "compute copy": 2 * n,
        "activations": activations,
        "logits": 8 * min(chunk, max(tokens, 1)) * shape.vocab,
    }


def activation_bytes(shape: ModelShape) -> int:
    """Bytes of activations that one layer keeps for one token (see `training_bytes`)."""
    values = 4 * shape.hidden + 3 * shape.q_width + 3 * shape.kv_width + 4 * shape.intermediate
    return 2 * values + 4 * shape.heads


def kv_cache_bytes(shape: ModelShape, tokens: int, bytes_per_value: int = 2) -> int:
    """Bytes of the keys and values of `tokens` cached tokens, over all layers (bf16 unless told)."""
    return 2 * shape.layers * shape.kv_width * bytes_per_value * tokens


def decoding_bytes(shape: ModelShape, sequences: int, context: int, bytes_per_weight: int = 2) -> dict[str, int]:
    """Bytes of decoding `sequences` at once with `context` tokens each: weights, cache, one row of fp32 logits each."""
    return {
        "weights": bytes_per_weight * shape.parameters(),
        "kv cache": kv_cache_bytes(shape, sequences * context),
        "logits": 4 * sequences * shape.vocab,
    }


def rollout_training_bytes(
    shape: ModelShape, tokens: int, sequences: int, context: int, chunk: int = 1024, checkpointing: bool = False
) -> dict[str, int]:
    """Training and an engine in one process (GRPO): the engine decodes with the trainer's compute copy."""
    parts = training_bytes(shape, tokens, chunk, checkpointing)
    parts["kv cache"] = kv_cache_bytes(shape, sequences * context)
    return parts
