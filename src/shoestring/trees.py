"""Which neighbouring sequences share a beginning: used by the packer and by the engine's prefill. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST = 8  # a shared beginning of fewer tokens is not worth a branch
KEEP = 0.75  # joining may cut the trunk to this share of it, so that near-equal beginnings stay together


def common_prefix(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    """Length of the common beginning, at most `limit`."""
    if a[:limit] == b[:limit]:
        return min(limit, len(a), len(b))
    n = 0
    for x, y in zip(a[:limit], b[:limit], strict=False):
        if x != y:
            break
        n += 1
    return n


def share_beginnings(
    sequences: Sequence[tuple[int, ...]], shareable: Sequence[int], order: Sequence[int], rows: int
) -> list[tuple[int, list[int]]]:
    """Trees (trunk length, members) over `order`, each of at most `rows` rows (a longer sequence stands alone).

    shareable[i]: how many leading tokens of sequence i may be part of a trunk. A neighbour joins unless it would cut
    the trunk, or would itself share much more with the neighbour after it: eight answers to one prompt stay one tree,
    and so do many questions with one instruction.
    """
    trees: list[tuple[int, list[int]]] = []
    size = 0
    order = list(order)
    for place, i in enumerate(order):
        n = len(sequences[i])
        if trees:
            trunk, members = trees[-1]
            first = members[0]
            limit = min(shareable[i], shareable[first] if len(members) == 1 else trunk)
            shared = common_prefix(sequences[first], sequences[i], limit)
            better = trunk
            if place + 1 < len(order):
                after = order[place + 1]
                better = max(better, common_prefix(sequences[i], sequences[after], min(shareable[i], shareable[after])))
            grown = size + n + (len(members) - 1) * trunk - len(members) * shared
            if shared >= SHORTEST and shared >= KEEP * better and grown <= rows:
                trees[-1] = (shared, [*members, i])
                size = grown
                continue
        trees.append((0, [i]))
        size = n
    return trees


def tree_rows(sequences: Sequence[Sequence[int]], tree: tuple[int, Sequence[int]]) -> int:
    """Rows that a tree takes in a pack."""
    trunk, members = tree
    return sum(len(sequences[m]) for m in members) - (len(members) - 1) * trunk
