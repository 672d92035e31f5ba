"""The live line: one a stage, with step, loss or reward, tokens/s, the run's dollars (so far, an hour, left, at the end),
goodput and time left."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Money:
    """A run's US dollars: spent, left under the budget, burnt an hour, expected at the end; goodput: useful step seconds
    over paid seconds, 0 to 1."""

    spent: float
    left: float
    per_hour: float
    forecast: float
    goodput: float

    def __str__(self) -> str:
        over = " (over: it will be cut short)" if self.forecast > self.spent + self.left else ""
        return (
            f"${self.spent:.4f} at ${self.per_hour:.3g}/h left ${self.left:.4f} end ${self.forecast:.4f}{over} "
            f"useful {self.goodput:.0%}"
        )


class Live:
    """Shows progress on `console` (rich). Without a terminal it prints a plain line now and then."""

    def __init__(self, console: Any, every: float = 15.0) -> None:
        self.console, self.every = console, every
        self._progress: Any = None
        self._task: Any = None
        self._printed = 0.0
        self._stage = ""

    def begin(self, stage: str, total: int | None = None) -> None:
        self.end()
        self._stage, self._printed = stage, time.monotonic()
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("[bold]{task.description:<12}"), BarColumn(bar_width=16), TextColumn("{task.fields[line]}"),
                console=self.console, transient=False,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task(stage, total=total, line="loading")
        else:
            self.console.print(f"{stage}: started", highlight=False)

    def update(
        self, step: int, total: int, loss: float | None, reward: float | None, tokens_per_second: float,
        money: Money, seconds_left: float, more: str = "",
    ) -> None:  # fmt: skip
        """more: what the stage itself has to tell, after the reward."""
        what = []
        if loss is not None and reward is None:
            what.append(f"loss {loss:.3f}")
        if reward is not None:
            what.append(f"reward {reward:.2f}")
        if more:
            what.append(more)
        line = " ".join(
            [
                f"{step}/{total}",
                *what,
                f"{tokens_per_second:.0f} tok/s",
                str(money),
                clock(seconds_left),
            ]
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=step, total=total, line=line)
        elif time.monotonic() - self._printed > self.every or step == total:
            self._printed = time.monotonic()
            self.console.print(f"{self._stage}: {line}", highlight=False)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def clock(seconds: float) -> str:
    """125 → "2:05 to go"."""
    whole = max(0, int(seconds + 0.5))
    return f"{whole // 60}:{whole % 60:02d} to go"
