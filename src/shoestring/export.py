"""The base model at the start and the model folder at the end: Hugging Face in, Hugging Face out."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from shoestring.estimate.headers import model_shape
from shoestring.estimate.locate import locate
from shoestring.recipe import Recipe
from shoestring.records import UserError
from shoestring.stages.context import read_lines

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def base_folder(base: str) -> Path:
    """A model folder for the recipe's `base`: a GGUF is converted once into the cache, a hub id is downloaded once."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as e:
        raise UserError(f"training needs {e.name}: pip install 'shoestring[train]'") from None
    try:
        path = locate(base)
    except UserError:
        path = _download(base)
    if path.is_file():
        from shoestring.models.gguf import cached_folder

        return cached_folder(path)
    return path


def check_base(base: str) -> None:
    """UserError where `base` can neither be read nor be downloaded, or what trains it is not installed. Reads headers only."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"training needs {package}: pip install 'shoestring[train]'")
    if is_local(base):
        model_shape(base)


def is_local(base: str) -> bool:
    """Whether `base` is on this machine; false for a hub id that is yet to be downloaded. UserError for anything else."""
    try:
        locate(base)
    except UserError:
        if not HUB_ID.fullmatch(base):
            raise
        return False
    return True


def _download(base: str) -> Path:
    """Fetch a hub id, or raise the error that `locate` had."""
    if not HUB_ID.fullmatch(base):
        return locate(base)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]))
    except Exception as e:  # the hub client raises many kinds; each means that the model is not here
        raise UserError(
            f'base "{base}": not in the cache and not downloaded ({type(e).__name__}); run: hf download {base}'
        ) from None


def write_model(run_dir: Path, base: Path, weights: Path | None, recipe: Recipe, state: dict[str, Any]) -> Path:
    """runs/<name>/model: the weights that were scored (bf16), tokenizer, template and a model card."""
    import torch
    from safetensors import SafetensorError

    from shoestring.models import folder
    from shoestring.train.checkpoints import read_tensors

    model = folder.load(base, torch.bfloat16)
    source = None
    if weights is not None:
        source = {k.removeprefix("master/"): v for k, v in read_tensors(weights, "master/").items()}
    try:
        out = folder.save(model, run_dir / "model", base, source, torch.bfloat16)
    except (OSError, SafetensorError) as e:
        raise UserError(f"{run_dir / 'model'}: the model could not be written ({e}); free space and use --resume") from None
    (out / "README.md").write_text(card(run_dir, recipe, state), encoding="utf-8")
    return out


def card(run_dir: Path, recipe: Recipe, state: dict[str, Any]) -> str:
    """The model card: data and licences, recipe hash, scores. The bill is beside the model, in the run's folder."""
    lines = [
        "---", "library_name: transformers", "tags: [shoestring, reasoning]", f"base_model: {recipe.base}", "---", "",
        f"# {recipe.name}", "",
        f"Trained by shoestring from `{recipe.base}`, seed {recipe.seed}, recipe hash `{recipe.hash}`.",
        f"Weights: {state['model_name']}. Stages: {' → '.join(t.name for t in recipe.stages)}.",
        "", "Answers are read after the last `Answer:`; greedy decoding; the base model's own chat template.", "",
    ]  # fmt: skip
    problems = run_dir / "problems.jsonl"
    if problems.exists():
        seen = {(r["source"], r["licence"]) for r in read_lines(problems)}
        lines += ["## Data", ""] + [f"- {s} ({licence or 'licence not stated'})" for s, licence in sorted(seen)] + [""]
    scores = run_dir / "scores.json"
    if scores.exists():
        lines += [
            "## Scores (measured)",
            "",
            "| model | benchmark | accuracy | 95% interval | n |",
            "|---|---|---|---|---|",
        ]
        for r in json.loads(scores.read_text()):
            if r["family"] == "macro" and r["accuracy"] is not None:
                lo, hi = r["ci95"]
                lines.append(
                    f"| {r['model']} | {r['benchmark']} | {r['accuracy']:.1%} | {lo:.1%} to {hi:.1%} | {r['n']} |"
                )
        lines.append("")
    lines += ["The itemised bill is `bill.json` and the page `report.html` in the folder above this one.", ""]
    return "\n".join(lines)
