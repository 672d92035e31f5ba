"""The step: packed = unpacked, any split one gradient, loss on the answer and its end, chunked losses = plain ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

import torch.nn.functional as F  # noqa: E402

from shoestring import native  # noqa: E402
from shoestring.data.packing import collate, pack  # noqa: E402
from shoestring.records import Document, Example  # noqa: E402
from shoestring.stages import sft  # noqa: E402
from shoestring.train import losses  # noqa: E402
from shoestring.train.losses import CHUNK, PANEL, linear_cross_entropy, linear_logprobs  # noqa: E402
from shoestring.train.policy import Policy  # noqa: E402
from shoestring.train.step import accumulate  # noqa: E402

VOCAB = 61


def make_examples(seed: int = 0, answers: int = 3, prompts: int = 4) -> list[Example]:
    """Groups of answers to one prompt, the prompts under one instruction; forced tokens and half weights among them."""
    rng = random.Random(seed)
    instruction = [rng.randrange(VOCAB) for _ in range(10)]
    out = []
    for k in range(prompts):
        prompt = instruction * (k % 2) + [rng.randrange(VOCAB) for _ in range(9 + 3 * k)]
        for _ in range(answers):
            answer = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 14))]
            weight = [rng.choice([1.0, 1.0, 1.0, 0.0, 0.5]) for _ in answer]
            weight[0] = 1.0
            tokens = (*prompt, *answer)
            behaviour = tuple(-4.0 + rng.uniform(-0.5, 0.5) for _ in tokens)
            out.append(Example(tokens, (0.0,) * len(prompt) + tuple(weight), len(prompt), rng.uniform(-1.5, 1.5), behaviour))
    return out


def gradients(model: Any) -> dict[str, Any]:
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def unpacked(model: Any, examples: Sequence[Example], clip: Policy | None) -> tuple[float, dict[str, Any]]:
    """The slow twin: one sequence at a time, full logits, plain log_softmax, autograd."""
    weight_sum = sum(sum(e.weight) for e in examples)
    total = 0.0
    for e in examples:
        ids = torch.tensor(e.tokens)
        logits = model.logits(ids, torch.arange(len(ids)), [Document(0, len(ids))])
        logp = F.log_softmax(logits[:-1] / (clip.temperature if clip else 1.0), -1).gather(1, ids[1:, None])[:, 0]
        weight = torch.tensor(e.weight[1:])
        if clip is None:
            values = -logp
        else:
            ratio = (logp - torch.tensor((e.logprob or ())[1:])).exp()
            values = -torch.min(ratio * e.advantage, ratio.clamp(1 - clip.low, 1 + clip.high) * e.advantage)
        loss = (values * weight).sum() / weight_sum
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


def same(a: dict[str, Any], b: dict[str, Any], relative: Any, tolerance: float = 2e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert float(b[name].abs().max()) > 0, f"{name} has no gradient"
        assert relative(a[name], b[name]) < tolerance, name


@pytest.mark.parametrize("clip", [None, Policy(0.2, 0.28, 1.0), Policy(0.1, 0.1, 0.7)], ids=["sft", "grpo", "grpo T=0.7"])
@pytest.mark.parametrize("sizes", [{}, {"tied": False, "kv_heads": 3}], ids=["tied", "untied"])
def test_packed_is_unpacked(clip: Policy | None, sizes: dict[str, Any], tiny_decoder: Any, relative: Any) -> None:
    model, examples = tiny_decoder(**sizes), make_examples()
    loss, twin = unpacked(model, examples, clip)
    batches = pack(examples, 4096)
    assert any(d.trunk for b in batches for d in b.documents), "no prompt was shared"
    result = accumulate(model, batches, clip)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.rows < sum(len(e.tokens) for e in examples)
    assert result.predictions == sum(w > 0 for e in examples for w in e.weight)
    same(gradients(model), twin, relative)


@pytest.mark.parametrize("clip", [None, Policy()], ids=["sft", "grpo"])
def test_any_split_into_micro_batches_is_one_gradient(clip: Policy | None, tiny_decoder: Any, relative: Any) -> None:
    model, examples = tiny_decoder(), make_examples(1)
    whole = accumulate(model, pack(examples, 4096), clip)
    reference = gradients(model)
    weight_sum = sum(sum(e.weight) for e in examples)
    alone = [collate(examples, [(0, [i])], weight_sum, len(examples)) for i in range(len(examples))]
    for batches in (pack(examples, 64), pack(examples, 20), alone):
        assert len(batches) > 2
        result = accumulate(model, batches, clip)
        assert result.loss == pytest.approx(whole.loss, rel=1e-5)
        assert result.predictions == whole.predictions
        for key, value in whole.measures.items():
            assert result.measures[key] == pytest.approx(value, rel=1e-4, abs=1e-6)
        same(gradients(model), reference, relative)


def test_a_micro_batch_with_nothing_to_train_changes_nothing(tiny_decoder: Any, relative: Any) -> None:
    model, examples = tiny_decoder(), make_examples(2)
    result = accumulate(model, pack(examples, 4096), Policy())
    reference = gradients(model)
    forced = Example((1, 2, 3), (0.0, 0.0, 0.0), 2, 1.0)
    batches = [*pack(examples, 4096), collate([forced], [(0, [0])], 1.0, 1)]
    again = accumulate(model, batches, Policy())
    assert again.measures == result.measures and again.loss == result.loss
    same(gradients(model), reference, relative)


class Spelling:
    """A stand-in tokenizer: a letter is a token; 0 opens the answer, 1 ends it."""

    end, ends = 1, frozenset([1])

    def chat(self, messages: Any) -> tuple[int, ...]:
        return (*self.encode("".join(m["content"] for m in messages)), 0)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(2 + ord(c) % 50 for c in text)


def test_the_answer_and_its_end_are_trained_and_the_prompt_is_not() -> None:
    messages = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "this"}]
    examples = sft.examples([{"messages": messages, "problem_id": "p"}], Spelling())
    (e,) = examples
    assert e.tokens[-1] == Spelling.end and e.problem_id == "p"
    assert e.weight == (0.0,) * 11 + (1.0,) * 5 and e.prompt_length == 11
    (b,) = pack(examples, 100)
    assert b.target.tolist() == [*Spelling().encode("this"), Spelling.end]  # so the end is predicted,
    assert b.source.tolist() == [10, 11, 12, 13, 14]  # from the last letter, and the first letter from the opening


def test_the_prompt_carries_no_loss(tiny_decoder: Any) -> None:
    """The loss is that of the answer's tokens alone, though the prompt's tokens could not be likelier or less likely."""
    model = tiny_decoder()
    e = Example((5, 6, 7, 8, 9), (0.0, 0.0, 0.0, 1.0, 1.0), 3)
    logits = model.logits(torch.tensor(e.tokens), torch.arange(5), [Document(0, 5)])
    expected = F.cross_entropy(logits[2:4], torch.tensor([8, 9]))
    assert accumulate(model, pack([e], 10)).loss == pytest.approx(float(expected.detach()), rel=1e-5)


def plain_ce(h: Any, w: Any, target: Any, coefficient: Any) -> Any:
    return (F.cross_entropy(h @ w.T, target, reduction="none") * coefficient).sum()


@pytest.mark.parametrize("count", [0, 1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 3])
def test_chunked_cross_entropy_is_the_plain_one(count: int, relative: Any) -> None:
    g = torch.Generator().manual_seed(count)
    h, w = torch.randn(count, 12, generator=g), torch.randn(37, 12, generator=g)
    target, coefficient = torch.randint(0, 37, (count,), generator=g), torch.rand(count, generator=g)
    a = [h.clone().requires_grad_(), w.clone().requires_grad_()]
    b = [h.double().requires_grad_(), w.double().requires_grad_()]
    ours = linear_cross_entropy(a[0], a[1], target, coefficient)
    twin = plain_ce(b[0], b[1], target, coefficient.double())
    assert float(ours.detach()) == pytest.approx(float(twin.detach()), rel=1e-5, abs=1e-9)
    (ours * 2.5).backward()
    (twin * 2.5).backward()
    if count:
        assert all(relative(x.grad.double(), y.grad) < 1e-5 for x, y in zip(a, b, strict=True))
    else:
        assert a[0].grad.shape == (0, 12) and not a[1].grad.any()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("count", [1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunked_logprobs_are_the_plain_ones(count: int, temperature: float, relative: Any) -> None:
    g = torch.Generator().manual_seed(count)
    h, w = torch.randn(count, 12, generator=g), torch.randn(37, 12, generator=g)
    target, upstream = torch.randint(0, 37, (count,), generator=g), torch.randn(count, generator=g)
    a = [h.clone().requires_grad_(), w.clone().requires_grad_()]
    b = [h.double().requires_grad_(), w.double().requires_grad_()]
    ours, entropy = linear_logprobs(a[0], a[1], target, temperature)
    full = F.log_softmax(b[0] @ b[1].T / temperature, -1)
    twin = full.gather(1, target[:, None])[:, 0]
    assert relative(ours.double(), twin) < 1e-5
    assert relative(entropy.double(), -(full.exp() * full).sum(-1)) < 1e-5 and not entropy.requires_grad
    ours.backward(upstream)
    twin.backward(upstream.double())
    assert all(relative(x.grad.double(), y.grad) < 1e-5 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("count", [5, 2 * CHUNK + 3, PANEL + CHUNK + 1, 2 * PANEL])
def test_a_frozen_head_costs_no_gradient_of_its_own(count: int) -> None:
    """As under LoRA. The states' gradient is the one beside a trained head; panels are one chunk then."""
    g = torch.Generator().manual_seed(count)
    h, w = torch.randn(count, 12, generator=g), torch.randn(37, 12, generator=g)
    target, coefficient = torch.randint(0, 37, (count,), generator=g), torch.rand(count, generator=g)
    found = []
    for trained in (True, False):
        a, b = h.clone().requires_grad_(), w.clone().requires_grad_(trained)
        linear_cross_entropy(a, b, target, coefficient).backward()
        logprob, _ = linear_logprobs(a, b, target)
        logprob.sum().backward()
        found.append(a.grad)
        assert (b.grad is not None) == trained
    assert torch.equal(found[0], found[1])
    twin = w.clone().requires_grad_()
    plain_ce(h, twin, target, coefficient).backward()
    again = w.clone().requires_grad_()
    linear_cross_entropy(h.clone().requires_grad_(), again, target, coefficient).backward()
    assert torch.allclose(again.grad, twin.grad, rtol=1e-4, atol=1e-5)


