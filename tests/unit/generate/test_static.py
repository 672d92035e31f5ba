"""Steps of fixed shapes against the whole sequence anew, run on a CPU; when a shape is captured, and when forgotten."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from whole_sequence import twin  # noqa: E402

from shoestring.generate import static  # noqa: E402
from shoestring.generate.cache import BLOCK  # noqa: E402
from shoestring.generate.engine import Engine, Request, Session  # noqa: E402
from shoestring.models.rope import Rope  # noqa: E402

VOCAB = 61


class Fixed(Engine):
    """An engine whose sessions step as on a GPU."""

    def open(self, cache_tokens: int | None = None) -> Session:
        session = super().open(cache_tokens)
        session._steps = self.steps = static.Steps(self.model, session.pool)
        return session


def some(rng: random.Random, count: int) -> list[Request]:
    """Prompts within a block, across one and past two, some of them shared by several rows."""
    prompts = [tuple(rng.randrange(VOCAB) for _ in range(n)) for n in (3, BLOCK - 2, BLOCK, BLOCK + 9, 2 * BLOCK + 1)]
    return [Request(rng.choice(prompts), rng.choice([1, 4, 13]), rng.choice([0.0, 0.9]), seed=k) for k in range(count)]


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"qkv_bias": True, "qk_norm": True, "head_dim": 6},
        {"post_norms": True, "activation": "gelu_tanh", "embedding_scale": 4.9, "windows": (5, BLOCK + 3)},
        {"ropes": (Rope(10000.0, "dynamic", 2.0, original=70), Rope(500.0)), "rope_of": (0, -1)},
    ],
    ids=str,
)
def test_tokens_are_those_of_the_sequence_anew(sizes: dict[str, Any], tiny_decoder: Any) -> None:
    model = tiny_decoder(**sizes)
    requests = some(random.Random(3), 9)
    done = Fixed(model, 5).generate(requests)
    assert [c.tokens for c in done] == [twin(model, r).tokens for r in requests]


def test_logprobs_are_those_of_the_cpus_steps(tiny_decoder: Any) -> None:
    model = tiny_decoder()
    requests = some(random.Random(5), 12)
    ours, plain = Fixed(model, 7), Engine(model, 7)
    for a, b in zip(ours.generate(requests), plain.generate(requests), strict=True):
        assert a.tokens == b.tokens and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert ours.counters.steps == plain.counters.steps


def test_shapes_waste_a_third_at_most() -> None:
    assert [static.rounded(n) for n in (1, 2, 3, 4, 5, 6, 7, 9, 13, 17, 33, 255)] == [1, 2, 3, 4, 6, 6, 8, 12, 16, 24, 48, 256]
    assert all(n <= static.rounded(n) < 1.5 * n for n in range(1, 3000))
    assert len({static.rounded(n) for n in range(1, 257)}) == 16


class Recorded:
    """Stands for a CUDA graph: a replay runs what was recorded on the same buffers, into the same result."""

    def __init__(self, steps: static.Steps, buffers: Any, head: Any) -> None:
        self.steps, self.buffers, self.head = steps, buffers, head
        self.layers, self.logits = steps._layers, None

    def replay(self) -> None:
        assert self.layers is self.steps._layers, "a graph reads the weights that it was recorded with"
        made = self.steps._step(self.buffers, self.head)
        self.logits = made if self.logits is None else self.logits.copy_(made)


def capture(self: static.Steps, shape: tuple[int, int], buffers: Any, head: Any) -> None:
    graph = Recorded(self, buffers, head)
    graph.replay()  # so that there is a result to write to; it writes the cache as the step itself just did
    self._graphs[shape] = graph, graph.logits  # pyright: ignore[reportArgumentType]
    self.captured += 1


def test_a_shape_is_captured_once_it_is_worth_it_and_forgotten_with_the_weights(
    tiny_decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static.Steps, "_capture", capture)
    model = tiny_decoder()
    engine = Fixed(model, 4)
    requests = [Request((5, 6, 7 + k), 40, 0.0, seed=k) for k in range(3)]
    with engine.open(1024) as session:
        engine.steps.graphs = True
        for r in requests:
            session.add(r)
        done: dict[int, Any] = {}
        steps = 0
        while not session.idle:
            done |= {e[0]: e[1] for e in session.step() if len(e) == 2}
            steps += 1
            if steps == 20:
                assert (engine.steps.captured, engine.steps.replays) == (1, 19 - static.EAGER)
                engine.refresh()
        assert engine.steps.captured == 2 and engine.steps.replays == 39 - 2 * static.EAGER
    assert [done[k].tokens for k in sorted(done)] == [twin(model, r).tokens for r in requests]


def test_no_graph_without_a_gpu_or_under_dynamic_ropes(tiny_decoder: Any) -> None:
    engine = Fixed(tiny_decoder(), 2)
    engine.generate([Request((1, 2, 3), 9)])
    assert not engine.steps.graphs and not engine.steps.captured
