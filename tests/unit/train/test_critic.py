"""PPO's critic against slow twins: the sum that GAE is, plain value losses, one answer at a time."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

import numpy as np  # noqa: E402

from shoestring.data.packing import collate, pack  # noqa: E402
from shoestring.records import Document, Example  # noqa: E402
from shoestring.train.critic import Critic, explained, gae, value_loss, whiten  # noqa: E402


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_weighted_sum_of_what_surprised(gamma: float, lam: float) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 30):
        rewards, values = rng.normal(size=n).tolist(), rng.normal(size=n)
        found, returns = gae(rewards, values, gamma, lam)
        after = [*values[1:], 0.0]
        delta = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
        slow = [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)]
        assert found == pytest.approx(slow) and returns == pytest.approx(found + values)
        if lam == 1.0:
            assert returns == pytest.approx([sum(gamma ** (s - t) * rewards[s] for s in range(t, n)) for t in range(n)])


def test_whitened_over_the_step() -> None:
    made = np.concatenate(whiten([np.array([1.0, 2.0]), np.array([5.0, 8.0, -3.0])]))
    assert made.mean() == pytest.approx(0, abs=1e-6) and made.std(ddof=1) == pytest.approx(1, abs=1e-6)
    assert whiten([np.array([2.0])])[0] == pytest.approx([0.0])
    assert explained([np.array([1.0, 2.0])], [np.array([1.0, 2.0])]) == 1.0


@pytest.mark.parametrize(("value", "before", "target", "expected", "slope"), [
    (1.0, 1.0, 0.0, 0.5, 1.0),  # nothing has moved
    (0.0, 1.0, 0.0, 0.5 * 0.8**2, 0.0),  # went further than 0.2 towards its target: held
    (2.0, 1.0, 0.0, 2.0, 2.0),  # went away from it: no bound
])  # fmt: skip
def test_what_the_value_clip_holds(value: float, before: float, target: float, expected: float, slope: float) -> None:
    v = torch.tensor([value], requires_grad=True)
    loss, _ = value_loss(v, torch.tensor([before]), torch.tensor([target]), torch.ones(1), 0.2)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected) and float(v.grad) == pytest.approx(slope)


def test_packed_and_accumulated_is_one_answer_at_a_time(tiny_decoder: Any, relative: Any) -> None:
    rng = np.random.default_rng(3)
    data = []
    for k in range(3):
        prompt = tuple(int(t) for t in rng.integers(0, 61, 9))
        for n in (2, 5, 1):
            answer = tuple(int(t) for t in rng.integers(0, 61, n))
            weight = (0.0,) * 9 + tuple(1.0 if i != 1 else 0.0 for i in range(n))  # a forced token among them
            data.append(Example(prompt + answer, weight, 9, problem_id=f"p{k}"))
    counts = [int(sum(e.weight)) for e in data]
    columns = {k: [rng.normal(size=n).astype(np.float32) for n in counts] for k in ("value", "return")}
    critic = Critic(tiny_decoder())
    with torch.no_grad():
        critic.value.normal_(generator=torch.Generator().manual_seed(0))
    values, total = [], 0.0
    for i, e in enumerate(data):
        ids = torch.tensor(e.tokens)
        hidden = critic.trunk.hidden(ids, torch.arange(len(ids)), [Document(0, len(ids))])
        at = [t - 1 for t in range(len(ids)) if e.weight[t]]
        v = hidden[at] @ critic.value + critic.offset
        before, target = torch.tensor(columns["value"][i]), torch.tensor(columns["return"][i])
        near = before + (v - before).clamp(-0.2, 0.2)
        loss = 0.5 * torch.maximum((v - target) ** 2, (near - target) ** 2).sum() / sum(counts)
        loss.backward()
        total += float(loss.detach())
        values.append(v.detach().numpy())
    slow = {n: p.grad.clone() for n, p in critic.named_parameters() if p.grad is not None}
    assert "value" in slow and "trunk.blocks.0.qkv" in slow
    alone = [collate(data, [(0, [i])], float(sum(counts)), len(data)) for i in range(len(data))]
    for batches in (pack(data, 4096), pack(data, 30), alone):
        found = critic.values(batches, len(data))
        assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(found, values, strict=True))
        critic.zero_grad(set_to_none=True)
        told = critic.accumulate(batches, columns, 0.2)
        assert told["value_loss"] == pytest.approx(total, rel=1e-5)
        for n, g in slow.items():
            assert relative(dict(critic.named_parameters())[n].grad, g) < 2e-5, n
