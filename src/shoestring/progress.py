"""What a run shows while it works: a line of metrics.jsonl, the live line and the trackers, each with the run's money."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shoestring.lease import Lease
from shoestring.plan import Plan
from shoestring.records import Outcome, StepReport
from shoestring.report.live import Live, Money
from shoestring.report.sinks import Sinks
from shoestring.stages.context import drop_torn, read_lines

METRICS = "metrics.jsonl"
SPAN = 300.0  # seconds over which the burn rate is taken


class Progress:
    """The reports of one attempt. `lines`: of metrics.jsonl, the step that sinks see; it grows over stages and attempts."""

    def __init__(
        self, run_dir: Path, lease: Lease, plan: Plan, live: Live, sinks: Sinks, say: Callable[[str], None],
        usd_per_second: float,
    ) -> None:  # fmt: skip
        self.path, self.lease, self.plan, self.live, self.sinks, self.say = run_dir / METRICS, lease, plan, live, sinks, say
        self.usd_per_second = usd_per_second
        self.lines = 0
        self._reported: dict[str, int] = {}
        self._spent: deque[tuple[float, float]] = deque([(lease.clock(), lease.spent())])
        if self.path.exists():
            drop_torn(self.path)
            for row in read_lines(self.path):
                self.lines += 1
                self._reported[row["stage"]] = max(self._reported.get(row["stage"], 0), row["step"])

    def report(self, report: StepReport) -> None:
        """Post the step's seconds, then tell of it."""
        lease = self.lease
        replayed = report.step <= self._reported.get(report.stage, 0)
        outcome: Outcome = "replayed" if replayed else "useful"
        lease.settle(report.seconds, outcome)
        if notice := report.extra.get("notice"):  # what a stage has to say aloud, such as memory that ran out
            self.say(str(notice))
        money, left = self.money(report)
        row = {
            "t": lease.clock(), "attempt": lease.attempt, "stage": report.stage, "step": report.step, "total": report.total,
            "loss": report.loss, "reward": report.reward, "grad_norm": report.grad_norm, "tokens": report.tokens,
            "useful_tokens": report.useful_tokens, "seconds": round(report.seconds, 4), "flops": report.flops,
            "usd": report.seconds * self.usd_per_second, "usd_spent": money.spent, "usd_left": money.left,
            "usd_per_hour": money.per_hour, "usd_forecast_end": money.forecast, "goodput": round(money.goodput, 4),
            "outcome": outcome, **dict(report.extra),
        }  # fmt: skip
        self._write(row)
        speed = report.tokens / report.seconds if report.seconds > 0 else 0.0
        more = str(report.extra.get("live", ""))
        self.live.update(report.step, report.total, report.loss, report.reward, speed, money, left, more)

    def _write(self, row: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        self.lines += 1
        self.sinks.log(self.lines, row)

    def money(self, report: StepReport) -> tuple[Money, float]:
        """(the run's dollars now and at its end, seconds to go). The end goes by this step's pace and the plan's later
        stages; it may lie above the budget, which then cuts the run short."""
        lease, now = self.lease, self.lease.clock()
        spent = lease.spent()
        self._spent.append((now, spent))
        while len(self._spent) > 2 and now - self._spent[1][0] > SPAN:
            self._spent.popleft()
        then, before = self._spent[0]
        per_hour = (spent - before) / (now - then) * 3600 if now > then else self.usd_per_second * 3600
        here = max(0, report.total - report.step) * report.seconds
        names = [s.name for s in self.plan.stages]
        later = self.plan.stages[names.index(lease.stage) + 1 :] if lease.stage in names else ()
        forecast = spent + here * float(lease.usd_per_second()) + sum(s.usd.mid for s in later)
        return Money(spent, lease.left(), per_hour, forecast, lease.goodput()), here + sum(s.seconds.mid for s in later)
