"""The model card: what the model is made of, what it scores, what it cost, and what the cost leaves out.

Every number is read from the run's own files (scores.json, bill.json, plan.json), so that the card can be written again.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoestring.data import licences
from shoestring.estimate.headers import gguf_header
from shoestring.estimate.locate import PACKAGED, locate
from shoestring.recipe import Recipe
from shoestring.records import UserError
from shoestring.stages.context import read_lines

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# packaged name → (hub id, licence), as the package's and the model's own pages state them
UPSTREAM = {"smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}


def write_card(run_dir: Path, recipe: Recipe, state: dict[str, Any]) -> Path:
    path = run_dir / "model" / "README.md"
    path.write_text(card(run_dir, recipe, state), encoding="utf-8")
    return path


def card(run_dir: Path, recipe: Recipe, state: dict[str, Any]) -> str:
    """A Hugging Face card. Sections whose files are not there are left out."""
    data = _data(run_dir, state)
    lines = [
        *_front(recipe, data), "", f"# {recipe.name}", "",
        f"Trained by shoestring from `{recipe.base}`, seed {recipe.seed}, recipe hash `{recipe.hash}`.",
        f"Weights: {state['model_name']}. Stages: {' → '.join(t.name for t in recipe.stages)}.",
        "", "Answers are read after the last `Answer:`; greedy decoding; the base model's own chat template.", "",
    ]  # fmt: skip
    if data:
        lines += ["## Data", ""] + [f"- {s} ({licence or 'licence not stated'})" for s, licence in data] + [""]
    lines += _licences(run_dir, recipe, state)
    lines += _adapter(run_dir / "model" / "adapter" / "adapter_config.json")
    return "\n".join([*lines, *_scores(run_dir / "scores.json"), *_bill(run_dir)])


def licence_of(base: str) -> str:
    """The base model's licence, as its card or its GGUF header states it; "" where nobody says."""
    if base in PACKAGED:
        return UPSTREAM.get(base, ("", ""))[1]
    try:
        path = locate(base)
        if path.is_file():
            return str(gguf_header(path)[0].get("general.license", ""))
        text = (path / "README.md").read_text(encoding="utf-8", errors="replace")
    except (UserError, OSError):
        return ""
    front = text.removeprefix("---\n").partition("\n---")[0] if text.startswith("---\n") else ""
    said = re.search(r"^license:\s*['\"]?([\w.+-]+)", front, re.MULTILINE)
    return said[1] if said else ""


def _front(recipe: Recipe, data: list[tuple[str, str]]) -> list[str]:
    """The YAML block that the hub reads. A JSON string is a YAML string, so nothing in a name can break it."""
    base = UPSTREAM.get(recipe.base, (recipe.base, ""))[0]
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [shoestring, reasoning]"]
    lines.append(f"base_model: {base if HUB_ID.fullmatch(base) else json.dumps(base)}")
    licence = licence_of(recipe.base)
    if licence:
        lines.append(f"license: {json.dumps(licence)}")
    hub = sorted({s for s, _ in data if HUB_ID.fullmatch(s) and not Path(s).exists()})
    if hub:
        lines.append(f"datasets: {json.dumps(hub)}")
    return [*lines, "---"]


def _data(run_dir: Path, state: dict[str, Any]) -> list[tuple[str, str]]:
    """(source, licence) of all that was trained on: the chosen problems, the pool, and the rows of data sets."""
    artifacts = state.get("artifacts", {})
    files = [run_dir / "problems.jsonl", *(run_dir / artifacts[k] for k in ("sources", "pool", "traces") if k in artifacts)]
    seen: set[tuple[str, str]] = set()
    for path in files:
        if path.exists():
            seen |= {(r["source"], r.get("licence") or "") for r in read_lines(path) if r.get("source")}
    return sorted(seen)


def remarks(recipe: Recipe) -> list[str]:
    """A line for the base and for each teacher whose licence forbids training on its output, binds it, or is not known, or
    was not checked."""
    said = (licences.remark(role, model, stated) for role, model, stated in _taught_by(recipe))
    return list(dict.fromkeys(line for line in said if line))


