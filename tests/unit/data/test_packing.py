"""Packing: every trained token once, predicted from the row that holds the token before it. numpy only."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("numpy", reason="needs numpy: pip install 'shoestring[train]'")

from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data.packing import first_fit, pack
from shoestring.records import Batch, Document, Example


def example(prompt: list[int], answer: list[int], weights: list[float], advantage: float = 0.0) -> Example:
    tokens = (*prompt, *answer)
    return Example(
        tokens,
        (0.0,) * len(prompt) + tuple(weights),
        len(prompt),
        advantage,
        tuple(-0.01 * i - len(prompt) for i in range(len(tokens))),
    )


@st.composite
def some(draw: st.DrawFn) -> list[Example]:
    ids = st.integers(0, 3)
    prompts = draw(st.lists(st.lists(ids, min_size=1, max_size=24), min_size=1, max_size=4))
    out = []
    for k in range(draw(st.integers(1, 14))):
        answer = draw(st.lists(ids, max_size=8))
        weights = [draw(st.sampled_from([0.0, 1.0, 1.0, 0.5])) for _ in answer]
        out.append(example(draw(st.sampled_from(prompts)), answer, weights, float(k)))
    return [*out, example([9, 9], [7, 7], [1.0, 1.0], 99.0)]  # so that there is some weight


def owners(b: Batch) -> list[list[int]]:
    """For each row, the rows it stands behind in its own sequence (trunk then branch), by the documents alone."""
    behind: list[list[int]] = [[] for _ in b.tokens]
    for d in b.documents:
        for start, end in d.branches or [(d.start, d.end)]:
            sequence = [*range(d.start, d.start + d.trunk), *range(start, end)] if d.branches else list(range(start, end))
            for at, row in enumerate(sequence):
                behind[row] = sequence[:at]
    return behind


@settings(max_examples=150, deadline=None)
@given(some(), st.integers(4, 120))
def test_every_weighted_token_once_from_the_right_row(examples: list[Example], rows: int) -> None:
    batches = pack(examples, rows)
    seen: Counter[tuple[int, int]] = Counter()
    total = 0.0
    for b in batches:
        behind = owners(b)
        assert len(b.tokens) == len(b.positions) and all(p == len(h) for p, h in zip(b.positions, behind, strict=True))
        for k in range(len(b.target)):
            i, row = int(b.sequence[k]), int(b.source[k])
            e = examples[i]
            context = [int(b.tokens[r]) for r in [*behind[row], row]]
            at = len(context)
            assert tuple(context) == e.tokens[:at]  # the row sees exactly the tokens before the target
            assert e.tokens[at] == b.target[k] and e.weight[at] == pytest.approx(float(b.weight[k]))
            assert e.logprob is not None and e.logprob[at] == pytest.approx(float(b.logprob[k]), rel=1e-6)
            assert e.advantage == b.advantage[k]
            seen[i, at] += 1
            total += float(b.weight[k])
        longest = max((len(e.tokens) for e in examples), default=0)
        assert len(b.tokens) <= max(rows, longest)
    wanted = {(i, t) for i, e in enumerate(examples) for t, w in enumerate(e.weight) if w}
    assert set(seen) == wanted and set(seen.values()) <= {1}
    weight_sum = sum(sum(e.weight) for e in examples)
    assert all(b.weight_sum == pytest.approx(weight_sum) and b.sequence_count == len(examples) for b in batches)
    assert total == pytest.approx(weight_sum, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(some(), st.integers(4, 120))
def test_documents_tile_the_rows(examples: list[Example], rows: int) -> None:
    for b in pack(examples, rows):
        at = 0
        for d in b.documents:
            assert d.start == at
            if d.branches:
                at += d.trunk
                for start, end in d.branches:
                    assert start == at
                    at = end
            assert (at := d.end if not d.branches else at) == d.end
        assert at == len(b.tokens)


def test_a_group_costs_its_prompt_once() -> None:
    prompt = list(range(30))
    (b,) = pack([example(prompt, [40 + i, 50], [1, 1], i) for i in range(8)], 1000)
    assert len(b.tokens) == 30 + 16 and len(b.target) == 16
    assert b.documents == [Document(0, 46, 30, tuple((30 + 2 * i, 32 + 2 * i) for i in range(8)))]
    assert list(b.source[::2]) == [29] * 8  # each first answer token is predicted by the prompt's last row
    assert set(b.positions[30::2]) == {30}


def test_a_first_prediction_comes_from_the_shared_row_even_if_the_trunk_is_the_whole_sequence() -> None:
    prompt = list(range(12))
    (b,) = pack([example(prompt, [], []), example(prompt, [3], [1.0])], 100)
    assert len(b.tokens) == 13 and list(b.source) == [11] and list(b.target) == [3]


def test_an_example_longer_than_the_rows_stands_alone() -> None:
    batches = pack([example(list(range(50)), [1], [1.0]), example([1], [2], [1.0])], 8)
    assert sorted(len(b.tokens) for b in batches) == [2, 51]


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="trained token"):
        pack([example([1, 2], [3], [0.0])], 10)


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(5, 40))
def test_first_fit(sizes: list[int], capacity: int) -> None:
    bins = first_fit(sizes, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in b) for b in bins]
    assert all(load <= capacity or len(b) == 1 for load, b in zip(loads, bins, strict=True))
    small = [load for load, b in zip(loads, bins, strict=True) if load <= capacity]
    assert sum(2 * load <= capacity for load in small) <= 1  # two half-empty bins would have been one


def test_micro_batches_are_as_few_as_allowed_and_even() -> None:
    """The fullest one sets the memory's peak."""
    examples = [example([i], [1] * n, [1.0] * n) for i, n in enumerate((70, 60, 50, 40, 30, 20, 10))]
    sizes = [len(b.tokens) for b in pack(examples, 200)]
    assert sum(sizes) == 287 and len(sizes) == 2 and max(sizes) <= 155
    shared = [example([1, 2, 3, 4, 5, 6, 7, 8], [i] * 30, [1.0] * 30) for i in range(9, 20)]
    rows = [len(b.tokens) for b in pack(shared, 200)]
    assert len(rows) == 2 and max(rows) <= 200 and max(rows) - min(rows) <= 31
    assert len(pack(shared, 400)) == 1
