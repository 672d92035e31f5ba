"""Groups of answers for the tests of policy losses: unequal lengths, forced tokens, noise for behaviour and advantage."""

from __future__ import annotations

import numpy as np

from shoestring.records import Example


def examples(rng: np.random.Generator, problems: int, prompt: int, most: int) -> list[Example]:
    """Three answers of at most `most` tokens to each problem; prompts have `prompt` tokens and one more each time."""
    out = []
    for k in range(problems):
        asked = tuple(int(t) for t in rng.integers(0, 61, prompt + k))
        for _ in range(3):
            n = int(rng.integers(1, most + 1))
            answer = tuple(int(t) for t in rng.integers(0, 61, n))
            weight = (0.0,) * len(asked) + (1.0, *(float(x) for x in rng.integers(0, 2, n - 1)))
            behaviour = tuple(float(x) for x in rng.normal(-4, 0.4, len(asked) + n))
            out.append(Example(asked + answer, weight, len(asked), float(rng.normal()), behaviour, f"p{k}"))
    return out
