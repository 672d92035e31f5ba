"""Model folders on disk: load one into a `Decoder`, save one that transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shoestring.models import families, shards
from shoestring.models.decoder import Decoder
from shoestring.records import UserError

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json; a model folder holds config.json and *.safetensors") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not JSON ({e})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    return found


def load(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
    """Read a Hugging Face folder, tensor by tensor, onto `device`. Raises UserError where it cannot be read exactly."""
    hf = read_config(folder)
    family = families.find(hf, str(folder / "config.json"))
    with torch.device("meta"):
        model = Decoder(family.config(hf, str(folder / "config.json")))
    model = model.to(dtype).to_empty(device=device)
    family.read(model, shards.reader(folder))
    return model


def save(
    model: Decoder,
    folder: Path,
    like: Path,
    source: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    largest: int = shards.LARGEST,
) -> Path:
    """Write `model` (or the `source` tensors by our names, such as fp32 masters) as a folder like `like`.

    Tokenizer, template and generation files are copied from `like`; config.json keeps its keys and states the dtype.
    Weights of more than `largest` bytes go to several files with an index.
    Written beside and renamed, so that a half-written folder never has the final name.
    """
    hf = read_config(like)
    family = families.find(hf, str(like / "config.json"))
    tensors = family.write(model, source if source is not None else dict(model.named_parameters()))
    part = folder.with_name(folder.name + ".part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    shards.write(part, ((name, tensors.pop(name).to("cpu", dtype)) for name in list(tensors)), largest)
    hf["dtype"] = str(dtype).removeprefix("torch.")
    hf.pop("torch_dtype", None)
    hf.pop("quantization_config", None)
    (part / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    for name in SIDE_FILES:
        if (like / name).exists():
            shutil.copyfile(like / name, part / name)
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)
    return folder
