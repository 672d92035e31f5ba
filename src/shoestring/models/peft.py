"""LoRA adapters on disk, as PEFT writes them: adapter_config.json and adapter_model.safetensors.

A tensor is named after the Hugging Face module that it adapts:
base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight [rank, in], and lora_B.weight [out, rank].
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from shoestring.estimate.adapters import TARGETS
from shoestring.models import lora
from shoestring.models.decoder import Decoder
from shoestring.records import UserError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
NAME = re.compile(r"base_model\.model\.(?:\w+\.)*layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
# Keys that say nothing about what the adapter computes, once its tensors are known.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "revision", "target_modules", "task_type", "exclude_modules", "r", "lora_alpha",
    "use_rslora", "init_lora_weights", "ensure_weight_tying", "layers_pattern",
}  # fmt: skip
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # other initialisations change the base's weights too


def _module(layer: int, target: str) -> str:
    part = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"base_model.model.model.layers.{layer}.{part}.{target}"


def save_adapter(
    model: Decoder, folder: Path, base_name_or_path: str, source: Mapping[str, torch.Tensor] | None = None
) -> Path:
    """Write the attached LoRA, fp32, as a folder that `peft.PeftModel.from_pretrained` loads.

    source: tensors by our parameter names (fp32 masters) in place of the model's own. Written beside and renamed.
    ValueError without a LoRA; UserError where the disk refuses.
    """
    config = lora.config_of(model)
    if config is None:
        raise ValueError("the model has no LoRA to save")
    tensors: dict[str, torch.Tensor] = {}
    for layer, block, fused, prefix in lora.matrices(model):
        adapter = lora.adapter_of(block, fused)
        for target in adapter.parts if adapter else ():
            for x in "AB":
                t = getattr(adapter, f"{target}_{x}") if source is None else source[f"{prefix}{target}_{x}"]
                tensors[f"{_module(layer, target)}.lora_{x}.weight"] = t.detach().float().cpu().contiguous()
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name_or_path,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "use_rslora": config.rslora,
        "target_modules": list(config.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }
    part = folder.with_name(folder.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
        (part / CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"{folder}: the adapter could not be written ({e}); free space") from None
    return folder


def stacked(
    parts: Sequence[tuple[lora.LoraConfig, Mapping[str, torch.Tensor]]],
) -> tuple[lora.LoraConfig, dict[str, torch.Tensor]]:
    """Several LoRAs on one base, added up: one LoRA, whose rank is the sum of theirs. Tensors by our parameter names.

    scale_1 B_1 A_1 + scale_2 B_2 A_2 = [scale_1 B_1, scale_2 B_2] [A_1; A_2], so the sum is exact but for the scaling.
    """
    if len(parts) == 1:
        return parts[0][0], dict(parts[0][1])
    rank = sum(c.rank for c, _ in parts)
    targets = tuple({t for c, _ in parts for t in c.targets})
    out: dict[str, torch.Tensor] = {}
    for name in sorted({n.removesuffix("_A") for _, tensors in parts for n in tensors if n.endswith("_A")}):
        like = next(t for _, t in parts if name + "_A" in t)
        width, rows = like[name + "_A"].shape[1], like[name + "_B"].shape[0]
        a = [t[name + "_A"] if name + "_A" in t else torch.zeros(c.rank, width) for c, t in parts]
        b = [t[name + "_B"] * c.scale if name + "_B" in t else torch.zeros(rows, c.rank) for c, t in parts]
        out |= {name + "_A": torch.cat(a), name + "_B": torch.cat(b, 1)}
    return lora.LoraConfig(rank, float(rank), targets), out


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {CONFIG}; an adapter folder holds it beside {WEIGHTS}") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not JSON ({e})") from None
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is not LORA; only LoRA adapters are supported")
    for key, value in found.items():
        plain = key in HARMLESS or not value or (key, value) in (("bias", "none"), ("fan_in_fan_out", False))
        if key == "init_lora_weights" and value not in PLAIN_STARTS:
            plain = False
        if not plain:
            raise UserError(f"{path}: {key} = {json.dumps(value)} is not supported; only plain LoRA is")
    return found


def load_adapter(model: Decoder, folder: Path) -> dict[str, nn.Parameter]:
    """Attach the adapter of a PEFT folder, ready to train on or to merge; returns its parameters by name.

    UserError for what would compute something else: DoRA, per-module ranks, adapted embeddings or only some layers.
    """
    hf = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as e:
        raise UserError(f"{path}: unreadable adapter weights ({e})") from None
    found: dict[tuple[int, str, str], torch.Tensor] = {}
    for name, t in tensors.items():
        m = NAME.fullmatch(name)
        if m is None or m[2] not in TARGETS:
            raise UserError(f"{path}: {name} adapts no projection of ours; they are {', '.join(TARGETS)}")
        found[int(m[1]), m[2], m[3]] = t
    targets = tuple(t for t in TARGETS if any(key[1] == t for key in found))
    wanted = {(i, t, x) for i in range(model.config.layers) for t in targets for x in "AB"}
    odd = sorted(wanted ^ found.keys())
    if odd or not found:
        what = f"layer {odd[0][0]} {odd[0][1]}" if odd else "any layer"
        raise UserError(f"{path}: the adapter does not fit the model at {what}; every layer must be adapted alike")
    try:
        config = lora.LoraConfig(int(hf["r"]), float(hf["lora_alpha"]), targets, bool(hf.get("use_rslora")))
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{folder / CONFIG}: r and lora_alpha make no sense ({e})") from None
    lora.attach(model, config, seed=0)
    ours = {
        f"{prefix}{target}_{x}": found[layer, target, x]
        for layer, _, fused, prefix in lora.matrices(model)
        for target in lora.FUSED[fused]
        if target in targets
        for x in "AB"
    }
    for name, p in lora.trainable(model).items():
        if p.shape != ours[name].shape:
            lora.detach(model)
            raise UserError(f"{path}: {name} has shape {list(ours[name].shape)}, the model needs {list(p.shape)}")
    lora.restore(model, ours)
    return lora.trainable(model)
