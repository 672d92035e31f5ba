"""Every variant of the policy loss: against Liger's pure-torch losses, for any split and packing, and against slow twins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

import answer_groups  # noqa: E402
import numpy as np  # noqa: E402

from shoestring.data.packing import collate, pack  # noqa: E402
from shoestring.records import Document, Example  # noqa: E402
from shoestring.train import policy  # noqa: E402
from shoestring.train.policy import Policy  # noqa: E402
from shoestring.train.step import accumulate  # noqa: E402
from shoestring.train.variants import VARIANTS  # noqa: E402

# our name → Liger's loss_type and level of the ratio; its bnpo with ppo's bounds is ppo's loss where advantages are given
LIGER = {
    "grpo": ("grpo", "token"), "bnpo": ("bnpo", "token"), "dr_grpo": ("dr_grpo", "token"), "dapo": ("dapo", "token"),
    "cispo": ("cispo", "token"), "sapo": ("sapo", "token"), "gspo": ("grpo", "sequence"), "luspo": ("luspo", "sequence"),
    "ppo": ("bnpo", "token"),
}  # fmt: skip
B, T, D, V, MAX_NEW = 6, 11, 16, 50, 20


def batch_of(seed: int) -> dict[str, Any]:
    """Six answers of unequal length, forced tokens among them, and old probabilities far enough away to be held."""
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(T)[None] < torch.tensor([11, 4, 7, 1, 9, 11])[:, None]).float()
    mask[0, 3] = mask[4, 0] = 0
    h, w = torch.randn(B, T, D, generator=g), torch.randn(V, D, generator=g) * 0.5
    ids = torch.randint(0, V, (B, T), generator=g)
    logp = torch.log_softmax(h @ w.T, -1).gather(-1, ids[..., None])[..., 0]
    return dict(
        h=h, w=w, ids=ids, mask=mask, advantage=torch.tensor([1.3, -0.4, 0.0, 2.0, -1.1, 0.2]),
        old=logp + torch.randn(B, T, generator=g) * 0.4, reference=logp + torch.randn(B, T, generator=g) * 0.3,
        correction=torch.rand(B, T, generator=g) + 0.5,
    )  # fmt: skip


def ours(x: dict[str, Any], rows: Sequence[int], leaves: list[Any], goal: Policy, corrected: bool) -> Any:
    """The loss of some of the answers, normalised by all six."""
    from shoestring.train.losses import linear_logprobs

    keep = x["mask"].bool()
    keep = keep & torch.tensor([i in rows for i in range(B)])[:, None]
    sequence = torch.arange(B)[:, None].expand(B, T)[keep]
    weight, total = torch.ones(len(sequence)), float(x["mask"].sum())
    logprob, _ = linear_logprobs(leaves[0][keep], leaves[1], x["ids"][keep], goal.temperature)
    mean = VARIANTS[goal.variant].mean
    c = policy.coefficients(mean, weight, sequence, total, B, goal.max_new)
    return policy.policy_loss(
        logprob, x["old"][keep], x["advantage"][:, None].expand(B, T)[keep], c, goal.low, goal.high, goal.variant, weight,
        sequence, x["correction"][keep] if corrected else None, x["reference"][keep] if goal.kl else None, goal.kl,
    )  # fmt: skip


@pytest.mark.parametrize("variant", LIGER)
@pytest.mark.parametrize(("kl", "corrected"), [(0.0, False), (0.07, False), (0.07, True)], ids=["plain", "kl", "corrected"])
def test_agrees_with_liger_for_any_split(variant: str, kl: float, corrected: bool) -> None:
    chunked = pytest.importorskip(
        "liger_kernel.chunked_loss", reason="the oracle is not installed: pip install --no-deps liger-kernel"
    )
    if variant == "luspo" and (kl or corrected):
        pytest.skip("Liger counts a token's KL and correction by the padded width there; ours has no padding")
    x = batch_of(len(variant))
    v = VARIANTS[variant]
    low, high = v.low or 0.0, 0.1 if variant == "cispo" else v.high or 0.0
    kind, level = LIGER[variant]
    oracle = chunked.LigerFusedLinearGRPOLoss(
        beta=kl, compiled=False, use_ref_model=bool(kl), epsilon_low=low, epsilon_high=1 + high if variant == "cispo" else high,
        loss_type=kind, max_completion_length=MAX_NEW, importance_sampling_level=level,
    )  # fmt: skip
    theirs = [x["h"].clone().requires_grad_(), x["w"].clone().requires_grad_()]
    more = {"ref_per_token_logps": x["reference"]} if kl else {}
    more |= {"vllm_is_ratio": x["correction"]} if corrected else {}
    expected, metrics = oracle(
        theirs[0], theirs[1], x["ids"], x["mask"], x["advantage"], old_per_token_logps=x["old"], **more
    )  # fmt: skip
    expected.backward()
    goal = Policy(low, high, 1.0, variant, MAX_NEW, kl)
    for split in ([range(B)], [[0, 1, 2], [3, 4, 5]], [[i] for i in range(B)]):
        leaves = [x["h"].clone().requires_grad_(), x["w"].clone().requires_grad_()]
        total, held = 0.0, 0.0
        for rows in split:
            loss, measures = ours(x, list(rows), leaves, goal, corrected)
            loss.backward()
            total += float(loss.detach())
            held += measures["clip_fraction"] * float(x["mask"][list(rows)].sum())
        assert total == pytest.approx(float(expected.detach()), abs=1e-6)
        for a, b in zip(leaves, theirs, strict=True):
            assert float((a.grad - b.grad).abs().max()) <= 1e-6
        assert held / float(x["mask"].sum()) == pytest.approx(float(metrics[-1]), abs=1e-6)
    assert v.gate == "soft" or float(metrics[-1]) > 0, "nothing was held: the test shows little"


def examples() -> list[Example]:
    return answer_groups.examples(np.random.default_rng(5), 4, 8, 11)


def twin(model: Any, data: Sequence[Example], goal: Policy) -> Any:
    """One answer at a time with full logits; every variant written out as its paper has it."""
    tokens, total = sum(sum(e.weight) for e in data), 0.0
    for i, e in enumerate(data):
        ids = torch.tensor(e.tokens)
        logits = model.logits(ids, torch.arange(len(ids)), [Document(0, len(ids))])
        trained = [t for t in range(1, len(ids)) if e.weight[t]]
        logp = torch.log_softmax(logits[:-1] / goal.temperature, -1).gather(1, ids[1:, None])[[t - 1 for t in trained], 0]
        old = torch.tensor([e.logprob[t] for t in trained])
        a, n = e.advantage, len(trained)
        each = (logp - old).exp()
        whole = ((logp - old).sum() / n).exp()
        kind = goal.variant

        def held(r: Any, a: float = a) -> Any:
            return torch.min(r * a, r.clamp(1 - goal.low, 1 + goal.high) * a)

        if kind in ("gspo", "luspo"):
            gain = held(whole) * torch.ones(n)
        elif kind == "cispo":
            gain = each.detach().clamp(max=1 + goal.high) * a * logp
        elif kind == "sapo":
            tau = 1.0 if a > 0 else 1.05
            gain = 4 / tau * torch.sigmoid(tau * (each - 1)) * a
        else:
            gain = held(each)
        if "importance" in goal.columns:
            gain = gain * torch.tensor(goal.columns["importance"][i])
        loss = -gain
        if goal.kl:
            above = torch.tensor(goal.columns["reference"][i]) - logp
            loss = loss + goal.kl * (above.exp() - above - 1)
        divisor = {"tokens": tokens, "sequences": n * len(data), "length": len(data) * goal.max_new, "sums": len(data)}
        part = loss.sum() / divisor[VARIANTS[kind].mean]
        part.backward()
        total += float(part.detach())
    return total, {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_and_accumulated_is_one_answer_at_a_time(variant: str, tiny_decoder: Any, relative: Any) -> None:
    data = examples()
    counts = [int(sum(e.weight)) for e in data]
    rng = np.random.default_rng(1)
    columns = {
        "reference": [rng.normal(-4, 0.3, n).astype(np.float32) for n in counts],
        "importance": [rng.uniform(0.5, 1.5, n).astype(np.float32) for n in counts],
    }
    v = VARIANTS[variant]
    goal = Policy(v.low or 0.0, v.high or 0.0, 0.8, variant, MAX_NEW, 0.05, columns=columns)
    model = tiny_decoder()
    expected, gradient = twin(model, data, goal)
    alone = [collate(data, [(0, [i])], float(sum(counts)), len(data)) for i in range(len(data))]
    for batches in (pack(data, 4096), pack(data, 40), alone):
        model.zero_grad(set_to_none=True)
        result = accumulate(model, batches, goal)
        assert result.loss == pytest.approx(expected, rel=2e-5, abs=1e-7)
        for n, p in model.named_parameters():
            assert relative(p.grad, gradient[n]) < 5e-5, n
    assert "kl" in result.measures


def test_scored_forward_is_what_the_update_sees(tiny_decoder: Any) -> None:
    """Log-probabilities of the trainer, by example, and their distribution against the engine's."""
    data, model = examples(), tiny_decoder()
    batches = pack(data, 64)
    found = policy.logprobs(model, batches, 0.8, len(data))
    assert [len(f) for f in found] == [int(sum(e.weight)) for e in data]
    seen: list[Any] = []
    accumulate(model, batches, Policy(temperature=0.8, columns={"old": found}, seen=seen))
    again = [np.zeros(0)] * len(data)
    for b, r in zip(batches, seen, strict=True):
        policy.scatter(b, r.numpy(), again)
    for e, ours_, ratio in zip(data, found, again, strict=True):
        engine = np.array([p for p, w in zip(e.logprob or (), e.weight, strict=True) if w])
        assert np.exp(ours_ - engine) == pytest.approx(ratio, rel=1e-5)
    result = accumulate(model, batches, Policy(temperature=0.8, columns={"old": found}))
    assert result.measures["ratio_outside"] == 0  # against its own probabilities nothing has moved


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_gradient_of_every_estimator_is_that_of_the_kl(estimator: str) -> None:
    """Over all outcomes, weighted by the policy: the expected gradient of the penalty is the gradient of KL(p || q); the
    values of k1 and k3 are the KL itself (k2 is biased)."""
    g = torch.Generator().manual_seed(2)
    z = (torch.randn(7, generator=g, dtype=torch.float64) * 0.7).requires_grad_()
    q = torch.log_softmax(torch.randn(7, generator=g, dtype=torch.float64) * 0.7, -1)
    p = torch.log_softmax(z, -1)
    (kl := (p.exp() * (p - q)).sum()).backward(retain_graph=True)
    true, z.grad = z.grad.clone(), None
    penalty = policy.kl_penalty(estimator, p, q)
    (p.exp().detach() * penalty).sum().backward()
    if estimator == "k3":  # its gradient is that of KL(q || p)
        (true,) = torch.autograd.grad((q.exp() * (q - torch.log_softmax(z, -1))).sum(), z)
    assert z.grad == pytest.approx(true, abs=1e-12)
    if estimator != "k2":
        assert float((p.exp() * penalty).sum().detach()) == pytest.approx(float(kl.detach()), abs=1e-12)


def test_importance_and_its_distribution() -> None:
    old, engine = np.log(np.array([0.5, 0.9, 0.1, 0.2])), np.log(np.array([0.5, 0.3, 0.4, 0.19]))
    assert policy.importance(old, engine, "truncated", 2.0) == pytest.approx([1, 2, 0.25, 0.2 / 0.19], rel=1e-6)
    assert policy.importance(old, engine, "masked", 2.0) == pytest.approx([1, 0, 0, 0.2 / 0.19], rel=1e-6)
    told = policy.distribution(np.exp(old - engine))
    assert told["outside"] == 0.5 and told["max"] == pytest.approx(3.0) and told["min"] == pytest.approx(0.25)
    assert told["mean"] == pytest.approx((1 + 3 + 0.25 + 0.2 / 0.19) / 4, abs=1e-6)
    assert policy.distribution(np.zeros(0)) == {}


def test_a_policy_is_told_by_its_table() -> None:
    for name, v in VARIANTS.items():
        assert v.source and v.mean in ("tokens", "sequences", "length", "sums"), name
    assert replace(Policy(), variant="grpo").low == 0.2 and math.isclose(VARIANTS["dapo"].high or 0, 0.28)
