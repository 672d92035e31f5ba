"""One uniform number a token picks exactly from the softmax, whatever the vocabulary's size and the batch."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from shoestring.generate.sampling import BLOCK, Filter, choose, request_seed, uniform  # noqa: E402


def inverse(p: Any, u: float) -> int:
    """The slow twin: the first index whose cumulative probability is above u, in float64."""
    edges = p.double().cumsum(0)
    return int((edges <= u * edges[-1]).sum().clamp(max=len(p) - 1))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, float("-inf"), 0.5, -3.0])
    n = 20_000
    tokens, _ = choose(logits.expand(n, 7), [temperature] * n, [uniform(5, i) for i in range(n)])
    counts = torch.bincount(tokens, minlength=7).double()
    expected = torch.softmax(logits.double() / temperature, 0) * n
    live = expected > 0
    assert not counts[~live].any()
    chi2 = float(((counts - expected)[live] ** 2 / expected[live]).sum())
    assert chi2 < 20.5  # 5 degrees of freedom, p = 0.001


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 7]),
    st.integers(0, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_is_the_inverse_of_the_cumulative_distribution(v: int, seed: int, u: float) -> None:
    logits = torch.randn(1, v, generator=torch.Generator().manual_seed(seed)) * 3
    tokens, logprobs = choose(logits, [1.0], [u])
    p = (logits[0] - logits[0].max()).exp()
    token, twin = int(tokens[0]), inverse(p, u)
    if token != twin:  # only where u falls on an edge to within rounding
        edge = float(p.double().cumsum(0)[min(token, twin)] / p.double().sum())
        assert abs(token - twin) == 1 and abs(edge - u) < 1e-6
    assert float(logprobs[0]) == pytest.approx(float(torch.log_softmax(logits[0], 0)[token]), abs=2e-5)


def test_block_edges() -> None:
    """Equal weights in two blocks: the first half of the numbers falls into the first, the second into the second."""
    logits = torch.full((1, 2 * BLOCK), 0.0)

    def pick(u: float) -> int:
        return int(choose(logits, [1.0], [u])[0])

    assert pick(0.0) == 0
    assert pick(math.nextafter(0.5, 0)) == BLOCK - 1 and pick(0.5) == BLOCK
    assert pick(math.nextafter(1, 0)) == 2 * BLOCK - 1
    for k in (1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1):
        assert pick(k / (2 * BLOCK)) == k


def test_tokens_without_probability_are_never_chosen() -> None:
    logits = torch.full((1, 3 * BLOCK + 5), float("-inf"))
    live = [3, BLOCK + 9, 3 * BLOCK + 2]
    logits[0, live] = torch.tensor([0.0, 1.0, 0.5])
    picked = {int(choose(logits, [1.0], [u])[0]) for u in (0.0, 1e-300, 0.1, 0.3, 0.5, 0.9, math.nextafter(1, 0))}
    assert picked == set(live)


def test_greedy_is_argmax_with_ties_to_the_lowest_and_its_logprob_is_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [5.0, 0.0, 0.0, 0.0]])
    tokens, logprobs = choose(logits, [0.0, 0.0], [0.9, 0.9])
    assert tokens.tolist() == [1, 0]
    assert logprobs.tolist() == pytest.approx(torch.log_softmax(logits, -1)[[0, 1], [1, 0]].tolist(), abs=1e-6)


def test_mixed_temperatures_are_each_rows_own() -> None:
    logits = torch.randn(5, 700, generator=torch.Generator().manual_seed(0))
    temperatures, uniforms = [0.0, 1.0, 0.3, 2.5, 1.0], [0.1, 0.2, 0.3, 0.4, 0.99]
    tokens, logprobs = choose(logits, temperatures, uniforms)
    for i in range(5):
        token, logprob = choose(logits[i : i + 1], temperatures[i : i + 1], uniforms[i : i + 1])
        assert tokens[i] == token[0] and logprobs[i] == logprob[0]
        full = torch.log_softmax(logits[i] / (temperatures[i] or 1.0), -1)
        assert float(logprobs[i]) == pytest.approx(float(full[tokens[i]]), abs=1e-5)


def test_narrow_logits_are_widened_and_left_alone() -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    kept = logits.clone()
    tokens, logprobs = choose(logits, [0.7] * 3, [0.5] * 3)
    assert torch.equal(tokens, choose(logits.float(), [0.7] * 3, [0.5] * 3)[0])
    assert logprobs.dtype == torch.float32 and torch.equal(logits, kept)
    wide = kept.float()
    choose(wide, [1.0] * 3, [0.5] * 3)
    assert torch.equal(wide, kept.float())


def test_uniform_is_in_range_even_and_its_own() -> None:
    values = [uniform(s, i) for s in range(60) for i in range(200)]
    assert all(0 <= u < 1 for u in values) and len(set(values)) == len(values)
    counts = [0] * 20
    for u in values:
        counts[int(u * 20)] += 1
    assert sum((c - 600) ** 2 / 600 for c in counts) < 43.8  # 19 degrees of freedom, p = 0.001
    pairs = list(zip(values, values[1:], strict=False))
    correlation = 12 * sum((a - 0.5) * (b - 0.5) for a, b in pairs) / len(pairs)
    assert abs(correlation) < 0.04
    assert uniform(3, 4) == uniform(3, 4) and uniform(3, 4) != uniform(4, 3)
    assert 0 <= uniform(-7, 0) < 1 and 0 <= uniform(1 << 70, 10**6) < 1


def test_request_seeds_differ_in_every_part() -> None:
    rng = random.Random(0)
    parts = {(rng.randrange(4), s, p, k) for s in range(12) for p in range(8) for k in range(8)}
    seeds = {request_seed(*p) for p in parts}
    assert len(seeds) == len(parts) and all(0 <= s < 1 << 64 for s in seeds)
    assert request_seed(1, 2) != request_seed(2, 1) and request_seed(0) != request_seed(0, 0)


FILTERS = [(1.0, 5, 0.0), (0.7, 0, 0.0), (1.0, 0, 0.2), (0.9, 8, 0.05), (0.05, 0, 0.0), (1.0, 1, 0.0)]


@pytest.mark.parametrize(("top_p", "top_k", "min_p"), FILTERS)
def test_filters_keep_what_transformers_keeps(top_p: float, top_k: int, min_p: float) -> None:
    """In transformers' own order: top_k, top_p, min_p. Every kept token can be drawn, in proportion, and no other."""
    hf = pytest.importorskip("transformers.generation.logits_process", reason="needs transformers: pip install 'shoestring[train]'")
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(3)) * 2
    scores = logits.clone()
    if top_k:
        scores = hf.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = hf.TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = hf.MinPLogitsWarper(min_p)(None, scores)
    expected = torch.softmax(scores[0].double(), 0)
    n = 4000
    f = Filter(top_p, top_k, min_p)
    tokens, logprobs = choose(logits.expand(n, 40), [1.0] * n, [(k + 0.5) / n for k in range(n)], [f] * n)
    share = torch.bincount(tokens, minlength=40).double() / n
    assert float((share - expected).abs().max()) < 2 / n
    assert torch.allclose(logprobs, torch.log_softmax(logits[0], 0)[tokens], atol=1e-5), "of the whole softmax"


