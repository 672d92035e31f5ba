"""FLOPs of a decoder, counted by formula.

Conventions, the same in plans, metrics and benchmarks:

* a multiply and an add are two FLOPs; norms, rotary, softmax and embedding look-ups are left out (about 1%);
* forward, a token: 2 · N_matmul + attention, where N_matmul counts the weights that are multiplied (the head counts
  once, also where it is tied to the embedding; the look-up does not);
* attention, a token that sees `c` tokens, itself included: 4 · layers · heads · head_dim · c, two FLOPs for each of
  q·k and p·v;
* causal attention is counted *halved*: in a sequence of T tokens token i sees i tokens, (T + 1) / 2 on average. Tables
  which count the full T × T square come out higher. A layer with a sliding window sees at most the window;
* training is three forwards (6 · N_matmul + three times the attention). Recomputation by activation checkpointing is
  not useful work and is not counted;
* with experts N_matmul counts the weights that a token passes through: the router, the chosen experts, the shared ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder that decide its FLOPs and bytes.

    windows: each layer's sliding window, 0 for none; empty where no layer has one. extra: weights beyond the matrices
    and Llama's two norms a layer (biases, norms of query and key heads, norms after a sublayer); they cost bytes and
    about no FLOPs. experts: routed ones a layer, 0 for a dense decoder; a token passes through `active_experts` of them and
    through `shared_experts`, each `intermediate` wide (the same in every layer).
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    windows: tuple[int, ...] = ()
    extra: int = 0
    experts: int = 0
    active_experts: int = 0
    shared_experts: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key-value heads")
        if self.experts and not 0 < self.active_experts <= self.experts:
            raise ValueError(f"{self.active_experts} active experts of {self.experts}")
        if self.windows and (len(self.windows) != self.layers or min(self.windows) < 0):
            raise ValueError(f"windows {self.windows} must name {self.layers} layers, 0 or more keys each")

    def window_counts(self) -> dict[int, int]:
        """How many layers have each window; 0 stands for full attention."""
        return dict(Counter(self.windows)) if self.windows else {0: self.layers}

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    def layer_weights(self) -> int:
        """Multiplied weights of one layer, for a token: q, k, v, o, gate, up, down; of experts the active, and the router."""
        return self._layer(self.active_experts)

    def stored_layer_weights(self) -> int:
        """The same matrices with every expert, as they lie in memory."""
        return self._layer(self.experts)

    def _layer(self, routed: int) -> int:
        attention = self.hidden * (2 * self.q_width + 2 * self.kv_width)
        width = self.intermediate * (routed + self.shared_experts) if self.experts else self.intermediate
        return attention + 3 * self.hidden * width + self.hidden * self.experts

    def parameters(self) -> int:
        """All weights, norms included; a tied head counts once. SmolLM2-135M: 134,515,008."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * (self.stored_layer_weights() + 2 * self.hidden) + self.hidden + self.extra

    def active_parameters(self) -> int:
        """`parameters` without the experts that a token does not pass through."""
        return self.parameters() - self.layers * (self.stored_layer_weights() - self.layer_weights())


def seen(length: float, window: int = 0) -> float:
    """Keys that the tokens of a sequence see in total, each itself included; at most `window` each if that is not 0."""
    if not window or length <= window:
        return length * (length + 1) / 2
    return window * (window + 1) / 2 + (length - window) * window


def attention_flops(shape: ModelShape, start: float, end: float) -> float:
    """Forward FLOPs of attention for the tokens start + 1 .. end of a sequence, sliding windows honoured."""
    total = sum(layers * (seen(end, w) - seen(start, w)) for w, layers in shape.window_counts().items())
    return 4.0 * shape.q_width * total


def forward_flops(shape: ModelShape, lengths: Iterable[int], head_tokens: int | None = None) -> float:
    """Forward FLOPs over documents of these lengths, attention inside each document only (packing adds none).

    `head_tokens` is the number of tokens whose logits are computed; by default all of them.
    """
    tokens, attention = 0, 0.0
    for n in lengths:
        tokens += n
        attention += attention_flops(shape, 0, n)
    head = tokens if head_tokens is None else head_tokens
    body = 2.0 * shape.layers * shape.layer_weights() * tokens
    return body + 2.0 * shape.vocab * shape.hidden * head + attention


def training_flops(shape: ModelShape, lengths: Iterable[int], head_tokens: int | None = None) -> float:
    """Forward and backward: three forwards. Same arguments as `forward_flops`."""
    return 3.0 * forward_flops(shape, lengths, head_tokens)


def flops_per_token(shape: ModelShape, length: float, training: bool = False, head_share: float = 1.0) -> float:
    """FLOPs a token in sequences of `length` tokens; `head_share` is the share of tokens whose logits are computed."""
    matmul = 2.0 * (shape.layers * shape.layer_weights() + shape.vocab * shape.hidden * head_share)
    forward = matmul + attention_flops(shape, 0, length) / length
    return 3.0 * forward if training else forward


def decode_flops(shape: ModelShape, context: float) -> float:
    """FLOPs to decode one token with a KV cache when it sees `context` tokens, itself included."""
    matmul = 2.0 * (shape.layers * shape.layer_weights() + shape.vocab * shape.hidden)
    visible = sum(layers * (min(context, w) if w else context) for w, layers in shape.window_counts().items())
    return matmul + 4.0 * shape.q_width * visible


def generation_flops(shape: ModelShape, prompt: int, new: int, group: int = 1) -> float:
    """FLOPs to answer one prompt `group` times with `new` tokens each, the prompt computed once for the group.

    The prompt's last token gives the first new token, so the group decodes `new` - 1 tokens each.
    """
    if new < 1:
        return 0.0
    prefill = forward_flops(shape, [prompt], head_tokens=1)
    steps = new - 1
    matmul = 2.0 * (shape.layers * shape.layer_weights() + shape.vocab * shape.hidden)
    return prefill + group * (steps * matmul + attention_flops(shape, prompt, prompt + steps))
