"""A step that several ranks share out: their losses and gradients, summed, are those of one rank. Nothing here but the sums over
the whole step (`weight_sum`, `sequence_count`) crosses ranks; the advantages are made of whole groups before."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

import answer_groups  # noqa: E402
import numpy as np  # noqa: E402
import torch.distributed as dist  # noqa: E402

from shoestring.data.packing import pack  # noqa: E402
from shoestring.records import Batch, Example  # noqa: E402
from shoestring.train.critic import Critic  # noqa: E402
from shoestring.train.policy import Policy  # noqa: E402
from shoestring.train.step import accumulate  # noqa: E402
from shoestring.train.variants import VARIANTS  # noqa: E402

ROWS = 48  # several micro-batches a rank
Sum = Callable[[list[float]], list[float]]
COLUMNS = ("reference", "importance", "advantage", "value", "return")


def step() -> tuple[list[Example], dict[str, list[Any]]]:
    """Seven groups of unequal answers with forced tokens, and the columns of the step."""
    rng = np.random.default_rng(11)
    out = answer_groups.examples(rng, 7, 5, 13)
    counts = [int(sum(e.weight)) for e in out]
    columns: dict[str, list[Any]] = {k: [rng.normal(-1, 1, n).astype(np.float32) for n in counts] for k in COLUMNS}
    columns["reference"] = [c - 3 for c in columns["reference"]]
    columns["importance"] = [np.abs(c) + 0.5 for c in columns["importance"]]
    return out, columns


def share(data: Sequence[Example], ranks: int, rank: int) -> list[int]:
    """Whole groups in turn, with more of them for the last rank."""
    return [i for i, e in enumerate(data) if min(int(e.problem_id[1:]) % (ranks + 1), ranks - 1) == rank]


def packed(own: Sequence[Example], every: Sum) -> list[Batch]:
    """A rank's micro-batches, counted by the whole step."""
    weight_sum, count = every([float(sum(sum(e.weight) for e in own)), float(len(own))])
    return [replace(b, weight_sum=weight_sum, sequence_count=round(count)) for b in pack(own, ROWS)]


def policy(variant: str, model: Any, ranks: int, rank: int, every: Sum) -> tuple[float, dict[str, Any]]:
    data, columns = step()
    at = share(data, ranks, rank)
    v, names = VARIANTS[variant], ("reference", "importance", *(["advantage"] if VARIANTS[variant].critic else []))
    own = {k: [columns[k][i] for i in at] for k in names}
    goal = Policy(v.low or 0.0, v.high or 0.0, 0.8, variant, 20, 0.05, columns=own)
    model.zero_grad(set_to_none=True)
    result = accumulate(model, packed([data[i] for i in at], every), goal)
    return result.loss, {n: p.grad.clone() for n, p in model.named_parameters()}


def values(model: Any, ranks: int, rank: int, every: Sum) -> tuple[float, dict[str, Any]]:
    data, columns = step()
    at = share(data, ranks, rank)
    critic = Critic(model)
    with torch.no_grad():
        critic.value.copy_(torch.linspace(-1, 1, len(critic.value)))
    model.zero_grad(set_to_none=True)
    own = {k: [columns[k][i] for i in at] for k in ("value", "return")}
    told = critic.accumulate(packed([data[i] for i in at], every), own, 0.2)
    return told["value_loss"], {n: p.grad.clone() for n, p in critic.named_parameters() if p.grad is not None}


def computed(variant: str, model: Any, ranks: int, rank: int, every: Sum) -> tuple[float, dict[str, Any]]:
    return values(model, ranks, rank, every) if variant == "critic" else policy(variant, model, ranks, rank, every)


def whole(ranks: int) -> Sum:
    """What an all-reduce over the ranks gives, from the step itself."""
    data = step()[0]
    assert sorted(i for r in range(ranks) for i in share(data, ranks, r)) == list(range(len(data)))
    return lambda _: [float(sum(sum(e.weight) for e in data)), float(len(data))]


def same(found: tuple[float, dict[str, Any]], alone: tuple[float, dict[str, Any]]) -> None:
    """The loss to 1e-6 of it (or less than 1e-6 off); gradients to what another order of fp32 sums leaves, against the largest one."""
    assert found[0] == pytest.approx(alone[0], rel=1e-6, abs=1e-6)
    assert found[1].keys() == alone[1].keys()
    largest = max(float(g.abs().max()) for g in alone[1].values())
    for n, g in alone[1].items():
        assert float((found[1][n] - g).abs().max()) <= 3e-6 * largest, n


@pytest.mark.parametrize("variant", [*VARIANTS, "critic"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_shards_add_up_to_one_rank(variant: str, ranks: int, tiny_decoder: Any) -> None:
    alone = computed(variant, tiny_decoder(), 1, 0, whole(1))
    parts = [computed(variant, tiny_decoder(), ranks, r, whole(ranks)) for r in range(ranks)]
    assert len({round(p[0], 9) for p in parts}) == ranks, "the shards are not different ones"
    summed = {n: sum(p[1][n] for p in parts) for n in alone[1]}
    same((sum(p[0] for p in parts), summed), alone)
    own = [computed(variant, tiny_decoder(), ranks, r, lambda x: x) for r in range(ranks)]
    assert sum(p[0] for p in own) / ranks != pytest.approx(alone[0], rel=1e-4), "means of ranks' own means would do as well"


def _all_reduced(x: list[float]) -> list[float]:
    t = torch.tensor(x, dtype=torch.float64)
    dist.all_reduce(t)
    return t.tolist()


def _rank(rank: int, ranks: int, model: Any, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=ranks)
    found = {}
    for variant in (*VARIANTS, "critic"):
        loss, gradients = computed(variant, model, ranks, rank, _all_reduced)
        for g in gradients.values():
            dist.all_reduce(g)
        found[variant] = (_all_reduced([loss])[0], gradients)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_rank(tiny_decoder: Any, tmp_path: Path) -> None:
    """The same with real processes: gloo sums the counts before the step and the gradients after it."""
    if not dist.is_available() or not dist.is_gloo_available() or not hasattr(os, "fork"):
        pytest.skip("torch has no gloo here, or the system cannot fork")
    children = torch.multiprocessing.get_context("fork")
    made = [children.Process(target=_rank, args=(r, 2, tiny_decoder(), tmp_path)) for r in range(2)]
    for p in made:
        p.start()
    for p in made:
        p.join(120)
    assert [p.exitcode for p in made] == [0, 0]
    first, second = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    for variant in (*VARIANTS, "critic"):
        same(first[variant], computed(variant, tiny_decoder(), 1, 0, whole(1)))
        assert all(torch.equal(g, second[variant][1][n]) for n, g in first[variant][1].items())
