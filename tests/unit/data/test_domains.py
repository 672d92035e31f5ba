"""Vectors, clusters and domain labels without a network."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data import cluster, domains
from shoestring.data.embed import HashedTfIdf
from shoestring.records import Problem

TOPICS = {
    "geometry": ["triangle", "circle", "angle", "radius", "square", "tangent", "perimeter", "diagonal"],
    "money": ["price", "dollars", "shop", "apples", "pays", "change", "discount", "basket"],
    "logic": ["knight", "liar", "truth", "island", "says", "always", "never", "statement"],
}


def texts(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    made = [(t, " ".join(rng.choices(TOPICS[t], k=12) + ["what", "is", "it", str(rng.randrange(99))])) for t in rng.choices([*TOPICS], k=n)]
    return [t for t, _ in made], [x for _, x in made]


def test_vectors_have_length_one_and_know_topics() -> None:
    topics, said = texts(200)
    vectors = HashedTfIdf(said)(said)
    assert vectors.shape == (200, 128) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    like = vectors @ vectors.T
    same = np.array([[a == b for b in topics] for a in topics])
    assert like[same].mean() > like[~same].mean() + 0.3
    assert not HashedTfIdf(said)(["", "12 3"]).any()


def test_vectors_are_the_projected_weights() -> None:
    """The likeness of two texts is about that of their full TF-IDF vectors, computed with dictionaries."""
    _, said = texts(150, 3)
    counts = [Counter(w for w in t.split() if not w.isdigit()) for t in said]
    has = Counter(w for c in counts for w in c)
    full = [{w: (1 + math.log(n)) * (math.log((1 + len(said)) / (1 + has[w])) + 1e-3) for w, n in c.items()} for c in counts]

    def cosine(a: dict[str, float], b: dict[str, float]) -> float:
        size = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
        return sum(a[w] * b.get(w, 0.0) for w in a) / size

    vectors = HashedTfIdf(said, 1024)(said)
    for i, j in [(0, 1), (2, 3), (4, 9), (5, 5), (10, 60)]:
        assert vectors[i] @ vectors[j] == pytest.approx(cosine(full[i], full[j]), abs=0.12)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 3))
def test_every_vector_goes_to_its_nearest_centre(k: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centres = cluster.kmeans(vectors, k, seed, steps=5)
    assert 1 <= len(centres) <= k and np.allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-4)
    assert np.array_equal(centres, cluster.kmeans(vectors, k, seed, steps=5))
    for vector, c in zip(vectors, cluster.assign(vectors, centres), strict=True):
        assert vector @ centres[c] >= max(vector @ other for other in centres) - 1e-5


def test_clusters_refuse() -> None:
    for vectors, k in ((np.zeros((0, 3)), 2), (np.ones((2, 3)), 0)):
        with pytest.raises(ValueError, match="cannot make"):
            cluster.kmeans(vectors, k)


def test_labels_follow_the_topics() -> None:
    topics, said = texts(400, 1)
    labels = domains.by_clusters(said, 3, seed=2)
    assert labels == domains.by_clusters(said, 3, seed=2) and len(set(labels)) == 3
    best = {label: Counter(t for t, la in zip(topics, labels, strict=True) if la == label).most_common(1)[0] for label in set(labels)}
    assert sum(n for _, n in best.values()) > 390 and len({t for t, _ in best.values()}) == 3
    for label, (topic, _) in best.items():
        assert set(label.split()[1:]) <= set(TOPICS[topic])
    assert domains.by_clusters([], 3) == []
    assert domains.by_clusters(said, 2, embed=lambda t: np.ones((len(t), 1), np.float32)) == ["00 " + labels_of(said)] * 400


def labels_of(said: list[str]) -> str:
    """All texts in one cluster: no word is in excess, so the first by the alphabet name it."""
    return " ".join(sorted({w for t in said for w in t.split() if len(w) > 3 and w.isalpha()})[:2])


def test_a_label_model() -> None:
    problems = [Problem.make(f"q{i}", "1", domain="old") for i in range(70)]
    made = domains.by_model(problems, lambda asked: ["" if q == "q3" else " new\n name " for q in asked])
    assert [p.domain for p in made[:5]] == ["new name"] * 3 + ["old", "new name"] and not domains.needed(made)
    with pytest.raises(ValueError, match="gave 1 labels for 64"):
        domains.by_model(problems, lambda asked: ["x"])
    assert domains.needed([Problem.make("a", "1"), Problem.make("b", "1"), problems[0]])
