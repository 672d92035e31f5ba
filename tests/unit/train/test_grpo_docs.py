"""The examples of docs/grpo.md: every number of its tables is computed again."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

import numpy as np  # noqa: E402

from shoestring.train import critic, policy  # noqa: E402
from shoestring.train.variants import VARIANTS  # noqa: E402

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "grpo.md").read_text(encoding="utf-8")


def rows(names: list[str], columns: int) -> dict[str, list[float]]:
    """name → the numbers of its row, of the tables that hold numbers alone."""
    found = {}
    for line in PAGE.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if cells[0] in names and re.fullmatch(r"[-0-9., ]+", "".join(cells[1:])):
            found[cells[0]] = [float(x) for c in cells[1:] for x in c.split(",")]
            assert len(found[cells[0]]) == columns
    return found


def log(*p: float) -> torch.Tensor:
    return torch.tensor(p, dtype=torch.float64).log()


def test_two_tokens_of_every_variant() -> None:
    table = rows(list(VARIANTS), 6)
    assert table.keys() == VARIANTS.keys()
    for name, v in VARIANTS.items():
        told: list[float] = []
        for a in (1.0, -1.0):
            new = log(0.6, 0.45).requires_grad_()
            weight, sequence = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
            c = policy.coefficients(v.mean, weight, sequence, 2.0, 1, 4)
            loss, _ = policy.policy_loss(
                new, log(0.4, 0.5), torch.full((2,), a, dtype=torch.float64), c, v.low or 0.0, v.high or 0.0, name, weight,
                sequence,
            )  # fmt: skip
            loss.backward()
            assert new.grad is not None
            told += [float(loss.detach()), *new.grad.tolist()]
        assert told == pytest.approx(table[name], abs=5.1e-5), name


VALUE = {"sqrt": math.sqrt, "ln": math.log, "__builtins__": {}}
SUM = r"(-?(?:sqrt\(|[\d.(])[-+*/() .\dsqrtln]*) = (-?\d\.\d{4})"  # what is computed, and what it is said to be


def worked() -> dict[str, list[list[tuple[float, float]]]]:
    """name → of A = 1 and of A = -1 the sums: (what an expression is, what the page says it is)."""
    found: dict[str, list[list[tuple[float, float]]]] = {}
    at: list[list[tuple[float, float]]] = []
    for line in PAGE.splitlines():
        parts = re.findall(SUM, line)
        if not parts or not line.startswith("    "):
            continue
        if name := re.match(r"    (\w+) +-?\(", line):
            at = found[name[1]] = []
        if not line.startswith(" " * 30):  # else it goes on from the line before
            at.append([])
        at[-1] += [(eval(e, dict(VALUE)), float(v)) for e, v in parts]
    return found


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "ppo"])
def test_the_steps_of_the_six_by_hand(name: str) -> None:
    """Every sum is right, the first of a line is the table's loss and the others are its gradients, none left out."""
    table = rows(list(VARIANTS), 6)[name]
    lines = worked()[name]
    assert len(lines) == 2
    for (loss, *gradients), row in zip(lines, (table[:3], table[3:]), strict=True):
        for value, said in (loss, *gradients):
            assert value == pytest.approx(said, abs=5.1e-5)
        assert loss[1] == row[0]
        assert {said for _, said in gradients} == {g for g in row[1:] if g}


def test_the_estimators() -> None:
    table = rows(["k1", "k2", "k3"], 4)
    assert len(table) == 3
    for name, row in table.items():
        new = log(0.6, 0.45).requires_grad_()
        each = policy.kl_penalty(name, new, log(0.5, 0.5))
        each.mean().backward()
        assert new.grad is not None
        assert [*each.detach().tolist(), *new.grad.tolist()] == pytest.approx(row, abs=5.1e-5), name


def test_the_critic_of_the_example() -> None:
    advantages, returns = critic.gae([0.0, 1.0], np.array([0.2, 0.5]), 1.0, 0.95)
    assert advantages == pytest.approx([0.775, 0.5]) and returns == pytest.approx([0.975, 1.0])
    v = torch.tensor([0.2, 0.5], dtype=torch.float64)
    loss, _ = critic.value_loss(v, v, torch.from_numpy(returns), torch.full((2,), 0.5, dtype=torch.float64), 0.2)
    assert float(loss) == pytest.approx(0.2127, abs=5e-5)
    assert "= 0.2127" in PAGE and "= 0.775 and 0.5, returns 0.975 and 1" in PAGE


def test_the_table_of_bounds_is_the_codes() -> None:
    for name, v in VARIANTS.items():
        (line,) = [x for x in PAGE.splitlines() if re.match(rf"\| `{name}`", x)]
        bounds = line.split("|")[5].replace("none", "nan").split(",")
        said = [float(b) for b in bounds] if len(bounds) == 2 else [float("nan")] * 2
        assert [x if x == x else None for x in said] == [v.low, v.high], name
