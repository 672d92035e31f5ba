"""The nouns that every part of shoestring passes to the next. Standard library only.

Rules that hold everywhere (docs/architecture.md says why):

* quantities travel, dollars do not: a `Usage` has a sku and a quantity, only `cost/` multiplies;
* what the machine forced is marked: `Trace.sampled` is false for prompt tokens and forced tokens;
* weights are global: a loss is ``sum(weight * loss) / batch.weight_sum`` over micro-batches and ranks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["useful", "idle", "failed", "preempted", "replayed", "discarded"]
OUTCOMES: tuple[Outcome, ...] = ("useful", "idle", "failed", "preempted", "replayed", "discarded")

LEASE = "machine-second"  # the sku suffix of lease seconds; the full sku is "<machine>/machine-second"


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, what to do. The CLI exits with 2."""


def content_hash(*parts: str) -> str:
    """Short stable hash of text parts (16 hex digits of SHA-256, parts separated unambiguously)."""
    h = hashlib.sha256()
    for p in parts:
        raw = p.encode()
        h.update(len(raw).to_bytes(8, "little"))
        h.update(raw)
    return h.hexdigest()[:16]


@dataclass(frozen=True)
class Problem:
    """A question whose answer can be checked."""

    id: str
    prompt: str
    answer: str
    solution: str | None = None  # a worked derivation that ends in the answer, where the source carries one
    grader: str = "exact"  # the module name of a reward
    grader_args: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    domain: str = ""

    @staticmethod
    def make(prompt: str, answer: str, **rest: Any) -> Problem:
        return Problem(id=content_hash(rest.get("domain", ""), prompt, answer), prompt=prompt, answer=answer, **rest)


@dataclass(frozen=True)
class Trace:
    """One answer to one problem, token by token. `tokens`, `sampled` and `logprobs` have one entry a token.

    `tokens` holds the response only; the prompt stands in `prompt_tokens`. `logprobs` are natural logarithms under
    the distribution that sampled (temperature applied), 0.0 where `sampled` is false.
    """

    problem_id: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    sampled: tuple[bool, ...]
    logprobs: tuple[float, ...]
    stop_reason: Literal["stop", "length", "recorded"]
    model: str
    text: str = ""
    score: float | None = None

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if len(self.sampled) != n or len(self.logprobs) != n:
            marks, logprobs = len(self.sampled), len(self.logprobs)
            raise ValueError(f"trace of {self.problem_id}: {n} tokens, {marks} marks, {logprobs} logprobs")


@dataclass(frozen=True)
class Example:
    """A flat training record: serves SFT, distillation and RL.

    `tokens` is prompt and response together; `weight[i]` is the loss weight of predicting tokens[i] (0 for prompt and
    forced tokens, and always 0 at i = 0). `logprob[i]` is the behaviour policy's, where used.
    """

    tokens: tuple[int, ...]
    weight: tuple[float, ...]
    prompt_length: int
    advantage: float = 0.0
    logprob: tuple[float, ...] | None = None
    problem_id: str = ""

    def __post_init__(self) -> None:
        if len(self.weight) != len(self.tokens):
            raise ValueError(f"example of {self.problem_id}: {len(self.tokens)} tokens, {len(self.weight)} weights")
        if not 0 < self.prompt_length <= len(self.tokens):
            raise ValueError(f"example of {self.problem_id}: {self.prompt_length=} of {len(self.tokens)} tokens")


@dataclass(frozen=True)
class Document:
    """A run of rows in a batch that attend to one another and to nothing else.

    Without branches: plain causal attention over rows start..end. With branches: rows start..start+trunk are a shared
    prompt, and each branch (b_start, b_end) attends to the trunk and causally to itself.
    """

    start: int
    end: int
    trunk: int = 0
    branches: tuple[tuple[int, int], ...] = ()


@dataclass
class Batch:
    """Packed examples. N rows of tokens, M predictions; arrays are numpy.

    tokens [N] int64, positions [N] int64, documents; source [M] the row whose hidden state predicts, target [M] the
    token predicted, weight [M], advantage [M], logprob [M] (behaviour), sequence [M] the example's index.
    weight_sum is **global**: the sum over every micro-batch (and rank) of the step.
    """

    tokens: Any
    positions: Any
    documents: Sequence[Document]
    source: Any
    target: Any
    weight: Any
    advantage: Any
    logprob: Any
    sequence: Any
    weight_sum: float
    sequence_count: int = 0  # global, like weight_sum


@dataclass(frozen=True)
class Usage:
    """A quantity of something that has a price. Never dollars."""

    sku: str
    quantity: float
    unit: str
    stage: str
    attempt: str = ""
    start: float = 0.0  # unix seconds
    end: float = 0.0
    outcome: Outcome = "useful"


@dataclass(frozen=True)
class Intent:
    """The most that the next step can use; yielded before it. The answer sent back is "go" or "stop"."""

    stage: str
    step: int
    usages: tuple[Usage, ...]
    what: str = "step"


@dataclass(frozen=True)
class StepReport:
    """What a step did. `extra` holds the stage's own measures (reward, groups without variance, ...)."""

    stage: str
    step: int
    total: int
    seconds: float
    tokens: int = 0
    useful_tokens: int = 0
    loss: float | None = None
    reward: float | None = None
    grad_norm: float | None = None
    flops: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A directory that exists only when its manifest does (written last, by atomic rename)."""

    path: Path
    stage: str
    step: int
    recipe_hash: str
    parent: str = ""
    final: bool = False


@dataclass(frozen=True)
class Artifact:
    """Something a stage made: `kind` names it ("problems", "traces", "model", "scores", "funnel", "samples")."""

    kind: str
    path: Path
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    model: str
    benchmark: str
    family: str
    n: int
    correct: float
    accuracy: float
    ci95: tuple[float, float]
    commonest_answer_baseline: float | None = None


@dataclass(frozen=True)
class Quantity:
    """A number shown to users, with its interval and where it comes from."""

    low: float
    mid: float
    high: float
    basis: Literal["measured", "simulated", "literature"]

    def __post_init__(self) -> None:
        if not self.low <= self.mid <= self.high:
            raise ValueError(f"{self.low=} {self.mid=} {self.high=} are out of order")

    def scaled(self, factor: float) -> Quantity:
        return Quantity(self.low * factor, self.mid * factor, self.high * factor, self.basis)


@dataclass(frozen=True)
class PriceRef:
    source: str
    date: str
    note: str = ""


@dataclass(frozen=True)
class BillLine:
    """Amounts and prices are decimal strings; `amount` is None where the price is unknown."""

    stage: str
    resource: str
    quantity: str
    unit: str
    unit_price: str | None
    amount: str | None
    outcome: str
    price_ref: PriceRef | None


@dataclass(frozen=True)
class Bill:
    currency: str
    budget: str
    headline: str
    marginal: str
    sunk: tuple[Mapping[str, Any], ...]
    is_lower_bound: bool
    lines: tuple[BillLine, ...]


def to_json(record: Any) -> str:
    """One line of JSON for a record (dataclass) or plain data; paths become strings."""
    data = asdict(record) if hasattr(record, "__dataclass_fields__") else record
    return json.dumps(data, default=str, ensure_ascii=False, separators=(",", ":"))
