"""How many tokens texts have, and what lengths a stage may expect, without a tokenizer. Standard library only.

A byte-pair tokenizer with digits apart (SmolLM2, Llama 3 to three digits, Qwen2.5) gives a common word one token, a long
one two or three, and every digit one. `tokens` counts so; on the problem sets that ship, on GSM8K, MATH and on prose it is
within 10% of SmolLM2's own count (tests/unit/estimate/test_lengths.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_PIECES = re.compile(r"\d|[^\W\d_]+|[^\w\s]+|\n+")
WORD = 9  # letters that one token of a long word holds
MENDED = 1.06  # what the pieces miss: rare words and joined marks
# Tokens of a chat template around one user turn: before it (markers, a default system prompt) and after it. SmolLM2: 25 + 5,
# Qwen2.5: 24 + 5. Only what is expected where the template is not read.
BEFORE, AFTER = 25, 5
TURN = 10  # markers around one more pair of turns
UNTRAINED = 250.0  # tokens that an instruct model writes to a question where nothing else is known
SPREAD = 0.36  # standard deviation over mean of traces' lengths where they cannot be read (s1K's, see runs.LENGTH_SIGMA)

Basis = Literal["measured", "simulated", "literature"]


def tokens(text: str) -> float:
    """About how many tokens a text has."""
    count = 0
    for piece in _PIECES.findall(text):
        count += 1 + (len(piece) - 1) // WORD if piece[0].isalpha() else 1
    return MENDED * count


def pieces(text: str) -> list[str]:
    """The text in token-like pieces, to compare the beginnings of texts by."""
    return _PIECES.findall(text)


@dataclass(frozen=True)
class Sizes:
    """Expected tokens at a point of a recipe.

    prompt: a plain prompt under the chat template; answer: a worked solution or trace with its end token (0: not known);
    shared: tokens of a row that stand in a neighbour's beginning too and are computed once; spread: standard deviation of
    answers over their mean; longest: tokens of the longest row, where that is known (0: not); basis: "measured" where texts
    were read, "literature" where this is an expectation.
    """

    prompt: float = 60.0
    answer: float = 0.0
    shared: float = 20.0
    spread: float = SPREAD
    basis: Basis = "literature"
    longest: float = 0.0
    stated: bool = False  # an expectation that the recipe itself states

    @property
    def body(self) -> float:
        """Tokens of the question alone, without the template."""
        return max(1.0, self.prompt - BEFORE - AFTER)

    @property
    def own(self) -> float:
        """Tokens of a prompt beside what it shares with its neighbours."""
        return max(1.0, self.prompt - self.shared)

    def trace(self) -> float:
        """Tokens of a trace to learn from."""
        return self.answer or UNTRAINED


def slowest(sizes: Sizes, count: int, each: float = 1.0) -> float:
    """The most tokens that one of `count` ranks has in a step over their mean, `each` rows a rank."""
    if count < 2:
        return 1.0
    share = slowest_share(count, sizes.spread / max(1.0, each) ** 0.5)
    whole = sizes.prompt + sizes.trace()
    return min(share, max(1.0, sizes.longest / whole)) if sizes.longest else share


def written(sizes: Sizes, max_new: int, trained: bool) -> float:
    """Tokens that a model writes to a question, at most `max_new`, on average.

    A model that was trained on traces writes about as much as they hold. One that was not writes on: lengths are taken as
    exponential with 1.6 times the worked solution's mean (of the quickstart's base model: 36 tokens of at most 64, 30 of at
    most 40), or with `UNTRAINED` where no solution is known.
    """
    if trained:
        return min(float(max_new), sizes.trace())
    mean = 1.6 * sizes.answer if sizes.answer else UNTRAINED
    return mean * (1 - math.exp(-max_new / mean))


def grown(length: float, steps: int, max_new: int) -> float:
    """Mean length of answers over a run of reinforcement learning: they grow by a tenth in 100 steps, up to `max_new`.

    Literature: DeepSeek-R1-Zero's answers grew about linearly, twentyfold in 8,000 steps (Guo et al. 2025, figure 3), which
    is a quarter in 100; short recipes on small models show less or none, so this is the lower half of what was seen.
    """
    return min(float(max_new), length * (1 + 0.001 * steps / 2))


def slowest_share(count: int, spread: float) -> float:
    """The longest of `count` rows over their mean, for lengths that are log-normal with this spread (Blom's formula).

    What a step of data parallelism waits for where every rank has one row.
    """
    if count < 2 or spread <= 0:
        return 1.0
    from statistics import NormalDist

    sigma = math.sqrt(math.log(1 + spread * spread))
    z = NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
    return max(1.0, math.exp(sigma * z - sigma * sigma / 2))


def spread_of(lengths: Sequence[float]) -> float:
    """Standard deviation over mean; the expectation where there are too few."""
    if len(lengths) < 4:
        return SPREAD
    mean = sum(lengths) / len(lengths)
    return math.sqrt(sum((x - mean) ** 2 for x in lengths) / (len(lengths) - 1)) / mean if mean else SPREAD
