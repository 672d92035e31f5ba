"""The GPU's attention with a stand-in for its kernel: what it is called with means the same as the CPU's own plan."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.models import varlen  # noqa: E402
from shoestring.models.attention import attend, plan_attention  # noqa: E402
from shoestring.records import Document  # noqa: E402

HEADS, KV, DIM = 6, 2, 4
WIDTH = (HEADS + 2 * KV) * DIM
LAYOUTS = {
    "one": [Document(0, 9)],
    "many": [Document(0, 5), Document(5, 6), Document(6, 19)],
    "branches": [Document(0, 12, 7, ((7, 9), (9, 9), (9, 12))), Document(12, 20)],
    "long": [Document(0, 300, 20, ((20, 260), (260, 300))), Document(300, 340)],
}


def stand_in(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """What torch's kernel promises, item by item: causal and windowed masks aligned at the ends of queries and keys."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and window_size[1] == 0
    assert enable_gqa or query.shape[1] == key.shape[1]
    group, outs = query.shape[1] // key.shape[1], []
    for a, b, s, e in zip(cu_seq_q[:-1], cu_seq_q[1:], cu_seq_k[:-1], cu_seq_k[1:], strict=True):
        q, k, v = query[a:b], key[s:e].repeat_interleave(group, 1), value[s:e].repeat_interleave(group, 1)
        assert len(q) <= max_q and len(k) <= max_k
        behind = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        hidden = (behind < 0) | (behind > window_size[0] if window_size[0] >= 0 else False)
        p = (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(hidden, float("-inf")).softmax(-1)
        outs.append(torch.einsum("hqk,khd->qhd", p, v))
    return torch.cat(outs)


def test_the_installed_torch_has_the_kernel_with_these_arguments() -> None:
    assert varlen._kernel is not None
    theirs = inspect.signature(varlen._kernel).parameters
    for name, ours in inspect.signature(stand_in).parameters.items():
        assert theirs[name].kind == ours.kind
    assert list(theirs)[:7] == list(inspect.signature(stand_in).parameters)[:7]


@pytest.mark.parametrize("window", [0, 1, 3, 50])
@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_and_gradients_are_the_cpus(name: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "_kernel", stand_in)
    documents = LAYOUTS[name]
    rows = documents[-1].end
    g = torch.Generator().manual_seed(rows)
    a = torch.randn(rows, WIDTH, generator=g).requires_grad_()
    b = a.detach().clone().requires_grad_()
    upstream = torch.randn(rows, HEADS * DIM, generator=g)
    plan = varlen.plan_varlen(documents, a.device)
    assert (plan.keys is None) == (name in ("one", "many"))
    ours = varlen.attend_any(a, plan, HEADS, KV, DIM, 0.4, window)
    theirs = attend(b, plan_attention(documents, rows, (window,)), HEADS, KV, DIM, 0.4, window)
    assert torch.allclose(ours, theirs, atol=2e-5)
    ours.backward(upstream)
    theirs.backward(upstream)
    assert torch.allclose(a.grad, b.grad, atol=1e-4)


def test_the_cpu_and_fp32_keep_their_own_way() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        like = torch.zeros(1, dtype=dtype)
        assert not varlen.usable(like, 64)
        assert isinstance(varlen.plan_for([Document(0, 3)], 3, (), like, 64), varlen.AttentionPlan)


def test_what_the_kernel_takes() -> None:
    class Card:
        is_cuda, dtype = True, torch.bfloat16

    class Wide(Card):
        dtype = torch.float32

    assert varlen.usable(Card(), 64) and varlen.usable(Card(), 256)  # pyright: ignore[reportArgumentType]
    assert not any(varlen.usable(x, d) for x, d in ((Card(), 4), (Card(), 320), (Wide(), 64)))  # pyright: ignore
