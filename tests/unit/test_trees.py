"""Shared beginnings: what joins really begins alike, nothing is lost, and no tree outgrows its rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoestring.trees import KEEP, SHORTEST, common_prefix, share_beginnings, tree_rows

ids = st.integers(0, 2)
few = st.lists(ids, max_size=12).map(tuple)


@given(few, few, st.integers(0, 15))
def test_common_prefix_is_the_longest_within_the_limit(a: tuple[int, ...], b: tuple[int, ...], limit: int) -> None:
    n = common_prefix(a, b, limit)
    assert n <= min(limit, len(a), len(b)) and a[:n] == b[:n]
    assert n == min(limit, len(a), len(b)) or a[n] != b[n]


@st.composite
def families(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[int], int]:
    """Sequences of which many begin alike, how much of each may be shared, and a bound on rows."""
    stems = draw(st.lists(st.lists(ids, min_size=6, max_size=30), min_size=1, max_size=3))
    sequences = [
        (*stem[: draw(st.integers(1, len(stem)))], *draw(st.lists(ids, max_size=6)))
        for stem in (stems[draw(st.integers(0, len(stems) - 1))] for _ in range(draw(st.integers(1, 14))))
    ]
    return sequences, [draw(st.integers(0, len(s))) for s in sequences], draw(st.integers(5, 120))


@given(families())
def test_trees_hold_every_sequence_once_and_share_only_what_is_common(case: tuple) -> None:
    sequences, shareable, rows = case
    order = sorted(range(len(sequences)), key=lambda i: (sequences[i], i))
    trees = share_beginnings(sequences, shareable, order, rows)
    assert [m for _, members in trees for m in members] == order
    for trunk, members in trees:
        assert trunk >= SHORTEST if len(members) > 1 else trunk == 0
        assert len({sequences[m][:trunk] for m in members}) == 1
        assert all(trunk <= shareable[m] for m in members)
        used = tree_rows(sequences, (trunk, members))
        assert used == trunk + sum(len(sequences[m]) - trunk for m in members)
        assert used <= rows or len(members) == 1


def sharing(sequences: list[tuple[int, ...]], rows: int = 10_000) -> list[tuple[int, list[int]]]:
    return share_beginnings(sequences, [len(s) for s in sequences], range(len(sequences)), rows)


def test_answers_to_one_prompt_are_one_tree() -> None:
    prompt = tuple(range(20))
    found = share_beginnings([(*prompt, 100 + i) for i in range(8)], [20] * 8, range(8), 1000)
    assert found == [(20, list(range(8)))]


def test_a_short_shared_beginning_is_left_alone() -> None:
    assert sharing([(*range(SHORTEST - 1), 50), (*range(SHORTEST - 1), 60)]) == [(0, [0]), (0, [1])]
    assert sharing([(*range(SHORTEST), 50), (*range(SHORTEST), 60)]) == [(SHORTEST, [0, 1])]


def test_two_groups_under_one_instruction_stay_two_trees() -> None:
    """Joining would cut the trunk of a group from 40 to 10."""
    instruction = tuple(range(10))
    a, b = instruction + (200,) * 30, instruction + (300,) * 30
    found = sharing([(*a, 1), (*a, 2), (*b, 1), (*b, 2)])
    assert found == [(40, [0, 1]), (40, [2, 3])]
    assert KEEP * 40 > 10


def test_rows_bound_a_tree() -> None:
    prompt = tuple(range(20))
    found = sharing([(*prompt, 100 + i, 0) for i in range(10)], rows=28)
    assert [len(m) for _, m in found] == [4, 4, 2]
