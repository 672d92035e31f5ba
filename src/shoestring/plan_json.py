"""The plan as data: `shoestring plan --json` and a run's plan.json. Keys and units: docs/json/plan.md."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

from shoestring import alternatives, left_out
from shoestring.cost.prices import PriceBook
from shoestring.plan import Plan, PlannedStage
from shoestring.records import Quantity

MEMORY = (0.87, 1.15)  # our own measured peaks stood within 15% of the sums (tests/unit/estimate/test_measured_peaks.py)
CPU_NOTE = "0 by definition: this machine has no GPU"


def quantity(q: Quantity) -> dict[str, Any]:
    return {"low": rounded(q.low), "mid": rounded(q.mid), "high": rounded(q.high), "basis": q.basis}


def rounded(x: float) -> float:
    """Six significant digits."""
    return float(f"{x:.6g}")


def gib(size: float) -> float:
    return rounded(size / 2**30)


def _amount(stage: PlannedStage, x: float) -> Quantity:
    low, high = stage.forecast.amounts
    return Quantity(low * x, x, high * x, stage.forecast.counted)


def _memory(stage: PlannedStage) -> Quantity:
    total = float(stage.forecast.memory_bytes)
    return Quantity(MEMORY[0] * total, total, MEMORY[1] * total, "simulated").scaled(2**-30)


def stage_row(s: PlannedStage) -> dict[str, Any]:
    """One stage; `memory_parts` and `fits` are of the host, or of each GPU."""
    f = s.forecast
    row: dict[str, Any] = {
        "use": s.use, "name": s.name, "tokens": quantity(_amount(s, f.tokens)), "flops": quantity(_amount(s, f.flops)),
        "gpu_hours": quantity(s.gpu_hours), "minutes": quantity(s.seconds.scaled(1 / 60)), "usd": quantity(s.usd),
        "memory_gib": quantity(_memory(s)),
        "hardware_flops": quantity(_amount(s, max(f.flops, f.hardware_flops))),
        "flops_parts": {k: rounded(v) for k, v in f.parts.items()},
        "memory_parts": {k: gib(v) for k, v in f.memory.items() if v},
        "fits": fits(s),
    }  # fmt: skip
    if s.storage is not None:
        row["storage_usd"] = quantity(s.storage)
    if s.mended != 1.0:
        row["mended"] = rounded(s.mended)
    if f.notes:
        row["notes"] = list(f.notes)
    return row


def fits(s: PlannedStage) -> dict[str, Any] | None:
    """Whether the stage's peak fits, where, and the largest part if it does not. None where nothing large is held."""
    f, rates = s.forecast, s.facts.rates()
    if f.fits is None:
        return None
    out: dict[str, Any] = {"ok": f.fits, "on": f"each GPU of {rates.where}" if rates.gpus else rates.where}
    if rates.memory_bytes:
        out["available_gib"] = gib(rates.memory_bytes)
    if not f.fits and f.memory:
        part = max(f.memory, key=lambda k: f.memory[k])
        out |= {"part": part, "part_gib": gib(f.memory[part])}
    return out


def totals(plan: Plan) -> dict[str, Any]:
    """Sums over the stages; memory is the largest stage's."""
    stages = plan.stages

    def summed(what: str) -> Quantity:
        each = [_amount(s, float(getattr(s.forecast, what))) for s in stages]
        basis = "literature" if any(q.basis == "literature" and q.mid for q in each) else "measured"
        return Quantity(sum(q.low for q in each), sum(q.mid for q in each), sum(q.high for q in each), basis)

    seconds = plan.total_seconds()
    return {
        "tokens": quantity(summed("tokens")), "flops": quantity(summed("flops")),
        "gpu_hours": quantity(seconds.scaled(plan.rates.gpus / 3600)), "minutes": quantity(seconds.scaled(1 / 60)),
        "usd": quantity(plan.total_usd()),
        "memory_gib": quantity(_memory(max(stages, key=lambda s: s.forecast.memory_bytes))),
    }  # fmt: skip


def to_dict(plan: Plan, book: PriceBook, now: float | None = None) -> dict[str, Any]:
    """plan.json: every quantity as low, mid, high and basis. now: unix seconds, for the recipe's window."""
    from shoestring import plan_terms

    price = book.price(plan.machine)
    machine: dict[str, Any] = {
        "sku": plan.machine, "usd_per_hour": f"{price.amount * 3600:.4f}", "source": price.ref.source,
        "date": price.ref.date, "note": price.ref.note, "count": plan.recipe.machine.count, "gpus": plan.rates.gpus,
    }  # fmt: skip
    if not plan.rates.gpus:
        machine["gpu_hours_note"] = CPU_NOTE
    missing = left_out.of(plan, book)
    return {
        "recipe": plan.recipe.name,
        "budget": f"{plan.recipe.budget} USD",
        "base": {
            "model": plan.recipe.base, "parameters": plan.shape.parameters(), "active": plan.shape.active_parameters(),
        },
        "machine": machine,
        "profile": {k: v for k, v in asdict(plan.profile).items() if k in ("train_flops", "decode_tokens", "basis")},
        "convention": CONVENTION,
        "stages": [stage_row(s) for s in plan.stages],
        "total": totals(plan),
        **plan_terms.to_dict(plan, book, time.time() if now is None else now),
        "least_usd": f"{plan.least_usd():.6f}",
        "over_budget": plan.total_usd().mid > float(plan.recipe.budget),
        "alternatives": [a.to_dict() for a in alternatives.ranked(plan, book)],
        "left_out": [m.text() for m in missing],
        "left_out_priced": [m.to_dict() for m in missing],
    }  # fmt: skip


CONVENTION = (
    "useful FLOPs: 6 a multiplied weight and trained token (4 a frozen one, 6 an adapter's), 2 a weight and written token, "
    "attention over the tokens seen (causal, halved); experts count where a token passes through; recomputation only in "
    "hardware_flops"
)


def write(plan: Plan, book: PriceBook, path: Path, now: float | None = None) -> dict[str, Any]:
    data = to_dict(plan, book, now)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return data


def usd(amount: Decimal | float) -> str:
    """Dollars for a sentence: three digits that count."""
    x = float(amount)
    return f"${x:,.0f}" if x >= 100 else f"${x:.3g}"
