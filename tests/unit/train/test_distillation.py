"""Losses from logits: chunked = full logits by autograd, = the published formulae, = Liger's; top-k's rest; the step."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

import torch.nn.functional as F  # noqa: E402

from shoestring.data.packing import collate, pack  # noqa: E402
from shoestring.records import Document, Example  # noqa: E402
from shoestring.train import losses  # noqa: E402
from shoestring.train.distillation import Divergence, Teaching, linear_divergence  # noqa: E402
from shoestring.train.step import accumulate  # noqa: E402

WAYS = [
    Divergence("forward_kl"), Divergence("reverse_kl"), Divergence("jsd", 0.5), Divergence("jsd", 0.1, 1.7),
    Divergence("forward_kl", temperature=2.5), Divergence("reverse_kl", temperature=0.6),
    Divergence("forward_kl", top_k=5), Divergence("reverse_kl", top_k=1), Divergence("jsd", 0.8, 1.3, 7),
    Divergence("jsd", 0.3, top_k=60), Divergence("forward_kl", top_k=61), Divergence("reverse_kl", top_k=1000),
]  # fmt: skip


def make_examples(seed: int = 0, answers: int = 3, prompts: int = 4) -> list[Example]:
    """Groups of answers to one prompt, the prompts under one instruction, with half weights among them."""
    rng = random.Random(seed)
    instruction = [rng.randrange(61) for _ in range(10)]
    out = []
    for k in range(prompts):
        prompt = instruction * (k % 2) + [rng.randrange(61) for _ in range(9 + 3 * k)]
        for _ in range(answers):
            answer = [rng.randrange(61) for _ in range(rng.randint(1, 14))]
            weight = [1.0, *(rng.choice([1.0, 1.0, 0.0, 0.5]) for _ in answer[1:])]
            out.append(Example((*prompt, *answer), (0.0,) * len(prompt) + tuple(weight), len(prompt)))
    return out


def gradients(model: Any) -> dict[str, Any]:
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def same(a: dict[str, Any], b: dict[str, Any], relative: Any, tolerance: float = 2e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert float(b[name].abs().max()) > 0, f"{name} has no gradient"
        assert relative(a[name], b[name]) < tolerance, name


def plain(student: Any, teacher: Any, d: Divergence) -> Any:
    """The slow twin: [M] from full logits, probabilities written out, every term of the definition."""
    p = torch.softmax(teacher / d.temperature, -1)
    q = torch.softmax(student / d.temperature, -1)
    if d.top_k and d.top_k < p.shape[-1]:
        at = p.topk(d.top_k, -1).indices
        inside = torch.zeros_like(p).scatter(-1, at, 1.0)
        p = torch.cat([p.gather(-1, at), (p * (1 - inside)).sum(-1, keepdim=True)], -1)
        q = torch.cat([q.gather(-1, at), (q * (1 - inside)).sum(-1, keepdim=True)], -1)
    if d.loss == "forward_kl":
        return (p * (p / q).log()).sum(-1)
    if d.loss == "reverse_kl":
        return (q * (q / p).log()).sum(-1)
    m = d.beta * p + (1 - d.beta) * q
    return d.beta * (p * (p / m).log()).sum(-1) + (1 - d.beta) * (q * (q / m).log()).sum(-1)


def made(rows: int, seed: int = 0, vocab: int = 61, dtype: Any = torch.float64) -> tuple[Any, ...]:
    """Student's hidden and head, the teacher's (wider), coefficients."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    h, w, th, tw = normal(rows, 12), normal(vocab, 12) * 0.5, normal(rows, 20), normal(vocab, 20) * 0.4
    return h.requires_grad_(), w.requires_grad_(), th, tw, torch.rand(rows, generator=g) / rows


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK", 8)
    monkeypatch.setattr(losses, "PANEL", 32)


@pytest.mark.parametrize("d", WAYS, ids=str)
@pytest.mark.parametrize("rows", [1, 8, 77])
def test_chunked_is_plain(d: Divergence, rows: int, small_chunks: None, relative: Any) -> None:
    """The twin in fp64; ours sums in fp32 whatever comes in."""
    h, w, th, tw, c = made(rows)
    twin = plain(h @ w.T, th @ tw.T, d)
    (twin * c).sum().backward()
    reference = [h.grad.float(), w.grad.float()]
    ours = [x.detach().float().requires_grad_() for x in (h, w)]
    loss, kl, agree = linear_divergence(ours[0], ours[1], th.float(), tw.float(), c, d)
    assert float(loss.detach()) == pytest.approx(float((twin * c).sum().detach()), rel=1e-5, abs=1e-7)
    (3 * loss).backward()
    for x, y in zip(ours, reference, strict=True):
        assert float(y.abs().max()) > 0 and relative(x.grad, 3 * y) < 2e-5
    whole = plain(h.detach() @ w.detach().T, th @ tw.T, Divergence(temperature=d.temperature))
    assert float((kl - whole.float()).abs().max()) < 1e-5
    assert torch.equal(agree.bool(), (h @ w.T).argmax(-1) == (th @ tw.T).argmax(-1))


