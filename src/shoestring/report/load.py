"""Reading a run folder that may be half written: what cannot be read is named, the rest is kept.

A stopped run has no scores, a killed one a torn last line in metrics.jsonl, an old one lacks a file that newer
versions leave. None of these may keep the page from being written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from .text import decimal, num

FILES: dict[str, type] = {
    "run.json": dict,
    "plan.json": dict,
    "bill.json": dict,
    "scores.json": list,
    "gains.json": list,
    "funnel.json": list,
    "traps.json": list,
    "domains.json": list,
    "samples.json": list,
}
OPTIONAL = {"traps.json", "domains.json"}  # its absence is not worth a notice


@dataclass
class RunFolder:
    """What a run folder holds, as plain data. Lists hold objects only; a missing file is an empty container."""

    path: Path
    run: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    bill: dict[str, Any] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
    gains: list[dict[str, Any]] = field(default_factory=list)
    funnel: list[dict[str, Any]] = field(default_factory=list)
    traps: list[dict[str, Any]] = field(default_factory=list)
    domains: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    recipe: str = ""
    missing: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.run.get("name") or self.path.name)

    @property
    def currency(self) -> str:
        return str(self.bill.get("currency") or "USD")

    def why_absent(self, file: str) -> str:
        """ "scores.json is missing", or what is wrong with it; empty where the file was read."""
        if file in self.missing:
            return f"{file} is missing"
        return next((f"{name} could not be read: {why}" for name, why in self.broken if name == file), "")

    def stage_order(self) -> list[str]:
        """Stage names in the order in which they ran: plan first, then whatever else was seen."""
        seen: dict[str, None] = {}
        for item in objects(self.plan.get("stages")) + objects(self.run.get("stages")):
            seen[str(item.get("name") or item.get("use") or "?")] = None
        for item in self.metrics + objects(self.bill.get("lines")):
            seen[str(item.get("stage") or "?")] = None
        return list(seen)

    def steps(self, stage: str) -> list[dict[str, Any]]:
        """The steps of a stage in order; of a step that was replayed after a crash, the last account counts."""
        last: dict[float, dict[str, Any]] = {}
        for line in self.metrics:
            step = num(line.get("step"))
            if step is not None and str(line.get("stage")) == stage:
                last[step] = line
        return [last[k] for k in sorted(last)]

    def stage_amount(self, stage: str) -> float | None:
        """What the bill charged to a stage; None where the bill does not know it."""
        amounts = [
            decimal(line.get("amount")) for line in objects(self.bill.get("lines")) if str(line.get("stage")) == stage
        ]
        known = [a for a in amounts if a is not None]
        return float(sum(known)) if known else None


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; of anything else, nothing."""
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list | tuple) else []


def mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def bill_dict(bill: Any) -> dict[str, Any]:
    """A bill in the shape of bill.json, from that file's content or from a `records.Bill`."""
    data = asdict(bill) if is_dataclass(bill) and not isinstance(bill, type) else mapping(bill)
    for key in ("headline", "marginal"):
        if not isinstance(data.get(key), Mapping):
            data[key] = {"total": data.get(key)}
    data["lines"] = objects(data.get("lines"))
    data["sunk"] = objects(data.get("sunk"))
    return data


def sunk_ends(item: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The range of a sunk cost; (None, None) where it is unknown."""
    only = num(item.get("amount"))
    low, high = num(item.get("low")), num(item.get("high"))
    return (low if low is not None else only), (high if high is not None else only)


def load(run_dir: Path) -> RunFolder:
    """Read everything that can be read. Raises only where the folder itself is not there."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir} is not a run folder")
    out = RunFolder(run_dir)
    for name, kind in FILES.items():
        value = _read_json(out, run_dir / name, kind)
        if value is not None:
            setattr(out, name.removesuffix(".json"), objects(value) if kind is list else value)
    if out.bill:
        out.bill = bill_dict(out.bill)
    out.metrics = _read_lines(out, run_dir / "metrics.jsonl")
    recipe = run_dir / "recipe.toml"
    try:
        out.recipe = recipe.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        out.missing.append(recipe.name)
    except OSError as e:
        out.broken.append((recipe.name, e.strerror or "cannot be opened"))
    return out


def _read_json(out: RunFolder, path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_bytes().decode("utf-8", errors="replace"))
    except FileNotFoundError:
        if path.name not in OPTIONAL:
            out.missing.append(path.name)
        return None
    except OSError as e:
        out.broken.append((path.name, e.strerror or "cannot be opened"))
        return None
    except (ValueError, RecursionError):
        out.broken.append((path.name, "not valid JSON (cut short?)"))
        return None
    if not isinstance(value, kind):
        out.broken.append((path.name, "a list was expected" if kind is list else "an object was expected"))
        return None
    return value


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file that may be cut short; of a missing one, nothing."""
    return _read_lines(RunFolder(path.parent), path)


def _read_lines(out: RunFolder, path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    bad = 0
    try:
        with path.open("rb") as f:
            for raw in f:
                if not raw.strip():
                    continue
                try:
                    value = json.loads(raw.decode("utf-8", errors="replace"))
                except (ValueError, RecursionError):
                    bad += 1
                    continue
                if isinstance(value, dict):
                    lines.append(value)
                else:
                    bad += 1
    except FileNotFoundError:
        out.missing.append(path.name)
    except OSError as e:
        out.broken.append((path.name, e.strerror or "cannot be opened"))
    if bad:
        out.broken.append((path.name, f"{bad:,} line{'s' if bad > 1 else ''} cut short, left out"))
    return lines
