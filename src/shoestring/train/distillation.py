"""Losses between a student's and a teacher's next-token distributions, without ever holding the full logits of either.

A chunk of rows at a time, both sides' logits are made from hidden states and output matrices, compared and dropped; the
gradient is computed there and then, as in `losses.linear_cross_entropy`. Everything after the products is fp32.

With p the teacher and q the student, both softmaxes at one temperature:

* "forward_kl": KL(p || q) (Hinton, Vinyals, Dean 2015, section 2, less the entropy of p and without their factor T^2);
* "reverse_kl": KL(q || p) (Gu et al. 2023, MiniLLM, section 2.1, a token at a time);
* "jsd": beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (Agarwal et al. 2023, GKD, section 2).

top_k compares k + 1 outcomes: the teacher's k likeliest tokens and "any other", which has the mass that is left, on both
sides. Nothing is normalised anew, so mass that the student puts elsewhere costs it, and by the data-processing inequality
the value is never above that over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from shoestring.records import Batch
from shoestring.train.losses import _chunks, _HeadGradient, _logits

Loss = Literal["forward_kl", "reverse_kl", "jsd"]
LOSSES: tuple[Loss, ...] = ("forward_kl", "reverse_kl", "jsd")
BLOCK = 4  # rows compared at once on a CPU: 4 x 49,152 log-probabilities in fp32 are 0.8 MB (a GPU takes 128)


@dataclass(frozen=True)
class Divergence:
    """What is minimised. beta: the teacher's share of the mixture, above 0 and below 1, read by "jsd" alone; top_k 0: all."""

    loss: Loss = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss = {self.loss!r} must be one of {', '.join(LOSSES)}")
        if not 0 < self.beta < 1:
            raise ValueError(
                f"beta = {self.beta} must be above 0 and below 1; its ends are the losses forward_kl and reverse_kl"
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature} must be above zero")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k} is a number of tokens, or 0 for all")


def _compare(lp: torch.Tensor, lq: torch.Tensor, d: Divergence) -> tuple[torch.Tensor, torch.Tensor]:
    """lp, lq [c, o] log-probabilities of the outcomes → the divergence [c] and its gradient by the logits of q [c, o]."""
    p, q = lp.exp(), lq.exp()
    if d.loss == "forward_kl":
        return (p * (lp - lq)).sum(-1), q - p
    if d.loss == "reverse_kl":
        above = lq - lp
        value = (q * above).sum(-1)
        return value, q.mul_(above.sub_(value[:, None]))
    mixture = torch.logaddexp(lp + math.log(d.beta), lq + math.log1p(-d.beta))
    above = lq - mixture
    student = (q * above).sum(-1)
    value = d.beta * (p * (lp - mixture)).sum(-1) + (1 - d.beta) * student
    return value, q.mul_(above.sub_(student[:, None])).mul_(1 - d.beta)


