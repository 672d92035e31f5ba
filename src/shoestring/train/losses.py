"""Losses over predicted tokens, without ever holding the full logits.

`linear_cross_entropy` computes its gradient in the forward pass, a chunk at a time (each chunk of logits is made once
and dropped). `linear_logprobs` gives per-token log-probabilities for losses that are not linear in them, and makes its
chunks again in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from shoestring import native

CHUNK = 256  # predictions a chunk: 256 x 49,152 logits in fp32 are 50 MB (a GPU takes a whole panel at once)
PANEL = 1024  # predictions whose logit gradients meet the hidden states in one product: 101 MB in bf16


def _chunks(hidden: torch.Tensor) -> list[slice]:
    """The rows of `hidden` in chunks that divide a panel; small ones keep a CPU's caches, large ones keep a GPU busy."""
    size = CHUNK if hidden.device.type == "cpu" else PANEL
    return [slice(i, i + size) for i in range(0, hidden.shape[0], size)]


def _logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(hidden, weight).float()


class _HeadGradient:
    """The gradients of `hidden` [M, D] and `weight` [V, D] from the logits' gradient, chunk by chunk.

    Chunks are gathered into panels, because a product over 1024 rows writes the weight's gradient once where one over
    256 rows writes it four times. Products sum in fp32 inside; only sums of several panels need an fp32 buffer here.
    """

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, trained: bool) -> None:
        self.states, self.weight, self.trained = hidden, weight, trained
        self.hidden = torch.empty_like(hidden)
        rows = PANEL if trained or hidden.device.type != "cpu" else CHUNK
        self._panel = hidden.new_empty(min(rows, hidden.shape[0]), weight.shape[0])
        self._start = 0
        self._sum: torch.Tensor | None = None

    def room(self, rows: slice) -> torch.Tensor:
        """[chunk, V] in the weight's type, for the gradient of `rows`, which come in order; a chunk never crosses a panel's
        end."""
        end = min(rows.stop, self.states.shape[0])
        if not self.trained:
            self._start = rows.start
        return self._panel[rows.start - self._start : end - self._start]

    def add(self, rows: slice, grad: torch.Tensor) -> None:
        """grad [chunk, V] of `rows`: in fp32, or `room` itself, filled."""
        end, narrow = min(rows.stop, self.states.shape[0]), self.room(rows)
        if grad.data_ptr() != narrow.data_ptr():
            narrow.copy_(grad)
        torch.mm(narrow, self.weight, out=self.hidden[rows.start : end])
        if self.trained and (end - self._start == PANEL or end == self.states.shape[0]):
            product = self._panel[: end - self._start].t() @ self.states[self._start : end]
            if self._start == 0:
                self._sum = product if end == self.states.shape[0] else product.float()
            else:
                assert self._sum is not None
                self._sum += product
            self._start = end

    def of_weight(self) -> torch.Tensor | None:
        """[V, D] in the weight's type, once every row was added; None for a frozen weight."""
        if not self.trained:
            return None
        return torch.zeros_like(self.weight) if self._sum is None else self._sum.to(self.weight.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, coefficient):
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = _HeadGradient(hidden, weight, ctx.needs_input_grad[1])
        compiled = native.usable(hidden, weight) and target.is_contiguous() and coefficient.is_contiguous()
        for part in _chunks(hidden):
            if compiled:
                logits = torch.mm(hidden[part], weight.t(), out=gradient.room(part))
                total += native.cross_entropy(logits, target[part], coefficient[part]).sum()
                gradient.add(part, logits)
                continue
            logits = _logits(hidden[part], weight)
            lse = torch.logsumexp(logits, -1)
            at = target[part, None]
            total += ((lse - logits.gather(-1, at)[:, 0]) * coefficient[part]).sum()
            grad = logits.sub_(lse[:, None]).exp_()
            grad.scatter_add_(-1, at, torch.full_like(at, -1, dtype=grad.dtype))
            gradient.add(part, grad.mul_(coefficient[part, None]))
        ctx.save_for_backward(gradient.hidden, gradient.of_weight())
        return total

    @staticmethod
    def backward(ctx, upstream):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, grad_weight = ctx.saved_tensors
        if upstream == 1:  # as it is in a training step: no second copy of the weight's gradient
            return grad_hidden, grad_weight, None, None
        return grad_hidden * upstream, None if grad_weight is None else grad_weight * upstream, None, None


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, coefficient: torch.Tensor
) -> torch.Tensor:
    """sum_i coefficient[i] * -log softmax(hidden[i] @ weight.T)[target[i]], in nats.

    hidden [M, D], weight [V, D], target [M], coefficient [M] fp32 (already divided by the global weight sum).
    """
    return _LinearCrossEntropy.apply(native.filled(hidden), weight, native.filled(target), native.filled(coefficient))  # pyright: ignore[reportReturnType]


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, temperature):
        out = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(out)
        norm = torch.empty_like(out)
        compiled = native.usable(hidden, weight) and target.is_contiguous()
        for part in _chunks(hidden):
            if compiled:
                logits = F.linear(hidden[part], weight)
                out[part], norm[part], entropy[part] = native.logprobs(logits, target[part], temperature)
                continue
            logits = _logits(hidden[part], weight).div_(temperature)
            lse = torch.logsumexp(logits, -1)
            out[part] = logits.gather(-1, target[part, None])[:, 0] - lse
            norm[part] = lse
            p = (logits - lse[:, None]).exp_()
            entropy[part] = lse - (p * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, target, norm)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return out, entropy

    @staticmethod
    def backward(ctx, upstream, _entropy):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, target, norm = ctx.saved_tensors
        scale = upstream / ctx.temperature
        gradient = _HeadGradient(hidden, weight, ctx.needs_input_grad[1])
        compiled = native.usable(hidden, weight) and target.is_contiguous() and scale.is_contiguous()
        for part in _chunks(hidden):
            if compiled:
                logits = torch.mm(hidden[part], weight.t(), out=gradient.room(part))
                native.logprobs_backward(logits, target[part], ctx.temperature, norm[part], scale[part])
                gradient.add(part, logits)
                continue
            grad = _logits(hidden[part], weight).div_(ctx.temperature).sub_(norm[part, None]).exp_().neg_()
            at = target[part, None]
            grad.scatter_add_(-1, at, torch.ones_like(at, dtype=grad.dtype))
            gradient.add(part, grad.mul_(scale[part, None]))
        return gradient.hidden, gradient.of_weight(), None, None


def linear_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(hidden @ weight.T / temperature)[target] [M] fp32 (differentiable) and the entropy [M] (not)."""
    logprob, entropy = _LinearLogprobs.apply(native.filled(hidden), weight, native.filled(target), temperature)  # pyright: ignore[reportGeneralTypeIssues]
    return logprob[: len(target)], entropy[: len(target)]
