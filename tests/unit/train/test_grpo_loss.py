"""The policy loss against Liger's pure-torch GRPO loss and by hand; advantages; what is masked."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring.data.packing import pack  # noqa: E402
from shoestring.records import Trace  # noqa: E402
from shoestring.stages.grpo import Config, advantages, to_example  # noqa: E402
from shoestring.train.losses import linear_logprobs  # noqa: E402
from shoestring.train.policy import policy_loss  # noqa: E402


def ours(h: Any, w: Any, ids: Any, mask: Any, advantage: Any, old: Any, low: float, high: float, t: float) -> tuple:
    keep = mask.bool()
    logprob, _ = linear_logprobs(h[keep], w, ids[keep], t)
    spread = advantage[:, None].expand_as(mask)[keep]
    coefficient = torch.full((int(keep.sum()),), 1.0 / float(mask.sum()))
    return policy_loss(logprob, old[keep], spread, coefficient, low, high)


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
@pytest.mark.parametrize(("low", "high", "temperature"), [(0.2, 0.28, 1.0), (0.1, 0.1, 0.7), (0.3, 1.5, 1.3)])
def test_agrees_with_liger(loss_type: str, low: float, high: float, temperature: float, relative: Any) -> None:
    chunked = pytest.importorskip(
        "liger_kernel.chunked_loss", reason="the oracle is not installed: pip install --no-deps liger-kernel"
    )
    g = torch.Generator().manual_seed(int(high * 100))
    b, t, d, v = 6, 11, 16, 50
    h, w = torch.randn(b, t, d, generator=g), torch.randn(v, d, generator=g) * 0.5
    ids = torch.randint(0, v, (b, t), generator=g)
    lengths = torch.tensor([11, 4, 7, 1, 9, 11])
    mask = (torch.arange(t)[None] < lengths[:, None]).float()
    mask[0, 3] = mask[4, 0] = 0  # forced tokens in the middle and at the start
    advantage = torch.tensor([1.3, -0.4, 0.0, 2.0, -1.1, 0.2])
    with torch.no_grad():
        logp = torch.log_softmax(h @ w.T / temperature, -1).gather(-1, ids[..., None])[..., 0]
        old = logp + torch.randn(b, t, generator=g) * 0.4  # many ratios outside the clip on both sides
    a = [h.clone().requires_grad_(), w.clone().requires_grad_()]
    theirs = [h.clone().requires_grad_(), w.clone().requires_grad_()]
    loss, measures = ours(a[0], a[1], ids, mask, advantage, old, low, high, temperature)
    oracle = chunked.LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=False, use_ref_model=False, epsilon_low=low, epsilon_high=high, loss_type=loss_type,
        temperature=temperature,
    )  # fmt: skip
    reference, metrics = oracle(theirs[0], theirs[1], ids, mask, advantage, old_per_token_logps=old)
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), abs=1e-6)
    loss.backward()
    reference.backward()
    for x, y in zip(a, theirs, strict=True):
        assert float((x.grad - y.grad).abs().max()) <= 1e-6
        assert relative(x.grad, y.grad) < 1e-5
    assert measures["clip_fraction"] == pytest.approx(float(metrics[-1]), abs=1e-6)
    assert measures["clip_fraction"] > 0


def test_two_tokens_by_hand() -> None:
    """A = 1, r = 1.5 is clipped at 1.28 and has no gradient; A = -2, r = 0.9 is inside, gradient -w A r = 0.5 * 2 * 0.9."""
    logprob = torch.tensor([math.log(1.5), math.log(0.9)], requires_grad=True)
    loss, measures = policy_loss(
        logprob, torch.zeros(2), torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5]), 0.2, 0.28
    )
    assert float(loss.detach()) == pytest.approx(-0.5 * 1.28 + 0.5 * 2 * 0.9)
    loss.backward()
    assert logprob.grad.tolist() == pytest.approx([0.0, 0.9])
    assert measures == {"clip_fraction": 0.5, "ratio_outside": 0.5}


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.5, 1.0, -1.28, 0.0),  # too far up already: held
        (0.5, 1.0, -0.5, -0.5),  # a good token that became rare: pulled back without a bound
        (0.5, -1.0, 0.8, 0.0),  # too far down already: held
        (1.5, -1.0, 1.5, 1.5),  # a bad token that became common: pushed down without a bound
        (1.0, 1.0, -1.0, -1.0),
    ],
)
def test_which_side_is_clipped(ratio: float, advantage: float, value: float, slope: float) -> None:
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    loss, _ = policy_loss(logprob, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), 0.2, 0.28)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, rel=1e-6)
    assert float(logprob.grad) == pytest.approx(slope, rel=1e-6)


def test_advantages_are_the_groups_own() -> None:
    rng = random.Random(0)
    for n in (2, 3, 8, 16):
        rewards = [rng.choice([0.0, 0.1, 1.0]) for _ in range(n)]
        rewards[0], rewards[1] = 0.0, 1.0
        r = torch.tensor(rewards, dtype=torch.float64)
        expected = (r - r.mean()) / (r.std() + 1e-4)
        assert advantages(rewards, "std") == pytest.approx(expected.tolist(), rel=1e-9)
        assert advantages(rewards, "none") == pytest.approx((r - r.mean()).tolist(), rel=1e-9)


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_no_variance_no_advantage(scale: str, value: float) -> None:
    assert advantages([value] * 7, scale) == pytest.approx([0.0] * 7, abs=1e-9)


def trace(sampled: tuple[bool, ...]) -> Trace:
    n = len(sampled)
    return Trace("p", (5, 6, 7), tuple(range(10, 10 + n)), sampled, tuple(-0.5 - i for i in range(n)), "stop", "m")


def test_forced_and_prompt_tokens_are_masked() -> None:
    e = to_example(trace((True, False, True, False)), 1.5)
    assert e.tokens == (5, 6, 7, 10, 11, 12, 13) and e.prompt_length == 3
    assert e.weight == (0, 0, 0, 1, 0, 1, 0) and e.advantage == 1.5 and e.problem_id == "p"
    (b,) = pack([e], 100)
    assert b.target.tolist() == [10, 12] and b.weight_sum == 2.0
    assert b.logprob.tolist() == pytest.approx([-0.5, -2.5])  # the behaviour's own number stays beside its token


def test_a_trace_needs_a_mark_and_a_logprob_a_token() -> None:
    with pytest.raises(ValueError, match="marks"):
        Trace("p", (1,), (2, 3), (True,), (0.0, 0.0), "stop", "m")


@pytest.mark.parametrize("bad", [{"group": 1}, {"scale": "max"}, {"steps": 0}, {"lr": 0.0}, {"temperature": 0.0}])
def test_a_config_that_cannot_teach_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Config(**bad)