def _compare_top(lp: torch.Tensor, lq: torch.Tensor, d: Divergence) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_compare` over [c, V], with everything outside the teacher's top k as one outcome.

    That outcome's logit is the log-sum-exp of its tokens', so its gradient goes to them by their shares of its mass.
    """
    top, at = lp.topk(d.top_k, -1)
    others = lq.scatter(-1, at, -math.inf)
    left = torch.logsumexp(others, -1, keepdim=True)
    left_of_teacher = torch.logsumexp(lp.scatter(-1, at, -math.inf), -1, keepdim=True)
    value, grad = _compare(torch.cat([top, left_of_teacher], -1), torch.cat([lq.gather(-1, at), left], -1), d)
    spread = others.sub_(left).exp_().mul_(grad[:, -1:])  # 0 at the top tokens
    return value, spread.scatter_(-1, at, grad[:, :-1])


def _blocks(part: slice, hidden: torch.Tensor) -> list[slice]:
    """The rows of a chunk, counted from its start, in blocks whose logits stay in a CPU's caches while they are compared."""
    rows = min(part.stop, hidden.shape[0]) - part.start
    size = BLOCK if hidden.device.type == "cpu" else 128
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


def _log_softmax_(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """In place."""
    if temperature != 1.0:
        logits.div_(temperature)
    return logits.sub_(torch.logsumexp(logits, -1, keepdim=True))


def _kl(lp: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    return (lp.exp() * (lp - lq)).sum(-1)


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, teacher_hidden, teacher_weight, coefficient, d):
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kl = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        agree = torch.empty_like(kl)
        gradient = _HeadGradient(hidden, weight, ctx.needs_input_grad[1])
        partial = 0 < d.top_k < weight.shape[0]
        for part in _chunks(hidden):
            teacher, student = _logits(teacher_hidden[part], teacher_weight), _logits(hidden[part], weight)
            values = torch.empty_like(kl[part])
            for rows in _blocks(part, hidden):
                lp, lq = _log_softmax_(teacher[rows], d.temperature), _log_softmax_(student[rows], d.temperature)
                agree[part][rows] = (lp.argmax(-1) == lq.argmax(-1)).float()
                values[rows], grad = _compare_top(lp, lq, d) if partial else _compare(lp, lq, d)
                kl[part][rows] = _kl(lp, lq) if partial or d.loss != "forward_kl" else values[rows]
                lq.copy_(grad)
            total += (values * coefficient[part]).sum()
            gradient.add(part, student.mul_((coefficient[part] / d.temperature)[:, None]))
        ctx.save_for_backward(gradient.hidden, gradient.of_weight())
        ctx.mark_non_differentiable(kl, agree)
        return total, kl, agree

    @staticmethod
    def backward(ctx, upstream, _kl, _agree):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, grad_weight = ctx.saved_tensors
        if upstream == 1:  # as it is in a training step: no second copy of the weight's gradient
            return grad_hidden, grad_weight, None, None, None, None
        return grad_hidden * upstream, None if grad_weight is None else grad_weight * upstream, None, None, None, None


def linear_divergence(
    hidden: torch.Tensor, weight: torch.Tensor, teacher_hidden: torch.Tensor, teacher_weight: torch.Tensor,
    coefficient: torch.Tensor, divergence: Divergence,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(sum_i coefficient[i] * D_i in nats, KL(p_i || q_i) [M], 1 where the first choices agree [M]).

    hidden [M, D], weight [V, D] of the student, teacher_hidden [M, E], teacher_weight [V, E], coefficient [M] fp32
    (already divided by the global weight sum). The first result is differentiable by hidden and weight; nothing flows
    to the teacher. The second is over the whole vocabulary, whatever `divergence` is, at its temperature.
    """
    if weight.shape[0] != teacher_weight.shape[0]:
        raise ValueError(f"{weight.shape[0]} logits of the student, {teacher_weight.shape[0]} of the teacher")
    with torch.no_grad():
        teacher_hidden, teacher_weight = teacher_hidden.detach(), teacher_weight.detach()
    return _LinearDivergence.apply(hidden, weight, teacher_hidden, teacher_weight, coefficient, divergence)  # pyright: ignore[reportReturnType]


class Teaching:
    """The objective of a distillation step: a frozen `teacher` (a decoder) and what is minimised.

    Families pad their output matrices differently: the ids that both sides have are compared, and the softmaxes are over
    those.
    """

    def __init__(self, teacher: Any, divergence: Divergence) -> None:
        self.teacher, self.divergence = teacher.requires_grad_(False), divergence

    def _states(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's hidden states at the predicting rows [M, E] and its output matrix."""
        head = self.teacher.output_weight
        with torch.no_grad():
            tokens, positions, source = (
                torch.from_numpy(a).to(head.device) for a in (batch.tokens, batch.positions, batch.source)
            )
            return self.teacher.hidden(tokens, positions, batch.documents).index_select(0, source), head

    def loss(
        self, batch: Batch, picked: torch.Tensor, weight: torch.Tensor, coefficient: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """picked [M, D]: the student's hidden states at the predicting rows. The measures: KL a token, agreement."""
        states, head = self._states(batch)
        common = min(weight.shape[0], head.shape[0])
        loss, kl, agree = linear_divergence(
            picked, _first(weight, common), states, _first(head, common), coefficient, self.divergence
        )
        return loss, {"kl": float(kl.mean()), "agreement": float(agree.mean())}

    @torch.no_grad()
    def closeness(self, student: Any, batches: Iterable[Batch]) -> tuple[float, float, int]:
        """(KL(p || q) a predicted token in nats, share with one first choice, tokens), at temperature 1, nothing trained."""
        total = agreed = 0.0
        count = 0
        for b in batches:
            states, head = self._states(b)
            weight = student.output_weight
            tokens, positions, source = (torch.from_numpy(a).to(weight.device) for a in (b.tokens, b.positions, b.source))
            hidden = student.hidden(tokens, positions, b.documents).index_select(0, source)
            common = min(weight.shape[0], head.shape[0])
            for part in _chunks(hidden):
                ours, theirs = _logits(hidden[part], _first(weight, common)), _logits(states[part], _first(head, common))
                for rows in _blocks(part, hidden):
                    lp, lq = _log_softmax_(theirs[rows], 1.0), _log_softmax_(ours[rows], 1.0)
                    total += float(_kl(lp, lq).sum())
                    agreed += float((lp.argmax(-1) == lq.argmax(-1)).sum())
            count += len(b.source)
        return total / max(1, count), agreed / max(1, count), count


def _first(weight: torch.Tensor, rows: int) -> torch.Tensor:
    return weight if weight.shape[0] == rows else weight[:rows]