def test_a_frozen_head_gets_no_gradient_and_changes_nothing(small_chunks: None) -> None:
    h, w, th, tw, c = (x.detach().float() for x in made(50))
    grads = []
    for trained in (True, False):
        own, head = h.clone().requires_grad_(), w.clone().requires_grad_(trained)
        linear_divergence(own, head, th, tw, c, WAYS[0])[0].backward()
        grads.append(own.grad)
        assert (head.grad is not None) == trained
    assert torch.equal(*grads)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_agrees_with_liger(beta: float, temperature: float, relative: Any) -> None:
    """Its beta 0 and 1 are the forward and the reverse KL, as in TRL's GKDTrainer."""
    chunked = pytest.importorskip(
        "liger_kernel.chunked_loss", reason="the oracle is not installed: pip install --no-deps liger-kernel"
    )
    d = Divergence({0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jsd"), beta if 0 < beta < 1 else 0.5, temperature)  # pyright: ignore[reportArgumentType]
    h, w, th, tw, _ = made(40, dtype=torch.float32)
    theirs = [x.detach().clone().requires_grad_() for x in (h, w)]
    oracle = chunked.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, temperature=temperature, compiled=False
    )
    reference = oracle(theirs[0], theirs[1], th, tw, torch.zeros(40, dtype=torch.long))
    reference.backward()
    loss, *_ = linear_divergence(h, w, th, tw, torch.full((40,), 1 / 40), d)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-5)
    for x, y in zip((h, w), theirs, strict=True):
        assert relative(x.grad, y.grad) < 2e-5


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.7])
def test_is_trls_formula_restated(beta: float) -> None:
    """GKDTrainer.generalized_jsd_loss: log-probabilities, a mixture by log-sum-exp, F.kl_div to both."""
    h, w, th, tw, _ = made(30, 3)
    s, t = (torch.log_softmax(x / 1.4, -1) for x in (h @ w.T, th @ tw.T))
    mixture = torch.logsumexp(torch.stack([s + math.log1p(-beta), t + math.log(beta)]), 0)
    kl = [F.kl_div(mixture, x, reduction="none", log_target=True).sum(-1) for x in (t, s)]
    expected = (beta * kl[0] + (1 - beta) * kl[1]).mean()
    args = [x.detach().float() for x in (h, w, th, tw)]
    loss, *_ = linear_divergence(*args, torch.full((30,), 1 / 30), Divergence("jsd", beta, 1.4))
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd"])
def test_top_k_is_a_lower_bound_that_grows_to_the_whole(loss: Any) -> None:
    args = [x.detach().float() for x in made(64, 5)]
    values = [float(linear_divergence(*args, Divergence(loss, top_k=k))[0]) for k in (1, 4, 16, 40, 60, 0)]
    assert all(a <= b + 1e-7 for a, b in zip(values, values[1:], strict=False)) and values[0] < 0.8 * values[-1]


def test_mass_outside_the_top_is_not_free() -> None:
    """A student right about the order of the teacher's top tokens, but who puts nearly all its mass elsewhere, pays for it:
    renormalised over the top k it would look perfect."""
    teacher = torch.tensor([[5.0, 4.0, 0.0, 0.0, 0.0, 0.0]])
    student = teacher + torch.tensor([[0.0, 0.0, 9.0, 0.0, 0.0, 0.0]])
    one, eye = torch.ones(1), torch.eye(6)
    p, q = torch.softmax(teacher[:, :2], -1), torch.softmax(student[:, :2], -1)
    assert float((p * (p / q).log()).sum()) == 0.0
    value, *_ = linear_divergence(student, eye, teacher, eye, one, Divergence(top_k=2))
    assert float(value) > 3


@pytest.mark.parametrize("d", WAYS, ids=str)
def test_far_apart_stays_finite(d: Divergence) -> None:
    """Probabilities below fp32's smallest: values and gradients go by logarithms."""
    eye = torch.eye(61)
    teacher, student = torch.zeros(2, 61), torch.zeros(2, 61)
    teacher[:, 3], student[:, 50] = 400.0, 300.0
    student.requires_grad_()
    value, kl, _ = linear_divergence(student, eye, teacher, eye, torch.ones(2), d)
    value.backward()
    assert (
        math.isfinite(float(value.detach())) and float(kl.min()) > 100 / d.temperature and bool(student.grad.isfinite().all())
    )


