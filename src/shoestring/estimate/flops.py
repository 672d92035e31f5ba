"""FLOPs of a Llama-style decoder, counted by formula.

Conventions, the same in plans, metrics and benchmarks:

* a multiply and an add are two FLOPs; norms, rotary, softmax and embedding look-ups are left out (about 1%);
* forward, a token: 2 · N_matmul + attention, where N_matmul counts the weights that are multiplied (the head counts
  once, also where it is tied to the embedding; the look-up does not);
* attention, a token that sees `c` tokens, itself included: 4 · layers · heads · head_dim · c, two FLOPs for each of
  q·k and p·v;
* causal attention is counted *halved*: in a sequence of T tokens token i sees i tokens, (T + 1) / 2 on average. Tables
  which count the full T × T square come out higher;
* training is three forwards (6 · N_matmul + three times the attention). Recomputation by activation checkpointing is
  not useful work and is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama-style decoder that decide its FLOPs and bytes. Biases and q/k norms (Qwen) are left out."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key-value heads")

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    def layer_weights(self) -> int:
        """Multiplied weights of one layer: q, k, v, o, gate, up, down."""
        attention = self.hidden * (2 * self.q_width + 2 * self.kv_width)
        return attention + 3 * self.hidden * self.intermediate

    def parameters(self) -> int:
        """All weights, norms included; a tied head counts once. SmolLM2-135M: 134,515,008."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * (self.layer_weights() + 2 * self.hidden) + self.hidden


def attention_flops(shape: ModelShape, visible: float) -> float:
    """Forward FLOPs of attention for tokens which see `visible` tokens in total."""
    return 4.0 * shape.layers * shape.q_width * visible


def forward_flops(shape: ModelShape, lengths: Iterable[int], head_tokens: int | None = None) -> float:
    """Forward FLOPs over documents of these lengths, attention inside each document only (packing adds none).

    `head_tokens` is the number of tokens whose logits are computed; by default all of them.
    """
    tokens = 0
    visible = 0
    for n in lengths:
        tokens += n
        visible += n * (n + 1) // 2
    head = tokens if head_tokens is None else head_tokens
    body = 2.0 * shape.layers * shape.layer_weights() * tokens
    return body + 2.0 * shape.vocab * shape.hidden * head + attention_flops(shape, visible)


def training_flops(shape: ModelShape, lengths: Iterable[int], head_tokens: int | None = None) -> float:
    """Forward and backward: three forwards. Same arguments as `forward_flops`."""
    return 3.0 * forward_flops(shape, lengths, head_tokens)


def flops_per_token(shape: ModelShape, length: float, training: bool = False, head_share: float = 1.0) -> float:
    """FLOPs a token in sequences of `length` tokens; `head_share` is the share of tokens whose logits are computed."""
    matmul = 2.0 * (shape.layers * shape.layer_weights() + shape.vocab * shape.hidden * head_share)
    forward = matmul + attention_flops(shape, (length + 1) / 2)
    return 3.0 * forward if training else forward


def decode_flops(shape: ModelShape, context: float) -> float:
    """FLOPs to decode one token with a KV cache when it sees `context` tokens, itself included."""
    return 2.0 * (shape.layers * shape.layer_weights() + shape.vocab * shape.hidden) + attention_flops(shape, context)


def generation_flops(shape: ModelShape, prompt: int, new: int, group: int = 1) -> float:
    """FLOPs to answer one prompt `group` times with `new` tokens each, the prompt computed once for the group.

    The prompt's last token gives the first new token, so the group decodes `new` - 1 tokens each.
    """
    if new < 1:
        return 0.0
    prefill = forward_flops(shape, [prompt], head_tokens=1)
    steps = new - 1
    return prefill + group * steps * decode_flops(shape, prompt + (steps + 1) / 2)
