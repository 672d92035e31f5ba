"""What an answer costs. This package knows no prices: whoever starts the server hands a function over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal


@dataclass(frozen=True)
class Rate:
    """usd: machine seconds → dollars. source: whose price that is, in one line. basis "measured": the machine's own rate,
    so that dollars are as good as the seconds; "estimate": the price of a comparable machine."""

    usd: Callable[[float], Decimal]
    source: str
    basis: Literal["measured", "estimate"]

    def about(self) -> dict[str, Any]:
        return {"usd_per_hour": plain(self.usd(3600.0)), "basis": self.basis, "source": self.source}

    def cost(self, seconds: float) -> dict[str, Any]:
        return {"usd": plain(self.usd(seconds)), "basis": self.basis, "source": self.source}


def plain(usd: Decimal) -> str:
    """Six significant digits without an exponent: money stays text in JSON, because a float is not what was computed."""
    return f"{Decimal(f'{usd:.6g}'):f}"
