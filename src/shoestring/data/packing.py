"""Examples → packed batches: no padding, no attention across examples, a shared beginning computed once.

Examples whose prompts begin alike become one document with branches (see `records.Document`): eight answers cost one
prompt in training as they do in the rollout, and the system prompt and instruction of a task cost one row each for all
its questions. The gradients are those of the unpacked examples (tests/unit/train/test_step.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoestring.records import Batch, Document, Example
from shoestring.trees import share_beginnings, tree_rows


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit-decreasing bins of indices; an item above capacity gets a bin of its own. Johnson 1973."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for b, left in enumerate(room):
            if sizes[i] <= left:
                bins[b].append(i)
                room[b] -= sizes[i]
                break
        else:
            bins.append([i])
            room.append(capacity - sizes[i])
    return bins


def collate(examples: Sequence[Example], trees: Sequence[tuple[int, Sequence[int]]], weight_sum: float, count: int) -> Batch:
    """One batch of the given trees (trunk length, examples). weight_sum and count are those of the whole step."""
    tokens: list[int] = []
    positions: list[int] = []
    documents: list[Document] = []
    source: list[int] = []
    target: list[int] = []
    weight: list[float] = []
    advantage: list[float] = []
    logprob: list[float] = []
    sequence: list[int] = []
    for trunk, group in trees:
        start = len(tokens)
        tokens += examples[group[0]].tokens[:trunk]
        positions += range(trunk)
        branches = []
        for i in group:
            e = examples[i]
            begin = len(tokens)
            tokens += e.tokens[trunk:]
            positions += range(trunk, len(e.tokens))
            branches.append((begin, len(tokens)))
            for t in range(1, len(e.tokens)):
                if e.weight[t]:
                    source.append(begin + t - 1 - trunk if t > trunk else start + t - 1)
                    target.append(e.tokens[t])
                    weight.append(e.weight[t])
                    advantage.append(e.advantage)
                    logprob.append(e.logprob[t] if e.logprob is not None else 0.0)
                    sequence.append(i)
        documents.append(Document(start, len(tokens), trunk, tuple(branches) if trunk else ()))
    return Batch(
        tokens=np.array(tokens, dtype=np.int64),
        positions=np.array(positions, dtype=np.int64),
        documents=documents,
        source=np.array(source, dtype=np.int64),
        target=np.array(target, dtype=np.int64),
        weight=np.array(weight, dtype=np.float32),
        advantage=np.array(advantage, dtype=np.float32),
        logprob=np.array(logprob, dtype=np.float32),
        sequence=np.array(sequence, dtype=np.int64),
        weight_sum=weight_sum,
        sequence_count=count,
    )


def pack(examples: Sequence[Example], rows: int) -> list[Batch]:
    """Micro-batches of at most `rows` rows each (a longer group stands alone). Raises ValueError without weight.

    As few as `rows` allows, and then as even as they come: the largest one sets the memory's peak, and 1,811 and 601 rows
    cost as much time as 1,206 twice.
    """
    weight_sum = float(sum(sum(e.weight) for e in examples))
    if weight_sum <= 0:
        raise ValueError(f"none of {len(examples)} examples has a trained token")
    sequences = [e.tokens for e in examples]
    prompts = [e.prompt_length for e in examples]
    order = sorted(range(len(examples)), key=lambda i: (sequences[i], i))

    def arrange(level: int) -> tuple[Sequence[tuple[int, Sequence[int]]], list[list[int]], int]:
        """(trees, bins of trees, rows in all) with at most `level` rows a bin."""
        trees = share_beginnings(sequences, prompts, order, level)
        sizes = [tree_rows(sequences, t) for t in trees]
        return trees, first_fit(sizes, level), sum(sizes)

    trees, bins, total = arrange(rows)
    count = len(bins)
    level = -(-total // count)
    while count > 1 and level < rows:
        even = arrange(level)
        if len(even[1]) == count:
            trees, bins, _ = even
            break
        level += max(1, rows // 16)
    return [collate(examples, [trees[i] for i in sorted(b)], weight_sum, len(examples)) for b in bins]
