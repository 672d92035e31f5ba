"""Decode steps on a CPU with what stands between the matrix products compiled (`shoestring.native`).

At a few rows the start of a small operation costs more than its work, and a step has a thousand of them: five calls a layer
stand for thirty-five. `decode.step`, plain torch, runs where nothing is compiled and is the slow twin in the tests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from shoestring import native
from shoestring.generate.cache import BLOCK, BlockPool
from shoestring.generate.decode import Layer, Plan, rope_tables

_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Plan(ctypes.Structure):
    _fields_ = [(n, _N) for n in ("b", "n", "m", "g", "t", "block", "right")] + [("table", _P)]


class _Shape(ctypes.Structure):
    _fields_ = [(n, _N) for n in ("heads", "kv", "d", "threads")] + [("eps", _F), ("scale", _F)]


def usable(model: Any) -> bool:
    """Whether steps of this `models.decoder.Decoder` can be run here."""
    return model.config.head_dim <= native.MOST and native.usable(model.embedding)


class Steps:
    """Runs the decode steps of one session: its own scratch memory, so that sessions may run side by side."""

    def __init__(self, model: Any, pool: BlockPool) -> None:
        c = model.config
        self.model, self.pool, self.functions = model, pool, native.functions()
        self.shape = _Shape(c.heads, c.kv_heads, c.head_dim, 1, c.norm_eps, c.attention_scale)
        self.plan: Plan | None = None

    def _bind(self, plan: Plan, threads: int) -> None:
        if plan is self.plan and threads == self.shape.threads:
            return
        self.plan, self.shape.threads = plan, threads
        b = len(plan.written_from)
        m = plan.shared if plan.group else 0  # shared prompts whose rows have not begun
        self.bound = _Plan(b, plan.singles, m, plan.group, plan.width, BLOCK, self.pool.right, plan.table.data_ptr())
        self.scratch = torch.empty(threads * plan.width * BLOCK)
        c = self.model.config
        self.normed = torch.empty(b, c.hidden, dtype=torch.bfloat16)
        self.seen = torch.empty(b, c.heads * c.head_dim, dtype=torch.bfloat16)
        self.inner = torch.empty(b, c.intermediate, dtype=torch.bfloat16)

    @torch.inference_mode()
    def run(self, layers: Sequence[Layer], plan: Plan, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """As `decode.step`: tokens [b] at positions [b] → final normed hidden states [b, hidden]."""
        threads = torch.get_num_threads()
        self._bind(plan, threads)
        model, c, f = self.model, self.model.config, self.functions
        b, p, s = len(tokens), ctypes.addressof(self.bound), ctypes.addressof(self.shape)
        ropes = rope_tables(model, layers, positions)
        masks = {w: plan.mask(positions, w) for w in {layer.window for layer in layers}}
        write = (plan.write + (positions - plan.written_from)[:, None]).view(-1)
        written, normed, seen, inner, scratch = (
            t.data_ptr() for t in (write, self.normed, self.seen, self.inner, self.scratch)
        )
        gelu = c.activation == "gelu_tanh"
        x = F.embedding(tokens, model.embedding)
        if c.embedding_scale != 1.0:
            x = x * x.new_full((), c.embedding_scale)
        for i, layer in enumerate(layers):
            f.ss_norm(x.data_ptr(), layer.norms[0].data_ptr(), normed, None, b, c.hidden, c.norm_eps, threads)
            qkv = layer.qkv(self.normed)
            cos, sin = (t.data_ptr() for t in ropes[layer.which]) if layer.which >= 0 else (None, None)
            of_q, of_k = (t.data_ptr() for t in layer.head_norms) if layer.head_norms is not None else (None, None)
            f.ss_place(qkv.data_ptr(), cos, sin, of_q, of_k, self.pool.flat[i].data_ptr(), written, b, s)
            keys, values = self.pool.pairs[i]
            f.ss_attend(qkv.data_ptr(), keys.data_ptr(), values.data_ptr(), masks[layer.window].data_ptr(), seen, scratch, p, s)
            x = self._onto(x, layer, 0, self.seen)
            f.ss_norm(x.data_ptr(), layer.norms[1].data_ptr(), normed, None, b, c.hidden, c.norm_eps, threads)
            gate_up = layer.gate_up(self.normed)  # held by its name until the call has read it
            f.ss_gate(gate_up.data_ptr(), inner, b, c.intermediate, gelu, threads)
            x = self._onto(x, layer, 1, self.inner)
        return native.norm(x, model.norm, c.norm_eps)[0]

    def _onto(self, x: torch.Tensor, layer: Layer, which: int, y: torch.Tensor) -> torch.Tensor:
        """x plus the sublayer's last product of y, normed first where the family does that."""
        product = layer.down if which else layer.out
        if layer.post_norms is None:
            return product.add(y, x)
        added = product(y)
        return x + native.norm(added, layer.post_norms[which], self.model.config.norm_eps)[0]