def _taught_by(recipe: Recipe) -> list[tuple[str, str, str]]:
    """(role, model, the licence that it states) of the base and of every stage's teacher."""
    asked = [("base", recipe.base, licence_of(recipe.base))]
    for table in recipe.stages:
        teacher = getattr(table.config, "teacher", None)
        if teacher == "self":  # the run's own model, whose base stands above
            continue
        if isinstance(teacher, str) and teacher:
            asked.append(("teacher", teacher, licence_of(teacher)))
        elif isinstance(teacher, Mapping) and teacher.get("recorded"):
            asked += _recorded(str(teacher["recorded"]), str(teacher.get("model", "")))
        elif isinstance(teacher, Mapping) and teacher.get("url"):
            asked.append(("teacher", str(teacher.get("model", "")), ""))
        elif isinstance(teacher, Mapping) and teacher.get("model"):
            asked.append(("teacher", str(teacher["model"]), licence_of(str(teacher["model"]))))
    return asked


def _recorded(path: str, model: str) -> list[tuple[str, str, str]]:
    """(role, model, licence) of the models that a recording holds, each with the first licence that its rows state."""
    from shoestring.generate.recorded import located, read

    found: dict[str, str] = {}
    try:
        for _, row in read(located(path)):
            name = str(row.get("model") or f"recorded:{Path(path).name}")
            if not model or model == name:
                found[name] = found.get(name) or str(row.get("licence") or row.get("license") or "")
    except UserError:
        return []  # what is wrong with the file, the stage's own check says
    return [("teacher", name, licence) for name, licence in found.items()]


def _licences(run_dir: Path, recipe: Recipe, state: dict[str, Any]) -> list[str]:
    """How many records there are of each licence, and what the base's and the teachers' licences ask."""
    lines = []
    artifacts = state.get("artifacts", {})
    traces = run_dir / artifacts["traces"] if "traces" in artifacts else run_dir / "problems.jsonl"
    if traces.exists():
        rows = read_lines(traces)
        counts = Counter((r.get("licence") or "not stated") for r in rows)
        written = Counter((r["model"], r["teacher_licence"]) for r in rows if r.get("teacher_licence"))
        if counts:
            listed = ", ".join(f"{name} {n}" for name, n in counts.most_common())
            lines.append(f"- {traces.name}: {sum(counts.values())} records by licence: {listed}")
        lines += [f"- {n} answers by {model} ({licence})" for (model, licence), n in written.most_common()]
    lines += dict.fromkeys(f"- {licences.line(*who)}" for who in _taught_by(recipe))
    return ["## Licences", "", *lines, ""]


def _adapter(path: Path) -> list[str]:
    """What lies in adapter/, where adapters alone lead from the base to these weights."""
    if not path.exists():
        return []
    said = json.loads(path.read_text())
    rank = f"rank {said['r']}, alpha {said['lora_alpha']:g}{', rank-stabilised' if said.get('use_rslora') else ''}"
    load = f'AutoModelForCausalLM.from_pretrained("{said["base_model_name_or_path"]}")'
    return [
        "## Adapter", "",
        f"The weights above have it merged in. By itself it is `adapter/`: LoRA of {rank}, "
        f"on {', '.join(said['target_modules'])}.",
        "", "```python", f'PeftModel.from_pretrained({load}, "adapter")', "```", "",
    ]  # fmt: skip


def _scores(path: Path) -> list[str]:
    if not path.exists():
        return []
    lines = ["## Scores (measured)", "", "| model | benchmark | accuracy | 95% interval | n |", "|---|---|---|---|---|"]
    for r in json.loads(path.read_text()):
        if r["family"] == "macro" and r["accuracy"] is not None:
            lo, hi = r["ci95"]
            lines.append(f"| {r['model']} | {r['benchmark']} | {r['accuracy']:.1%} | {lo:.1%} to {hi:.1%} | {r['n']} |")
    return [*lines, ""]


def _bill(run_dir: Path) -> list[str]:
    """The bill's three totals as bill.json has them, and in words what they do not hold."""
    beside = "The itemised bill is `bill.json` and the page `report.html` in the folder above this one."
    path = run_dir / "bill.json"
    if not path.exists():
        return [beside, ""]
    bill = json.loads(path.read_text())
    least = "at least " if bill["is_lower_bound"] else ""
    lines = [
        "## Bill", "",
        f"- this model's run: {least}{bill['headline']['total']} {bill['currency']} of a budget of {bill['budget']}",
        f"- with failed and repeated work: {least}{bill['marginal']['total']} {bill['currency']}",
    ]  # fmt: skip
    plan = run_dir / "plan.json"
    left_out = json.loads(plan.read_text()).get("left_out", []) if plan.exists() else []
    if left_out:
        lines.append(f"- not in these figures: {'; '.join(left_out)}")
    return [*lines, "", beside, ""]
