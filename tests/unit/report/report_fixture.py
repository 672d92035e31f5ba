"""A synthetic run folder with every file that a finished run leaves. The numbers are invented; the shapes are not."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

FAMILIES = ("sums", "products", "lcm", "number_format", "number_sequence")
STAGES = ("curate", "distill", "sft", "grpo", "evaluate")
MACHINE = {
    "sku": "cpu-2vcpu",
    "usd_per_hour": "0.0832",
    "source": "AWS EC2 on-demand t3.large, us-east-1",
    "date": "2026-11-20",
    "note": "a comparable machine's list price; yours may differ",
}
REF = {"source": MACHINE["source"], "date": MACHINE["date"]}


def q(mid: float, basis: str = "measured", wide: float = 0.25) -> dict[str, Any]:
    return {"low": mid * (1 - wide), "mid": mid, "high": mid * (1 + wide), "basis": basis}


def plan() -> dict[str, Any]:
    rows = {
        "curate": (60_000, 1.6),
        "distill": (190_000, 2.4),
        "sft": (420_000, 2.1),
        "grpo": (310_000, 2.6),
        "evaluate": (90_000, 1.1),
    }
    stages = []
    for name, (tokens, minutes) in rows.items():
        basis = "simulated" if name == "grpo" else "measured"
        stages.append(
            {
                "use": name,
                "name": name,
                "tokens": q(tokens, basis),
                "flops": q(tokens * 8e8, basis),
                "gpu_hours": q(0.0),
                "minutes": q(minutes, basis),
                "usd": q(minutes / 60 * 0.0832, basis),
                "memory_gib": q(2.4, basis, 0.1),
                "hardware_flops": q(tokens * 8e8, basis),
                "flops_parts": {},
                "memory_parts": {"weights": 0.5},
                "fits": None,
            }
        )
    left = [
        "training the base model SmolLM2-135M (2 trillion tokens, paid by others)",
        "people's time to write recipes and read results",
        "earlier runs on this machine, and the machine outside the run",
    ]
    total = {
        k: {e: sum(s[k][e] for s in stages) for e in ("low", "mid", "high")} | {"basis": "simulated"}
        for k in ("tokens", "flops", "gpu_hours", "minutes", "usd")
    } | {"memory_gib": q(2.4, "simulated", 0.1)}
    return {
        "recipe": "x", "base": {"model": "smollm2-135m", "parameters": 134_515_008}, "convention": "6 N",
        "stages": stages, "total": total, "left_out": left, "left_out_priced": [{"what": w, "usd": None, "note": ""} for w in left],
        "machine": MACHINE | {"count": 1, "gpus": 0}, "budget": "0.05 USD", "least_usd": "0.005000", "over_budget": False,
        "alternatives": [],
    }  # fmt: skip


def bill() -> dict[str, Any]:
    seconds = {
        ("curate", "useful"): 88,
        ("curate", "idle"): 6,
        ("distill", "useful"): 151,
        ("sft", "useful"): 139,
        ("sft", "idle"): 4,
        ("grpo", "useful"): 118,
        ("grpo", "replayed"): 9,
        ("grpo", "failed"): 2,
        ("evaluate", "useful"): 61,
    }
    lines: list[dict[str, Any]] = []
    for (stage, outcome), s in seconds.items():
        amount = f"{s * 0.0832 / 3600:.8f}"
        lines.append(
            {
                "stage": stage,
                "resource": "this/machine-second",
                "quantity": str(s),
                "unit": "second",
                "unit_price": "0.00002311",
                "amount": amount,
                "outcome": outcome,
                "price_ref": REF | {"note": MACHINE["note"]},
            }
        )
    marginal = sum(float(x["amount"]) for x in lines)
    waste = sum(float(x["amount"]) for x in lines if x["outcome"] in ("replayed", "failed"))
    sunk = [
        {
            "what": "base model",
            "low": "1000",
            "high": "30000",
            "source": "64 H100s for days, at list prices",
            "date": "2025-02-05",
            "note": "an estimate",
        },
        {"what": "people", "low": None, "high": None, "source": "unknown", "date": "", "note": ""},
    ]
    return {
        "currency": "USD",
        "budget": "0.05",
        "headline": {"total": f"{marginal - waste:.8f}"},
        "marginal": {"total": f"{marginal:.8f}"},
        "sunk": sunk,
        "is_lower_bound": False,
        "lines": lines,
    }


def wilson(p: float, n: int) -> list[float]:
    z = 1.96
    mid = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [mid - half, mid + half]


ACCURACY = {
    ("base", "strict"): (0.22, 0.08, 0.15, 0.31, 0.10),
    ("base", "lenient"): (0.25, 0.10, 0.16, 0.33, 0.12),
    ("base-few-shot", "strict"): (0.27, 0.12, 0.17, 0.36, 0.16),
    ("base-few-shot", "lenient"): (0.28, 0.13, 0.18, 0.38, 0.17),
    ("sft", "strict"): (0.81, 0.48, 0.46, 0.83, 0.38),
    ("sft", "lenient"): (0.82, 0.48, 0.46, 0.83, 0.39),
    ("grpo", "strict"): (0.90, 0.55, 0.52, 0.91, 0.44),
    ("grpo", "lenient"): (0.90, 0.55, 0.53, 0.91, 0.44),
}
USD = {"base": 0.0021, "base-few-shot": 0.0024, "sft": 0.0089, "grpo": 0.0133}


def scores() -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []

    def add(model: str, how: str, benchmark: str, family: str, p: float, n: int, always: float | None) -> None:
        row = {
            "model": model,
            "benchmark": benchmark,
            "family": family,
            "n": n,
            "correct": round(p * n),
            "accuracy": p,
            "ci95": wilson(p, n),
        }
        out.append(row | {"commonest_answer_baseline": always, "usd": USD[model], "extraction": how})

    always = (0.05, 0.03, 0.06, 0.22, 0.04)
    for (model, how), values in ACCURACY.items():
        for family, p, a in zip(FAMILIES, values, always, strict=True):
            add(model, how, "unseen", family, p, 60, a)
        add(model, how, "unseen", "macro", sum(values) / 5, 300, sum(always) / 5)
    for model, values in {"base": (0.40, 0.21), "sft": (0.36, 0.20), "grpo": (0.37, 0.21)}.items():
        for family, p, a in zip(("letter_counting", "spell_backward"), values, (0.30, 0.02), strict=True):
            add(model, "strict", "untrained", family, p, 60, a)
        add(model, "strict", "untrained", "macro", sum(values) / 2, 120, 0.16)
    for model, loss in {"base": 3.012, "sft": 3.071, "grpo": 3.066}.items():
        row = {
            "model": model,
            "benchmark": "heldout-text",
            "family": "plain text",
            "n": 20480,
            "correct": None,
            "accuracy": None,
            "ci95": None,
        }
        out.append(row | {"commonest_answer_baseline": None, "loss": loss, "usd": USD[model]})
    return out


def gains() -> list[dict[str, Any]]:
    def row(a: str, b: str, bench: str, gain: float, half: float, p: float, note: str = "") -> dict[str, Any]:
        return {
            "from": a,
            "to": b,
            "benchmark": bench,
            "gain": gain,
            "ci95": [gain - half, gain + half],
            "p_value": p,
            "note": note,
        }

    macro = {key: sum(v) / 5 for key, v in ACCURACY.items()}
    start, s, g = macro["base-few-shot", "lenient"], macro["sft", "strict"], macro["grpo", "strict"]
    return [
        row("base-few-shot", "sft", "unseen", s - start, 0.064, 1e-9, "over the better of the base model's scores"),
        row("sft", "grpo", "unseen", g - s, 0.041, 0.0006),
        row("base-few-shot", "grpo", "unseen", g - start, 0.062, 1e-12, "over the better of the base model's scores"),
        row("base", "grpo", "untrained", -0.015, 0.06, 0.61),
    ]


def metrics() -> list[dict[str, Any]]:
    rng, out, t, usd = random.Random(7), [], 1_795_000_000.0, 0.006
    for stage, total in (("sft", 120), ("grpo", 60)):
        for i in range(1, total + 1):
            seconds = 1.1 if stage == "sft" else 2.0
            t, cost = t + seconds, seconds * 0.0832 / 3600
            usd += cost
            line: dict[str, Any] = {
                "t": t,
                "attempt": "1",
                "stage": stage,
                "step": i,
                "total": total,
                "loss": None,
                "reward": None,
            }
            line |= {
                "grad_norm": 1.0 + rng.random(),
                "tokens": 3500,
                "useful_tokens": 2100,
                "seconds": seconds,
                "flops": 2.8e12,
                "usd": cost,
                "usd_left": 0.05 - usd,
            }
            if stage == "sft":
                line["loss"] = 0.35 + 1.5 * math.exp(-i / 22) + rng.gauss(0, 0.05)
            else:
                none = min(8, max(0, round(2.5 + i / 30 + rng.gauss(0, 1))))
                line |= {
                    "reward": 0.55 + 0.12 * (1 - math.exp(-i / 25)) + rng.gauss(0, 0.05),
                    "groups": 8,
                    "groups_without_variance": none,
                }
                line |= {
                    "usd_without_variance": cost * none / 8 * 0.7,
                    "mean_length": 74.0,
                    "entropy": 0.31,
                    "clip_fraction": 0.01,
                    "ratio_outside": 0.02,
                }
            out.append(line)
    return out


def funnel() -> list[dict[str, Any]]:
    rows = (
        ("valid answer", 6000, 5874, "a grader that cannot read the gold answer would pay for noise"),
        ("deduplicated by operands", 5874, 4410, "3 + 5 and 5 + 3 are one problem"),
        ("not in the evaluation set", 4410, 4188, "unseen means unseen"),
        ("difficulty: base passes 1 to 7 of 8", 4188, 1236, "always right or always wrong teaches nothing"),
        ("diverse", 1236, 480, "evenly over families and lengths"),
    )
    return [dict(zip(("step", "before", "after", "why"), r, strict=True)) for r in rows]


def domains() -> list[dict[str, Any]]:
    rows = (("sums", 1900, 96, 0.4), ("products", 1000, 96, 0.2), ("lcm", 700, 96, 0.1), ("number_format", 500, 96, 0.6), ("gaps", 88, 96, None))
    return [dict(zip(("domain", "pool", "chosen", "pass_rate"), r, strict=True)) | {"selector": "s1"} for r in rows]


def samples() -> list[dict[str, Any]]:
    long = "To find the least common multiple of 12 and 18, we list the multiples.\n12: 12, 24, 36\n18: 18, 36\n"
    texts = {
        "base": ("The LCM of 12 and 18 is 216, because 12 × 18 = 216.", False),
        "sft": (long + "The answer is 36.", True),
        "grpo": ("12 = 2·2·3, 18 = 2·3·3\n2·2·3·3 = 36\nThe answer is 36.", True),
    }
    answers = [{"model": m, "text": t, "correct": ok} for m, (t, ok) in texts.items()]
    out = [
        {
            "family": "lcm",
            "prompt": "Find the Least Common Multiple (LCM) of these numbers: 12, 18",
            "answer": "36",
            "answers": answers,
        }
    ]
    for i, family in enumerate(("sums", "products", "number_format", "number_sequence", "lcm", "sums")):
        row = [
            {
                "model": m,
                "text": f"Step by step: {17 + i} + 5 = {(x := 22 + i + (m == 'base'))}.\nThe answer is {x}.",
                "correct": m != "base",
            }
            for m in texts
        ]
        out.append({"family": family, "prompt": f"What is {17 + i} + 5?", "answer": str(22 + i), "answers": row})
    return out


def run() -> dict[str, Any]:
    stages = [
        {"name": s, "use": s, "status": "finished", "seconds": x}
        for s, x in zip(STAGES, (94, 151, 143, 129, 61), strict=True)
    ]
    versions = {"shoestring": "0.1.0", "python": "3.11.7", "torch": "2.13.0"}
    head = {
        "name": "quickstart",
        "seed": 0,
        "status": "finished",
        "reason": "",
        "started": 1_795_000_000.0,
        "ended": 1_795_000_588.0,
        "attempts": 2,
    }
    return head | {"versions": versions, "machine": MACHINE, "base": "smollm2-135m-instruct", "stages": stages}


def traps() -> list[dict[str, Any]]:
    return [
        {"family": "number_format", "commonest_answer": "1", "share": 0.22, "verdict": "ok"},
        {
            "family": "gcd",
            "commonest_answer": "1",
            "share": 0.61,
            "verdict": "refused: the commonest answer alone scores 61%",
        },
    ]


RECIPE = """name = "quickstart"
budget = "0.05 USD"
machine = "this"
base = "smollm2-135m-instruct"

[[stage]]
use = "sft"
"""


def write(folder: Path) -> Path:
    """A complete run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "plan": plan(),
        "bill": bill(),
        "scores": scores(),
        "gains": gains(),
        "funnel": funnel(),
        "traps": traps(),
        "domains": domains(),
        "samples": samples(),
        "run": run(),
    }
    for name, value in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1), "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()), "utf-8")
    (folder / "recipe.toml").write_text(RECIPE, "utf-8")
    return folder
