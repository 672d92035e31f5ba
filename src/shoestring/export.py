"""The base model at the start and the model folder at the end: Hugging Face in, Hugging Face out."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.card import UPSTREAM, licence_of, write_card
from shoestring.estimate.headers import model_shape
from shoestring.estimate.locate import locate
from shoestring.recipe import Recipe
from shoestring.records import UserError

if TYPE_CHECKING:
    from shoestring.models.decoder import Decoder
    from shoestring.models.lora import LoraConfig

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
        wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md"]
        return Path(snapshot_download(base, allow_patterns=wanted))
    except Exception as e:  # the hub client raises many kinds; each means that the model is not here
        raise UserError(
            f'base "{base}": not in the cache and not downloaded ({type(e).__name__}); run: hf download {base}'
        ) from None


def write_model(run_dir: Path, base: Path, weights: Path | None, recipe: Recipe, state: dict[str, Any]) -> Path:
    """runs/<name>/model: the weights that were scored (bf16), tokenizer, template and a model card.

    Where adapters alone lead from the base to these weights, model/adapter has them too, as PEFT writes them.
    """
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
        trained = [run_dir / row["weights"] for row in state.get("stages", []) if row.get("weights")]
        if (found := adapter_of(trained)) is not None:
            _write_adapter(model, out / "adapter", UPSTREAM.get(recipe.base, (recipe.base, ""))[0], *found)
    except (OSError, SafetensorError) as e:
        raise UserError(f"{run_dir / 'model'}: the model could not be written ({e}); free space and use --resume") from None
    write_card(run_dir, recipe, state)
    return out


def adapter_of(checkpoints: Sequence[Path]) -> tuple[LoraConfig, dict[str, Any]] | None:
    """The one LoRA on the base model that does what the stages' LoRAs did in turn, and its tensors by our names.

    checkpoints: of every stage that trained, in order. None where a stage trained whole weights, or where one of several was
    quantised: what the next adapter was trained against is then not the base model any more.
    """
    from shoestring.models.lora import LoraConfig
    from shoestring.models.peft import stacked
    from shoestring.train.checkpoints import read_manifest, read_tensors

    said = [read_manifest(path)["state"] for path in checkpoints]
    if not said or not all("lora" in s for s in said) or (len(said) > 1 and any(s["quantise"] != "none" for s in said)):
        return None
    parts = []
    for path, facts in zip(checkpoints, said, strict=True):
        x = facts["lora"]
        config = LoraConfig(x["rank"], x["alpha"], tuple(x["targets"]), x["rslora"])
        parts.append((config, {k.removeprefix("adapter/"): v for k, v in read_tensors(path, "adapter/").items()}))
    return stacked(parts)


def _write_adapter(model: Decoder, path: Path, base: str, config: LoraConfig, tensors: Mapping[str, Any]) -> None:
    from shoestring.models import lora
    from shoestring.models.peft import save_adapter

    lora.attach(model, config, seed=0)
    save_adapter(model, path, base, tensors)


def run_model(model: str) -> str:
    """`model`, or the model in it where it is a run's folder. UserError where the run has none yet."""
    path = Path(model).expanduser()
    if (path / "run.json").is_file() and not (path / "config.json").exists():
        if not (path / "model" / "config.json").is_file():
            raise UserError(f"{path}: this run has no model yet; finish it with --resume")
        return str(path / "model")
    return model


def model_and_licence(model: str) -> tuple[Path, str, str]:
    """(model folder, a short name, its licence or ""): `model` is a run's or a model's folder, a .gguf, a name or a hub id."""
    named = run_model(model)
    path = Path(named).expanduser()
    short = path.resolve().parent.name if named != model or path.name == "model" else Path(model).name.removesuffix(".gguf")
    return base_folder(named), short, licence_of(named)