def test_a_filter_touches_its_own_row_alone() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(5))
    t, u = [1.0, 0.7, 0.0, 1.0], [0.3, 0.9, 0.5, 0.99]
    plain, _ = choose(logits, t, u)
    mixed, _ = choose(logits, t, u, [Filter(), Filter(top_k=1), Filter(top_k=1), Filter()])
    assert mixed[[0, 2, 3]].tolist() == plain[[0, 2, 3]].tolist() and int(mixed[1]) == int(logits[1].argmax())
    assert choose(logits, t, u, [Filter()] * 4)[0].tolist() == plain.tolist()


def test_greedy_without_log_probabilities_chooses_the_same() -> None:
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(20, 700, generator=g).bfloat16()
    logits[4, 5] = logits[4, 600] = 9.0  # a tie goes to the lowest id
    tokens, logprobs = choose(logits, [0.0] * 20, [0.0] * 20)
    bare, nothing = choose(logits, [0.0] * 20, [0.0] * 20, None, [False] * 20)
    assert torch.equal(bare, tokens) and bare[4] == 5 and nothing.isnan().all()
    mixed = choose(logits, [0.0] * 20, [0.0] * 20, None, [k == 3 for k in range(20)])[1]
    assert torch.equal(mixed[:8], logprobs[:8]) and mixed[8:].isnan().all()
