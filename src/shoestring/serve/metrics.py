"""What the server has done, in Prometheus' text format (exposition formats, version 0.0.4).

Everything here is written and read by the thread of the event loop; what the engine's thread knows comes in as a `Load`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Literal

from shoestring.serve.price import Rate
from shoestring.serve.worker import Load

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Outcome = Literal["ok", "refused", "denied", "limited", "failed", "gone"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "refused", "denied", "limited", "failed", "gone")
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def number(value: float | Decimal) -> str:
    """All digits: a counter that is rounded stands still and then leaps, and its rate is wrong."""
    return str(value) if isinstance(value, int) else repr(float(value))


class Histogram:
    """Counts by upper bound, as Prometheus accumulates them; bounds in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> Iterator[str]:
        seen = 0
        for bound, count in zip((*map(number, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            yield f'{name}_bucket{{le="{bound}"}} {seen}'
        yield f"{name}_sum {number(self.sum)}"
        yield f"{name}_count {seen}"


class Metrics:
    """outcome of a request: ok; refused (it asked what cannot be); denied (no key); limited (429); failed (the engine);
    gone (its client left or stopped reading)."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.requests: Counter[Outcome] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = self.thinking_tokens = 0
        self.answer_seconds = 0.0
        self.first_token, self.between_tokens = Histogram(FIRST), Histogram(BETWEEN)

    def render(self, load: Load, active: int, rate: Rate | None) -> str:
        up = time.monotonic() - self.started
        out: list[str] = []

        def metric(name: str, kind: str, help: str, *samples: tuple[str, float | Decimal]) -> None:
            out.extend((f"# HELP shoestring_{name} {help}", f"# TYPE shoestring_{name} {kind}"))
            out.extend(f"shoestring_{name}{labels} {number(value)}" for labels, value in samples)

        metric("requests_total", "counter", "Requests for an answer that have ended, and denied ones for anything, by outcome.",
               *((f'{{outcome="{o}"}}', self.requests[o]) for o in OUTCOMES))  # fmt: skip
        for name, said, count in (
            ("prompt_tokens_total", "Prompt tokens of requests that got an answer, once whatever their n.", self.prompt_tokens),
            ("cached_prompt_tokens_total", "Prompt tokens of these that were in the cache already.", self.cached_tokens),
            ("completion_tokens_total", "Tokens generated for ended requests, thinking included.", self.completion_tokens),
            ("thinking_tokens_total", "Tokens of these that were thinking.", self.thinking_tokens),
        ):
            metric(name, "counter", said, ("", count))
        metric("answers_active", "gauge", "Answers (n a prompt) accepted and not ended.", ("", active))
        metric("answers_running", "gauge", "Answers decoded together now.", ("", load.running))
        metric("answers_waiting", "gauge", "Answers that wait for room in the batch or the cache.", ("", load.waiting))
        metric("cache_blocks", "gauge", "Blocks of the cache of keys and values, 64 tokens each, by state.",
               ('{state="used"}', load.blocks_used), ('{state="free"}', load.blocks - load.blocks_used))  # fmt: skip
        for name, said, h in (
            ("time_to_first_token_seconds", "From a request's arrival to an answer's first token.", self.first_token),
            ("inter_token_latency_seconds", "Between two tokens of one answer.", self.between_tokens),
        ):
            metric(name, "histogram", said)
            out.extend(h.lines(f"shoestring_{name}"))
        metric("uptime_seconds_total", "counter", "Seconds since the server began, idle ones too.", ("", up))
        metric("answer_machine_seconds_total", "counter", "Seconds that the engine worked for ended requests.",
               ("", self.answer_seconds))  # fmt: skip
        if rate is not None:
            metric("machine_cost_usd_total", "counter", f"Dollars of the machine since the server began ({rate.basis}).",
                   ("", rate.usd(up)))  # fmt: skip
            metric("answer_cost_usd_total", "counter", f"Dollars of these for answer_machine_seconds_total ({rate.basis}).",
                   ("", rate.usd(self.answer_seconds)))  # fmt: skip
        return "\n".join(out) + "\n"
