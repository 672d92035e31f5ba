"""litellm's model_prices_and_context_window.json: model → dollars a token."""

from __future__ import annotations

from pathlib import Path

from shoestring.cost.catalogues import Ask, Taken, amount, read_json
from shoestring.cost.rows import TeacherRow
from shoestring.records import UserError

NAME = "litellm"
_KEYS = {
    "in": "input_cost_per_token",
    "out": "output_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "in-batch": "input_cost_per_token_batches",
    "out-batch": "output_cost_per_token_batches",
}
_TEXT = {"chat", "completion", "responses"}  # modes that answer in tokens; images and audio are priced otherwise


def fits(path: Path, head: str) -> bool:
    return head.lstrip().startswith("{") and "input_cost_per_token" in head


def rows(path: Path, ask: Ask) -> Taken:
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: litellm's prices are an object of models, not a {type(data).__name__}")
    taken = Taken()
    unknown = 0
    for model, entry in data.items():
        if model == "sample_spec" or not isinstance(entry, dict) or entry.get("mode", "chat") not in _TEXT:
            continue
        usd = {kind: amount(entry.get(key), 1_000_000) for kind, key in _KEYS.items()}
        if usd["in"] is None or usd["out"] is None:
            unknown += 1  # a local or free-tier model, or one priced by the second: not free, unknown
            continue
        long = sorted(k for k in entry if k.startswith("input_cost_per_token_above"))
        note = f"dearer for long prompts: {', '.join(f'{k} {entry[k]}' for k in long)}" if long else ""
        taken.rows.append(
            TeacherRow(
                "litellm",
                model,
                str(entry.get("source") or ask.source),
                ask.date,
                usd,
                str(entry.get("litellm_provider", "")),
                note=note,
            )  # fmt: skip
        )
    if unknown:
        taken.said.append(f"left out, no price or $0 (unknown, not free): {unknown} models")
    return taken
