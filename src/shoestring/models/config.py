"""The shape of a decoder, independent of the family that it came from."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring.models.rope import Rope

ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True)
class LayerFacts:
    """What sets one layer apart. window: keys that a query sees, itself included (0: all). rope: its index (-1: none)."""

    window: int
    rope: int


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of one decoder-only transformer.

    heads * head_dim need not equal hidden; kv_heads divides heads (grouped-query attention).

    activation gates the MLP. qkv_bias, out_bias: of the attention's products; mlp_bias: of gate, up and down. qk_norm:
    RMS norm of each query and key head before rotation. post_norms: the outputs of attention and MLP are normed before
    they join the residual. attention_scale multiplies q·k; 0 stands for head_dim ** -0.5. windows: for each layer the
    keys that a query sees, itself included, 0 for all of them; empty where no layer has one. ropes and rope_of: the
    rotary tables and each layer's choice, -1 for none; left empty, one plain table of `rope_theta` serves every layer.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    norm_eps: float
    rope_theta: float
    tied: bool
    max_positions: int
    activation: str = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    windows: tuple[int, ...] = ()
    ropes: tuple[Rope, ...] = ()
    rope_of: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads=} must be a multiple of {self.kv_heads=}")
        if self.head_dim % 2:
            raise ValueError(f"{self.head_dim=} must be even: rotary embedding turns pairs")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"{self.activation=} must be one of {', '.join(ACTIVATIONS)}")
        if not self.ropes:
            object.__setattr__(self, "ropes", (Rope(self.rope_theta),))
        if not self.attention_scale:
            object.__setattr__(self, "attention_scale", self.head_dim**-0.5)
        for name in ("windows", "rope_of"):
            given = getattr(self, name)
            if given and len(given) != self.layers:
                raise ValueError(f"{name} names {len(given)} layers of {self.layers}")
        if any(w < 0 for w in self.windows):
            raise ValueError("a window must be positive, or 0 for none")
        if any(not -1 <= i < len(self.ropes) for i in self.rope_of):
            raise ValueError(f"rope_of names a table outside the {len(self.ropes)} of ropes")

    @property
    def group(self) -> int:
        """Query heads a key/value head."""
        return self.heads // self.kv_heads

    @property
    def qkv_rows(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def layer(self, i: int) -> LayerFacts:
        return LayerFacts(self.windows[i] if self.windows else 0, self.rope_of[i] if self.rope_of else 0)
