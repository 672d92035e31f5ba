"""Sizes of well-known models, for plans where nothing of the model is on the disk. Standard library only.

From the `config.json` that each model's publisher keeps beside its weights. A fine-tune has its base's shape, so a name is
looked up by family and size: "Qwen/Qwen2.5-32B-Instruct" and "s1-32B" are one shape where `BASES` says so.
"""

from __future__ import annotations

import re

from shoestring.estimate.flops import ModelShape


def _qwen25(layers: int, hidden: int, heads: int, kv: int, inner: int, vocab: int, tied: bool) -> ModelShape:
    """Qwen2.5: biases on q, k and v are weights beyond the matrices."""
    width = hidden // heads
    return ModelShape(layers, hidden, heads, kv, width, inner, vocab, tied, extra=layers * (hidden + 2 * kv * width))


def _qwen3(layers: int, hidden: int, heads: int, kv: int, inner: int, tied: bool) -> ModelShape:
    """Qwen3: heads of 128 whatever the width, norms of query and key heads."""
    return ModelShape(layers, hidden, heads, kv, 128, inner, 151936, tied, extra=layers * 256)


def _plain(layers: int, hidden: int, heads: int, kv: int, inner: int, vocab: int, tied: bool = False) -> ModelShape:
    return ModelShape(layers, hidden, heads, kv, hidden // heads, inner, vocab, tied)


# Key: family and size in lower case, without marks. Publishers' config.json files: huggingface.co/{Qwen, meta-llama,
# HuggingFaceTB, mistralai, deepseek-ai}/<model>.
SHAPES = {
    "qwen250.5b": _qwen25(24, 896, 14, 2, 4864, 151936, True),
    "qwen251.5b": _qwen25(28, 1536, 12, 2, 8960, 151936, True),
    "qwen253b": _qwen25(36, 2048, 16, 2, 11008, 151936, True),
    "qwen257b": _qwen25(28, 3584, 28, 4, 18944, 152064, False),
    "qwen2514b": _qwen25(48, 5120, 40, 8, 13824, 152064, False),
    "qwen2532b": _qwen25(64, 5120, 40, 8, 27648, 152064, False),
    "qwen2572b": _qwen25(80, 8192, 64, 8, 29568, 152064, False),
    "qwen30.6b": _qwen3(28, 1024, 16, 8, 3072, True),
    "qwen31.7b": _qwen3(28, 2048, 16, 8, 6144, True),
    "qwen34b": _qwen3(36, 2560, 32, 8, 9728, True),
    "qwen38b": _qwen3(36, 4096, 32, 8, 12288, False),
    "qwen314b": _qwen3(40, 5120, 40, 8, 17408, False),
    "qwen332b": _qwen3(64, 5120, 64, 8, 25600, False),
    "r1distillqwen1.5b": _qwen25(28, 1536, 12, 2, 8960, 151936, False),
    "llama321b": _plain(16, 2048, 32, 8, 8192, 128256, True),
    "llama323b": _plain(28, 3072, 24, 8, 8192, 128256, True),
    "llama38b": _plain(32, 4096, 32, 8, 14336, 128256),
    "llama370b": _plain(80, 8192, 64, 8, 28672, 128256),
    "llama3405b": _plain(126, 16384, 128, 8, 53248, 128256),
    "llama27b": _plain(32, 4096, 32, 32, 11008, 32000),
    "llama213b": _plain(40, 5120, 40, 40, 13824, 32000),
    "llama270b": _plain(80, 8192, 64, 8, 28672, 32000),
    "smollm2135m": _plain(30, 576, 9, 3, 1536, 49152, True),
    "smollm2360m": _plain(32, 960, 15, 5, 2560, 49152, True),
    "smollm21.7b": _plain(24, 2048, 32, 32, 8192, 49152, True),
    "mistral7b": _plain(32, 4096, 32, 8, 14336, 32768),
    "tinyllama1.1b": _plain(22, 2048, 32, 4, 5632, 32000),
}
# Layers without a gate, as a gated one of the same weights: an inner width of two thirds (memory tables only).
UNGATED = {
    "phi-1.5": _plain(24, 2048, 32, 32, 5461, 51200),
    "stablelm alpha": _plain(16, 4096, 32, 32, 10923, 50688),
    "falcon 40b": ModelShape(60, 8192, 128, 8, 64, 21845, 65024, True),
    "falcon 7b": ModelShape(32, 4544, 71, 1, 64, 12117, 65024, True),
}
# Fine-tunes and spellings whose name does not tell their base's family and size.
BASES = (
    (r"deepseek-?r1-?distill-?qwen-?1\.5b|deepscaler-?1\.5b|open-?rs\d?\b", "r1distillqwen1.5b"),
    (r"deepseek-?r1-?distill-?qwen-?7b|openthinker\d?-?7b", "qwen257b"),
    (r"deepseek-?r1-?distill-?qwen-?14b", "qwen2514b"),
    (r"deepseek-?r1-?distill-?qwen-?32b|^(simplescaling/)?s1(\.1)?-?32b|sky-?t1-?32b|openthinker\d?-?32b", "qwen2532b"),
    (r"deepseek-?r1-?distill-?llama-?8b", "llama38b"),
    (r"deepseek-?r1-?distill-?llama-?70b|llama-?3\.3-?70b", "llama370b"),
    (r"smollm-?135m", "smollm2135m"),
    (r"smollm-?360m", "smollm2360m"),
    (r"smollm-?1\.7b", "smollm21.7b"),
)


def known_shape(model_id: str) -> ModelShape | None:
    """The shape of a model by its hub id, folder name or usual spelling; None where it is not one of these.

    "Qwen/Qwen2.5-32B-Instruct", "llama3.1-8b", "meta-llama/Llama-3.2-1B" and "Llama 2 7B" are found.
    """
    name = model_id.strip().lower()
    for pattern, key in BASES:
        if re.search(pattern, name):
            return SHAPES[key]
    if re.search(r"awq|gptq|coder-?30b|-a\d+b|vl|omni|audio|vision|math-?reward", name):
        return None  # other shapes under a familiar name
    found = re.search(
        r"(qwen-?2\.5|qwen-?3(?!\.\d)|llama-?\s?3(?:\.\d)?|llama-?\s?2|smollm-?2|mistral|tinyllama)"
        r"\D*?[-_ ](?:coder-|math-)?(\d+(?:\.\d+)?[mb])\b",
        name.replace("meta-llama/meta-", "").replace("meta-llama/", ""),
    )
    if not found:
        return None
    family, size = re.sub(r"[-. ]", "", found[1]), found[2]
    if family.startswith("llama3") and f"{family}{size}" not in SHAPES:
        family = "llama3"  # 3, 3.1 and 3.3 share their shapes
    return SHAPES.get(family + size)
