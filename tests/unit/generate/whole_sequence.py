"""The slow twin of generation: the whole sequence anew for every token, without a cache, a batch or a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoestring.records import Document

if TYPE_CHECKING:
    from shoestring.generate.engine import Completion, Request


def next_logits(model: Any, tokens: tuple[int, ...]) -> Any:
    """(1, vocab): of the token after these."""
    import torch

    ids = torch.tensor(tokens)
    with torch.no_grad():
        return model.logits(ids, torch.arange(len(ids)), [Document(0, len(ids))])[-1:]


def twin(model: Any, r: Request) -> Completion:
    """What the engine has to answer to this request."""
    from shoestring.generate.engine import Completion
    from shoestring.generate.sampling import choose, uniform

    tokens: tuple[int, ...] = ()
    logprobs: list[float] = []
    while len(tokens) < r.max_new:
        token, logprob = choose(next_logits(model, r.prompt + tokens), [r.temperature], [uniform(r.seed, len(tokens))])
        tokens += (int(token),)
        logprobs.append(float(logprob))
        if tokens[-1] in r.stop:
            return Completion(tokens, tuple(logprobs), "stop")
    return Completion(tokens, tuple(logprobs), "length")
