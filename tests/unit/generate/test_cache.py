"""The pool of blocks: dense regions, no leak, no block of two owners, contents that move with their owner."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from shoestring.generate.cache import BLOCK, BlockPool, Span, blocks_for  # noqa: E402


def pool(blocks: int = 12) -> BlockPool:
    return BlockPool(2, 3, 4, blocks, torch.float32)


def test_sizes() -> None:
    assert [blocks_for(n) for n in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]
    assert pool(5).bytes == 2 * 2 * 5 * 3 * BLOCK * 4 * 4


def write(p: BlockPool, span: Span, mark: float) -> None:
    for b in span.blocks:
        p.storage[:, :, b] = mark


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9), st.integers(1, 3 * BLOCK)), max_size=40))
def test_any_order_of_growing_and_releasing(actions: list[tuple[bool, bool, int, int]]) -> None:
    p = pool()
    live: list[tuple[Span, float]] = []
    for n, (release, shared, which, tokens) in enumerate(actions):
        if release and live:
            span, _ = live.pop(which % len(live))
            p.release(span)
            assert not span.blocks and span.length == 0
        elif p.used + blocks_for(tokens) <= p.capacity:
            span = Span(shared=shared)
            p.grow(span, tokens)
            write(p, span, float(n + 1))
            live.append((span, float(n + 1)))
        held = [b for s, _ in live for b in s.blocks]
        assert len(held) == len(set(held)) == p.used == len(p.owner)
        assert {b for s, _ in live if not s.shared for b in s.blocks} == set(range(p.left))
        assert {b for s, _ in live if s.shared for b in s.blocks} == set(range(p.right, p.capacity))
        for s, mark in live:
            assert all(bool((p.storage[:, :, b] == mark).all()) and p.owner[b] is s for b in s.blocks)


def test_full() -> None:
    p = pool(2)
    p.grow(Span(), BLOCK)
    p.grow(Span(shared=True), 5)
    with pytest.raises(MemoryError):
        p.grow(Span(), 1)


def test_slots_name_the_rows_of_a_layer() -> None:
    p = pool()
    blocks, offsets = torch.tensor([3, 0, 11]), torch.tensor([7, 0, BLOCK - 1])
    at = p.slots(blocks, offsets)
    assert at.shape == (3, 6)
    p.flat[1].index_copy_(0, at.view(-1), torch.arange(18 * 4, dtype=torch.float32).view(18, 4))
    for i, (b, o) in enumerate(zip(blocks.tolist(), offsets.tolist(), strict=True)):
        both = torch.stack([p.storage[1, 0, b, :, o], p.storage[1, 1, b, :, o]]).view(6, 4)
        assert torch.equal(both, torch.arange(18 * 4, dtype=torch.float32).view(3, 6, 4)[i])
    assert not p.storage[0].any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4 * BLOCK)), min_size=1, max_size=30))
def test_a_span_shrinks_to_any_length(actions: list[tuple[int, int]]) -> None:
    """Each of four spans is cut or grown to a length: it keeps its first blocks' contents, and the region stays dense."""
    p = pool(16)
    spans, marks = [Span() for _ in range(4)], [0] * 4  # marks: contents of a span's blocks, in order
    for which, tokens in actions:
        span = spans[which]
        if tokens < span.length:
            p.shrink(span, tokens)
        else:
            p.grow(span, tokens)
            span.length = tokens
        for k, b in enumerate(span.blocks):
            if k >= marks[which]:
                p.storage[:, :, b] = float(10 * which + k)
        marks[which] = len(span.blocks)
        assert span.length == tokens and all(len(s.blocks) == blocks_for(s.length) for s in spans)
        assert sorted(b for s in spans for b in s.blocks) == list(range(p.left)) == sorted(p.owner)
        for w, s in enumerate(spans):
            assert all(bool((p.storage[:, :, b] == float(10 * w + k)).all()) for k, b in enumerate(s.blocks))