def test_extreme_logits_stay_finite() -> None:
    h = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    w = torch.tensor([[3.0], [-3.0], [0.0]], requires_grad=True)
    linear_cross_entropy(h, w, torch.tensor([1, 1]), torch.ones(2)).backward()
    logprob, entropy = linear_logprobs(h, w, torch.tensor([0, 1]))
    assert torch.isfinite(h.grad).all() and torch.isfinite(logprob).all() and torch.isfinite(entropy).all()


def test_full_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inner = losses._logits

    def watched(h: Any, w: Any) -> Any:
        seen.append(h.shape[0])
        return inner(h, w)

    monkeypatch.setattr(losses, "_logits", watched)
    h, w = torch.randn(3 * CHUNK + 1, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    target = torch.zeros(3 * CHUNK + 1, dtype=torch.long)
    linear_cross_entropy(h, w, target, torch.ones(len(target))).backward()
    assert seen == [CHUNK] * 3 + [native.ROWS]  # once each: the gradient was made with the loss


def test_bf16_losses_keep_fp32_sums(relative: Any) -> None:
    g = torch.Generator().manual_seed(0)
    h = torch.randn(CHUNK + 9, 16, generator=g).bfloat16().requires_grad_()
    w = torch.randn(50, 16, generator=g).bfloat16().requires_grad_()
    target, coefficient = torch.randint(0, 50, (CHUNK + 9,), generator=g), torch.full((CHUNK + 9,), 1 / 300)
    ours = linear_cross_entropy(h, w, target, coefficient)
    wide = [t.detach().float().requires_grad_() for t in (h, w)]
    twin = plain_ce(wide[0], wide[1], target, coefficient)
    ours.backward()
    twin.backward()
    assert ours.dtype == torch.float32 and float(ours.detach()) == pytest.approx(float(twin.detach()), rel=2e-2)
    assert relative(w.grad.float(), wide[1].grad) < 2e-2 and relative(h.grad.float(), wide[0].grad) < 2e-2