@pytest.mark.parametrize("d", WAYS, ids=str)
def test_the_same_model_is_at_distance_zero(d: Divergence) -> None:
    h, w, _, _, c = (x.detach().float() for x in made(30))
    h.requires_grad_()
    value, kl, agree = linear_divergence(h, w, h, w, c, d)
    value.backward()
    assert abs(float(value.detach())) < 1e-6 and float(kl.abs().max()) == 0.0 and float(agree.min()) == 1.0
    assert float(h.grad.abs().max()) < 1e-7


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"loss": "kl"}, "loss"),
        ({"loss": "jsd", "beta": 1.0}, "beta"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_settings_that_mean_nothing(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Divergence(**bad)


def test_other_vocabularies_are_a_mistake_here() -> None:
    with pytest.raises(ValueError, match="61 logits of the student, 60 of the teacher"):
        h, w, th, tw, c = made(3)
        linear_divergence(h, w, th, tw[:60], c, WAYS[0])


def unpacked(student: Any, teacher: Any, examples: list[Example], d: Divergence) -> tuple[float, dict[str, Any], float]:
    """One sequence at a time, full logits of both."""
    weight_sum = sum(sum(e.weight) for e in examples)
    total = kl = count = 0.0
    for e in examples:
        ids = torch.tensor(e.tokens)
        args = ids, torch.arange(len(ids)), [Document(0, len(ids))]
        with torch.no_grad():
            reference = teacher.logits(*args)[:-1]
        common = min(teacher.output_weight.shape[0], student.output_weight.shape[0])
        logits, weight = student.logits(*args)[:-1, :common], torch.tensor(e.weight[1:])
        loss = (plain(logits, reference[:, :common], d) * weight).sum() / weight_sum
        loss.backward()
        total += float(loss.detach())
        with torch.no_grad():
            each = plain(logits, reference[:, :common], Divergence())
        kl, count = kl + float((each * (weight > 0)).sum()), count + float((weight > 0).sum())
    return total, gradients(student), kl / count


@pytest.mark.parametrize("d", [WAYS[0], WAYS[2], WAYS[8]], ids=str)
@pytest.mark.parametrize("vocab", [61, 64], ids=["one vocabulary", "a padded head"])
def test_packed_is_unpacked_and_any_split_is_one_gradient(d: Divergence, vocab: int, tiny_decoder: Any, relative: Any) -> None:
    student, teacher = tiny_decoder(), tiny_decoder(seed=7, layers=3, hidden=40, heads=10, vocab=vocab, tied=False)
    examples = make_examples()
    loss, twin, _ = unpacked(student, teacher, examples, d)
    teaching = Teaching(teacher, d)
    weight_sum = sum(sum(e.weight) for e in examples)
    alone = [collate(examples, [(0, [i])], weight_sum, len(examples)) for i in range(len(examples))]
    for batches in (pack(examples, 4096), pack(examples, 40), alone):
        result = accumulate(student, batches, teaching)
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.measures.keys() == {"kl", "agreement"}
        same(gradients(student), twin, relative)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_closeness_is_the_plain_mean(tiny_decoder: Any) -> None:
    student, teacher = tiny_decoder(), tiny_decoder(seed=7, hidden=40, heads=10)
    examples = make_examples()
    _, _, kl = unpacked(student, teacher, examples, WAYS[0])
    found = Teaching(teacher, Divergence("reverse_kl", temperature=3.0)).closeness(student, pack(examples, 40))
    assert found[0] == pytest.approx(kl, rel=1e-5) and 0 <= found[1] < 1
    assert found[2] == sum(w > 0 for e in examples for w in e.weight)
    assert Teaching(student, Divergence()).closeness(student, pack(examples, 40))[:2] == (0.0, 1.0)


def test_no_logits_of_the_whole_batch_are_held() -> None:
    """Peak bytes of one tensor: nothing larger than a chunk's logits, apart from the panel and the gradients."""
    seen: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() == 2 and out.shape[1] == 500:
                seen.append(out.shape[0])
            return out

    g = torch.Generator().manual_seed(0)
    rows = 5 * losses.PANEL
    h, w = torch.randn(rows, 4, generator=g).requires_grad_(), torch.randn(500, 4, generator=g).requires_grad_()
    with Watch():
        linear_divergence(h, w, h.detach(), w.detach(), torch.ones(rows) / rows, Divergence("jsd", top_k=9))[0].backward()
    assert seen and max(seen) <= losses.PANEL


@pytest.mark.parametrize("d", [WAYS[0], WAYS[1], WAYS[2], Divergence("forward_kl", top_k=8)], ids=str)
def test_a_student_comes_to_its_teacher(d: Divergence, tiny_decoder: Any) -> None:
    """From random weights to a divergence near zero on the rows that it learns. What top_k leaves out stays as it was."""
    batches = pack(make_examples(3, answers=2, prompts=3), 4096)
    teaching = Teaching(tiny_decoder(seed=9, hidden=40, heads=10, std=0.15), d)
    student = tiny_decoder(seed=2, std=0.15)
    before = teaching.closeness(student, batches)
    optimiser = torch.optim.Adam(student.parameters(), 1e-2)
    reached = []
    for _ in range(120):
        optimiser.zero_grad()
        reached.append(accumulate(student, batches, teaching).loss)
        optimiser.step()
    assert reached[-1] < 0.05 * reached[0]
    kl, agreement, _ = teaching.closeness(student, batches)
    assert kl < (0.6 if d.top_k else 0.05) * before[0] and agreement > max(before[1], 0.8), (before, kl, agreement)
