"""Decontamination against a slow, obvious twin that works on words, sets and dictionaries."""

import hashlib
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring import answers
from shoestring.data import dedupe, quality, templates
from shoestring.data.decontaminate import OPERANDS, SAME, decontaminate, expression_key
from shoestring.data.keys import problem_key, procedural_families, skeleton
from shoestring.data.sources import load
from shoestring.records import Problem


def cut(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def twin(training: list[Problem], evaluation: list[Problem]) -> dict[str, str]:
    both = [*training, *evaluation]
    counts: Counter[tuple[str, ...]] = Counter()
    inside: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    sizes = Counter(p.domain for p in training)
    for p in both:
        counts.update(set(cut(answers.words(p.prompt), 4)))
    for p in training:
        inside[p.domain].update(set(cut(answers.words(p.prompt), 4)))
    known = {run for run, n in counts.items() if n > max(5, 0.01 * len(both))}
    for d, found in inside.items():
        if sizes[d] > templates.COUNT:
            known |= {run for run, n in found.items() if n > max(templates.COUNT, templates.SHARE * sizes[d])}

    def telling(p: Problem) -> list[set]:
        words = answers.words(p.prompt)
        own = [True] * len(words)
        for i, run in enumerate(cut(words, 4)):
            if run in known:
                own[i : i + 4] = [False] * 4
        eight = {run for i, run in enumerate(cut(words, 8)) if 2 * sum(own[i : i + 8]) >= 8}
        long = {run for i, run in enumerate(cut(words, 13)) if 4 * sum(own[i : i + 13]) >= 13}
        answer = answers.normalise(p.answer)
        return [eight if sum(own) > 12 else set(), long, {(run, answer) for run in eight}]

    families = procedural_families(both)
    key = lambda p: problem_key(p, p.domain in families)  # noqa: E731
    form = lambda p: skeleton(p.prompt) + " | " + " ".join(sorted(answers.numbers(p.prompt)))  # noqa: E731
    keys, forms = {key(p) for p in evaluation}, {form(p) for p in evaluation}
    expressions = {e for p in evaluation if (e := expression_key(p.prompt))}
    theirs = [set().union(*kind) for kind in zip(*[telling(p) for p in evaluation], strict=True)] or [set()] * 3
    said = {}
    for p in training:
        shared = [mine & other for mine, other in zip(telling(p), theirs, strict=True)]
        if key(p) in keys or form(p) in forms:
            said[p.id] = SAME
        elif expression_key(p.prompt) in expressions:
            said[p.id] = OPERANDS
        elif shared[0]:
            said[p.id] = f"shares 8 words: {' '.join(min(shared[0]))}"
        elif shared[1]:
            said[p.id] = f"shares 13 words: {' '.join(min(shared[1]))}"
        elif shared[2]:
            said[p.id] = f"shares 8 words and the answer: {' '.join(min(run for run, _ in shared[2]))}"
    return said


WORDS = ["a", "bee", "sees", "the", "old", "mill", "by", "the", "quiet", "pond", "near", "3", "or", "12", "tall", "elms"]
TEXT = st.builds(
    lambda start, length, extra, tail: " ".join([*(WORDS * 4)[start : start + length], *extra, tail]),
    st.integers(0, 14), st.integers(1, 30), st.lists(st.sampled_from(WORDS), max_size=8), st.sampled_from(["?", "= 4 + 5", "x"]),
)  # fmt: skip
PROBLEM = st.builds(lambda t, a, d: Problem.make(t, a, domain=d), TEXT, st.sampled_from(["1", "2"]), st.sampled_from(["", "f"]))


@settings(max_examples=120, deadline=None)
@given(st.lists(PROBLEM, max_size=30), st.lists(PROBLEM, max_size=5))
def test_against_sets_of_words(training: list[Problem], evaluation: list[Problem]) -> None:
    found = decontaminate(training, evaluation)
    assert found.dropped == twin(training, evaluation)
    assert found.kept == [p for p in training if p.id not in found.dropped]


def test_thirteen_words_betray_a_short_question() -> None:
    copied = "Maria packs nine blue jars and seven red jars into every wooden crate"
    train = Problem.make(copied, "16")
    test = Problem.make(copied + " . Tell me: jars ?", "9")
    assert list(decontaminate([train], [test]).dropped.values())[0].startswith("shares 8 words: ")
    common = [Problem.make(f"packs nine blue jars and seven red jars {w}", "1") for w in "abcdefghij"]
    said = decontaminate([train, *common], [test]).dropped[train.id]
    assert said.startswith("shares 13 words: ") and "wooden crate" in said


def test_eight_words_and_the_answer() -> None:
    train = [Problem.make("Nine blue jars and seven red jars now make", a) for a in ("16", "17")]
    test = [Problem.make("Say: nine blue jars and seven red jars now are how many", "16.0")]
    assert decontaminate(train, test).kept == train[1:]


def test_a_fraction_in_a_story_is_no_arithmetic_question() -> None:
    story = "Cristine bought a dozen lemons and gave 1/4 of them to her neighbour who lives across the street from her"
    assert expression_key(story) is None and expression_key("Calculate 1/4") is not None


def test_a_domains_template_does_not_wipe_it_in_a_large_pool() -> None:
    ask = "Find the least common multiple of these numbers which are written here after the colon: {} {}"
    family = [Problem.make(ask.format(i, i + 1), str(i % 7), domain="lcm") for i in range(0, 100, 2)]
    test = [Problem.make(ask.format(i, i + 1), str(i % 7), domain="lcm") for i in range(1001, 1009, 2)]
    other = [Problem.make(f"w{i} x{i} y{i} z{i} v{i}", "1", domain="other") for i in range(6000)]
    assert decontaminate([*family, *other], test).kept == [*family, *other]


def test_the_quickstarts_pool_is_what_it_was() -> None:
    """Its published figures rest on this very pool: the rules may grow, what they leave of it may not change unnoticed."""
    recipe = tomllib.loads((Path(__file__).resolve().parents[3] / "recipes" / "quickstart.toml").read_text())
    table = next(s for s in recipe["stage"] if s["use"] == "curate")
    pool = [p for s in table["sources"] for p in load(s, "train")]
    unseen = [p for s in table["against"] for p in load(s, "test")]
    clean = decontaminate(dedupe.exact(quality.filter_problems(pool)[0]), unseen).kept
    assert (len(pool), len(clean)) == (8570, 7930)
    traps = {"syllogism"}
    honest = [p.id for p in clean if p.domain not in traps]
    assert len(honest) == 7810 and hashlib.sha256(" ".join(honest).encode()).hexdigest()[:16] == "e08a95074a6a267f"
