"""Domain labels for a pool that has none: clusters of its questions, or what a label model says of each."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from shoestring import answers
from shoestring.data import cluster
from shoestring.data.embed import Embed, HashedTfIdf
from shoestring.records import Problem

Label = Callable[[Sequence[str]], Sequence[str]]  # questions → a label each, such as a model behind an endpoint
FIT = 20_000  # questions that words are weighed and clusters found by
CLUSTERS = 50  # s1 has 50 domains (section 2.2)
CHUNK = 20_000
_DULL = 3  # letters: shorter words name nothing


def needed(problems: Sequence[Problem]) -> bool:
    """Whether most problems have no domain."""
    return sum(not p.domain for p in problems) * 2 > len(problems)


def by_clusters(
    prompts: Sequence[str], clusters: int = CLUSTERS, seed: int = 0, embed: Embed | None = None
) -> list[str]:
    """A label a question: its cluster's number and the words that tell the cluster from the rest ("07 triangle angle").

    embed: texts to vectors of length 1 (default: data.embed, fitted to a draw). Same seed, same labels.
    """
    if not prompts:
        return []
    draw = random.Random(seed).sample(range(len(prompts)), min(FIT, len(prompts)))
    few = [prompts[i] for i in sorted(draw)]
    embed = embed or HashedTfIdf(few)
    vectors = embed(few)
    centres = cluster.kmeans(vectors, min(clusters, len(few)), seed)
    names = _names(few, cluster.assign(vectors, centres), len(centres))
    made: list[str] = []
    for at in range(0, len(prompts), CHUNK):
        made += [names[c] for c in cluster.assign(embed(prompts[at : at + CHUNK]), centres)]
    return made


def _names(texts: Sequence[str], of: np.ndarray, clusters: int) -> list[str]:
    """Each cluster's number and the two words that its texts have most beyond what all texts have."""
    everywhere: Counter[str] = Counter()
    inside: list[Counter[str]] = [Counter() for _ in range(clusters)]
    for text, c in zip(texts, of, strict=True):
        said = {w for w in answers.words(text) if len(w) > _DULL and w.isalpha()}
        everywhere.update(said)
        inside[c].update(said)
    sizes = np.bincount(of, minlength=clusters)
    made = []
    for c, counts in enumerate(inside):
        excess = {w: n - sizes[c] * everywhere[w] / len(texts) for w, n in counts.items()}
        best = sorted(excess, key=lambda w, excess=excess: (-excess[w], w))[:2]
        made.append(" ".join([f"{c:02d}", *best]))
    return made


def by_model(problems: Sequence[Problem], label: Label, batch: int = 64) -> list[Problem]:
    """The problems with the domain that `label` gives each; one that it leaves empty keeps its own.

    Raises ValueError if it gives another number of labels than it was given questions.
    """
    made: list[Problem] = []
    for at in range(0, len(problems), batch):
        few = problems[at : at + batch]
        said = label([p.prompt for p in few])
        if len(said) != len(few):
            raise ValueError(f"the label model gave {len(said)} labels for {len(few)} questions")
        made += [replace(p, domain=" ".join(d.split()) or p.domain) for p, d in zip(few, said, strict=True)]
    return made
