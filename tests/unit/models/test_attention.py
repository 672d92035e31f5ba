"""Packed attention against its slow twin: each sequence unpacked, one masked softmax, plain autograd."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from shoestring import native  # noqa: E402
from shoestring.models import attention, products  # noqa: E402
from shoestring.models.attention import PIECE, SHORT, attend, plan_attention  # noqa: E402
from shoestring.records import Document  # noqa: E402

HEADS, KV, DIM = 4, 2, 6
WIDTH = (HEADS + 2 * KV) * DIM


def layout(shapes: list[int | tuple[int, list[int]]]) -> tuple[list[Document], int]:
    """Documents from lengths, or (trunk, branch lengths)."""
    documents, at = [], 0
    for s in shapes:
        if isinstance(s, int):
            documents.append(Document(at, at + s))
            at += s
            continue
        trunk, lengths = s
        start, branches = at, []
        at += trunk
        for n in lengths:
            branches.append((at, at + n))
            at += n
        documents.append(Document(start, at, trunk, tuple(branches)))
    return documents, at


def naive(qkv: Any, documents: list[Document], scale: float = DIM**-0.5, window: int = 0) -> Any:
    """Every trunk + branch by itself; a trunk's rows are read from the trunk alone."""

    def one(rows: list[int]) -> Any:
        x = qkv[rows].view(len(rows), HEADS + 2 * KV, DIM)
        q, k, v = x[:, :HEADS], x[:, HEADS : HEADS + KV], x[:, HEADS + KV :]
        k, v = (t.repeat_interleave(HEADS // KV, dim=1) for t in (k, v))
        s = torch.einsum("qhd,khd->hqk", q, k) * scale
        square = torch.ones(len(rows), len(rows))
        s = s.masked_fill(square.triu(1).bool(), float("-inf"))
        if window:
            s = s.masked_fill(square.tril(-window).bool(), float("-inf"))
        return torch.einsum("hqk,khd->qhd", s.softmax(-1), v).reshape(len(rows), -1)

    pieces: list[Any] = [None] * qkv.shape[0]
    for d in documents:
        sequences = [[*range(d.start, d.start + d.trunk), *range(a, b)] for a, b in d.branches]
        for rows in sequences or [list(range(d.start, d.end))]:
            for row, out in zip(rows, one(rows), strict=True):
                pieces[row] = out
    return torch.stack(pieces)


def check(
    documents: list[Document], rows: int, tolerance: float = 2e-5, scale: float = DIM**-0.5, window: int = 0,
    windows: tuple[int, ...] = (),
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(rows)
    qkv = torch.randn(rows, WIDTH, generator=g)
    upstream = torch.randn(rows, HEADS * DIM, generator=g)
    a, b = qkv.clone().requires_grad_(), qkv.clone().double().requires_grad_()
    ours = attend(a, plan_attention(documents, rows, windows), HEADS, KV, DIM, scale, window)
    twin = naive(b, documents, scale, window)
    assert torch.allclose(ours.double(), twin, atol=tolerance)
    ours.backward(upstream)
    twin.backward(upstream.double())
    assert torch.allclose(a.grad.double(), b.grad, atol=tolerance * 5)


@pytest.fixture(params=["flash kernel", "pieces"])
def long_way(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """How long items are attended: pieces in fp32 too, as if there were a compiled softmax."""
    if request.param == "pieces":
        monkeypatch.setattr(attention, "native", SimpleNamespace(usable=lambda *_: True))
    return request.param


@pytest.mark.usefixtures("long_way")
@pytest.mark.parametrize(
    "shapes",
    [
        [1],
        [5, 1, 9],
        [30, 31, 4, 4, 4, 90],
        [(7, [3, 4, 5])],
        [(7, [3, 4, 5]), 12, (1, [1, 1]), 40],
        [(20, [1, 30])],
        [(9, [0, 4])],
        [SHORT, SHORT + 1, 3],
        [SHORT + 40, SHORT + 9],
        [(SHORT + 20, [5, 9]), (10, [SHORT + 5, 3])],
        [(4, [SHORT + 1, SHORT + 30])],
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_the_sequences_alone(shapes: Any) -> None:
    check(*layout(shapes))


@pytest.mark.usefixtures("long_way")
@pytest.mark.parametrize("window", [1, 6, 35, 200])
@pytest.mark.parametrize(
    "shapes",
    [[30, 31, 4, 90], [(7, [3, 4, 5]), 12, (20, [1, 30])], [SHORT + 40, 9], [(SHORT + 20, [5, SHORT + 3])],
     [2 * SHORT + 3, 2 * SHORT + 50, SHORT + 1]],
    ids=str,
)  # fmt: skip
def test_a_window_counts_positions_and_goes_through_the_trunk(shapes: Any, window: int) -> None:
    check(*layout(shapes), window=window, windows=(0, window, 3))
    check(*layout(shapes), window=0, windows=(0, window, 3))


def test_a_window_as_wide_as_the_item_costs_nothing() -> None:
    plan = plan_attention(*layout([30, SHORT + 9]), (0, 400, 20))
    assert all(b.hides(20) and not b.hides(400) for b in plan.buckets), "400 hides nothing here"
    check(*layout([30, SHORT + 9]), window=400, windows=(0, 400))
    with pytest.raises(ValueError, match=r"made with windows \(20, 400\), not 7"):
        attend(torch.zeros(SHORT + 39, WIDTH), plan, HEADS, KV, DIM, window=7)


def test_a_long_document_reads_only_the_keys_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products that are asked for, counted: far fewer scores than the square."""
    import torch.nn.functional as F

    scores, whole = [], F.scaled_dot_product_attention

    def counting(q: Any, k: Any, *args: Any, **kwargs: Any) -> Any:
        scores.append(q.shape[2] * k.shape[2])
        return whole(q, k, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    length = 10 * SHORT
    check(*layout([length]), window=SHORT, windows=(SHORT,))
    assert len(scores) == 10 and sum(scores) < length * 2 * SHORT < length**2 / 4


def test_pieces_multiply_no_key_that_none_of_their_queries_sees() -> None:
    length = 4 * PIECE + 40
    bucket = plan_attention(*layout([length]), (0, 50)).buckets[0]
    whole = [(p.start, p.end, p.first, p.last) for p in bucket.pieces(0)]
    assert whole[:2] == [(0, PIECE, 0, PIECE), (PIECE, 2 * PIECE, 0, 2 * PIECE)] and whole[-1][1] % attention.STEP == 0
    near = bucket.pieces(50)
    assert bucket.pieces(50) is near, "made once, and shared by the layers"
    assert all(p.last - p.first <= PIECE + 50 + attention.STEP for p in near)
    trunk = plan_attention(*layout([(30, [SHORT + 5])])).buckets[-1]
    assert {p.last for p in trunk.pieces(0)} == {trunk.keys.shape[1]}, "every query sees the trunk and its own branch"


@pytest.mark.skipif(native.library()[0] is None, reason="needs a C compiler")
@pytest.mark.parametrize("window", [0, 100])
def test_long_items_in_bf16_are_pieces_and_err_no_more_than_the_flash_kernel(
    window: int, monkeypatch: pytest.MonkeyPatch, relative: Any
) -> None:
    cut: list[int] = []
    forward = products.Pieces.forward
    monkeypatch.setattr(products.Pieces, "forward", staticmethod(lambda ctx, *a: (cut.append(len(a[3])), forward(ctx, *a))[1]))
    documents, rows = layout([2 * SHORT + 3, 30, (SHORT + 9, [5, SHORT + 30])])
    g = torch.Generator().manual_seed(0)
    qkv, upstream = torch.randn(rows, WIDTH, generator=g).bfloat16(), torch.randn(rows, HEADS * DIM, generator=g).bfloat16()
    exact = qkv.double().requires_grad_()
    twin = naive(exact, documents, window=window)
    twin.backward(upstream.double())
    errors = []
    for fit in (native.usable, lambda *_: False):
        monkeypatch.setattr(attention, "native", SimpleNamespace(usable=fit))
        x = qkv.clone().requires_grad_()
        out = attend(x, plan_attention(documents, rows, (0, window)), HEADS, KV, DIM, window=window)
        out.backward(upstream)
        errors.append((relative(out, twin), relative(x.grad, exact.grad)))
    assert cut and max(cut) > 2
    assert errors[0][0] < 1.2 * errors[1][0] + 1e-3 and errors[0][1] < 1.2 * errors[1][1] + 1e-3, errors


@pytest.mark.parametrize("more", [1, 40])
def test_rows_of_no_document_at_the_end_get_nothing(more: int) -> None:
    documents, rows = layout([30, (7, [3, 4]), SHORT + 5])
    g = torch.Generator().manual_seed(0)
    qkv, upstream = torch.randn(rows + more, WIDTH, generator=g), torch.randn(rows + more, HEADS * DIM, generator=g)
    plan = plan_attention(documents, rows)
    a, b = qkv.clone().requires_grad_(), qkv[:rows].clone().requires_grad_()
    filled, alone = attend(a, plan, HEADS, KV, DIM), attend(b, plan, HEADS, KV, DIM)
    assert torch.equal(filled[:rows], alone) and not filled[rows:].any()
    filled.backward(upstream)
    alone.backward(upstream[:rows])
    assert a.grad is not None and b.grad is not None
    assert torch.equal(a.grad[:rows], b.grad) and not a.grad[rows:].any()


def test_another_scale_than_the_heads_width() -> None:
    check(*layout([30, (7, [3, 4]), SHORT + 5]), scale=0.9)


shape = st.one_of(st.integers(1, 40), st.tuples(st.integers(1, 30), st.lists(st.integers(1, 25), min_size=2, max_size=5)))


@settings(max_examples=25, deadline=None)
@given(st.lists(shape, min_size=1, max_size=7), st.integers(0, 45))
def test_any_layout(shapes: list[Any], window: int) -> None:
    check(*layout(shapes), window=window, windows=(window,))


def test_a_document_does_not_see_its_neighbours() -> None:
    documents, rows = layout([12, (6, [4, 5]), 8])
    qkv = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))
    before = attend(qkv, plan_attention(documents, rows), HEADS, KV, DIM)
    changed = qkv.clone()
    changed[18:22] += 3.0  # the first branch
    after = attend(changed, plan_attention(documents, rows), HEADS, KV, DIM)
    same = [r for r in range(rows) if not 18 <= r < 22]
    assert torch.equal(before[same], after[same])
    assert not torch.allclose(before[18:22], after[18:22])


def test_the_plan_covers_every_row_once_and_pads_little() -> None:
    rng = random.Random(5)
    shapes: list[Any] = [rng.randint(20, 120) for _ in range(40)]
    shapes += [(rng.randint(30, 60), [rng.randint(5, 40) for _ in range(8)]) for _ in range(5)]
    documents, rows = layout(shapes)
    plan = plan_attention(documents, rows)
    assert sorted(plan.query_rows[plan.scatter].tolist()) == list(range(rows))
    assert len(set(plan.scatter.tolist())) == rows
    assert len(plan.buckets) < 20
    padded = sum(b.queries.numel() * b.keys.shape[1] for b in plan.buckets)
    own = sum(float(b.seen().sum()) for b in plan.buckets)  # padding rows see everything, so this is generous
    assert padded < 3 * own
    assert not plan.once and plan_attention(*layout([4, 5])).once


@pytest.mark.parametrize("shapes", [[40, 9, 33], [(16, [7, 20, 5]), 30], [SHORT + 8, (SHORT + 2, [9, 4])]], ids=str)
def test_bf16_stays_near_fp32(shapes: Any) -> None:
    documents, rows = layout(shapes)
    qkv = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(3)).bfloat16()
    narrow, wide = qkv.clone().requires_grad_(), qkv.float().requires_grad_()
    a = attend(narrow, plan_attention(documents, rows), HEADS, KV, DIM)
    b = naive(wide, documents)
    assert a.dtype == torch.bfloat16 and torch.allclose(a.float(), b, atol=3e-2)
    a.float().pow(2).sum().backward()
    b.pow(2).sum().backward()
    scale = float(wide.grad.abs().max())
    assert float((narrow.grad.float() - wide.grad).abs().max()) < 3e-2 * scale
