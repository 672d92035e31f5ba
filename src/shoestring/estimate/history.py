"""What earlier runs on this machine took, stage by stage, beside what was planned for them: the plan's own correction.

Kept in `runs.json` under the cache folder, keyed by processor, threads and torch version (as the profile is), by the kind of
stage and by the model's size. Only stages that ran to their end in one attempt count, and only where the plan said five
seconds or more: a shorter one says nothing about rates.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shoestring.estimate import kept
from shoestring.estimate.machine import Profile, cache_folder, profile_key

LEAST_SECONDS = 5.0
KEPT = 5  # newest runs a kind of stage
# where no run tells: what loading, grading, rows that end early and small operations add to the probe's rates, measured by a
# quickstart on two quiet cores (EPYC Zen 5) on 2026-11-22. It belongs to the formulae, so rates from literature get it too.
TYPICAL = {"evaluate": 1.4, "curate": 1.35, "sft": 1.15, "grpo": 1.25}
FAR = 2.0  # a run that took more than this many times the plan, or less than its inverse, was disturbed: left out


def _path(path: Path | None) -> Path:
    return path or cache_folder() / "runs.json"


def _key(use: str, parameters: int) -> str:
    return f"{profile_key('')}| {use} | {parameters}"


def correction(use: str, parameters: int, profile: Profile, path: Path | None = None) -> float | None:
    """Median of actual over planned seconds of this kind of stage with a model of this size, relative to `profile`'s rates.

    None where there was no run, or where the rates are not measured.
    """
    if profile.basis != "measured":
        return None
    rows = kept.read(_path(path)).get(_key(use, parameters))
    if not isinstance(rows, list):
        return None
    # a ratio holds for the rates that its plan was made with: carry it over to those of now
    now = _rate(use, profile)
    ratios = sorted(r["ratio"] * now / r["rate"] for r in rows if _usable(r))
    ratios = [r for r in ratios if 1 / FAR <= r <= FAR]
    return ratios[len(ratios) // 2] if ratios else None


def _usable(row: Any) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(k), int | float) and row[k] > 0 for k in ("ratio", "rate"))


def _rate(use: str, profile: Profile) -> float:
    """The rate of the profile that decides this kind of stage."""
    return profile.train_flops.mid if use in ("sft", "logit_distill", "grpo") else profile.decode_tokens.mid


def keep(run: Path, path: Path | None = None) -> bool:
    """Take the stages of a finished run folder into the history. False where there is nothing to take, or no place for it."""
    try:
        state = json.loads((run / "run.json").read_bytes())
        plan = json.loads((run / "plan.json").read_bytes())
        profile = plan["profile"]
        rates = {"train": profile["train_flops"]["mid"], "decode": profile["decode_tokens"]["mid"]}
        parameters = int(plan["base"]["parameters"])
        took = {s["name"]: s for s in state["stages"]}
        ran_here = profile["basis"] == "measured" and str(plan["machine"]["sku"]).startswith("this")
        if not ran_here or state["attempts"] != 1:
            return False
        found: dict[str, list[tuple[float, float, float]]] = {}
        for row in plan["stages"]:
            stage, planned = took.get(row["name"]), 60 * row["minutes"]["mid"] / row.get("mended", 1.0)
            if stage is None or stage["status"] != "finished" or planned < LEAST_SECONDS or stage["seconds"] <= 0:
                continue
            rate = rates["train" if row["use"] in ("sft", "logit_distill", "grpo") else "decode"]
            found.setdefault(row["use"], []).append((stage["seconds"], planned, rate))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if not found:
        return False
    table = kept.read(_path(path))
    for use, rows in found.items():
        ratio = sum(r[0] for r in rows) / sum(r[1] for r in rows)
        key = _key(use, parameters)
        before = table.get(key)
        table[key] = [*(before if isinstance(before, list) else []), {"ratio": ratio, "rate": rows[0][2]}][-KEPT:]
    return kept.write(table, _path(path))
