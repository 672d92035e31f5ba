"""Tiny model folders of every family for the tests of GGUF: random weights that fp16 holds exactly, and a small tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCAB = 300
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3", "gemma3": "Gemma3"}
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<start>system\nBe kind.<end>\n{% endif %}"
    "<start>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PAIRS = ["th", "he", "in", "an", "on", "er", "the"]


def random_model(family: str, hidden: int = 64, **more: Any) -> Any:
    """transformers' model of `family`, fp32, with sizes of whole quantisation blocks. more: keys of its configuration."""
    import torch
    import transformers

    sizes: dict[str, Any] = dict(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=4, vocab_size=VOCAB, num_attention_heads=4,
        num_key_value_heads=2, head_dim=hidden // 4, max_position_embeddings=128, initializer_range=0.2,
        attn_implementation="eager", pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=family != "qwen3",
    )  # fmt: skip
    if family == "gemma3":
        sizes |= dict(query_pre_attn_scalar=hidden // 4, sliding_window=8, num_hidden_layers=6)
    if family == "mistral":
        sizes |= dict(sliding_window=None)
    config = getattr(transformers, "Gemma3TextConfig" if family == "gemma3" else f"{CLASSES[family]}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{CLASSES[family]}ForCausalLM")(config(**(sizes | more))).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.add_(torch.randn_like(p) * 0.2)
        model.get_input_embeddings().weight[0] = 0.125  # the padding's row, else zeros
    return model


def make(path: Path, family: str, hidden: int = 64, pre: str = "", template: str = CHATML, **more: Any) -> Path:
    """A folder of `family`. pre: the tokenizer's split, by default the family's own."""
    import torch

    model = random_model(family, hidden, **more)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half())
    model.save_pretrained(path)
    tokenizer(path, pre or ("pieces" if family == "gemma3" else "qwen2" if family.startswith("qwen") else "gpt2"), template)
    return path


def tokenizer(path: Path, pre: str, template: str) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<start>", "<end>"]
    rest = pieces(special) if pre == "pieces" else letters(special, pre)
    tokens = rest["model"]["vocab"]
    added = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, t in enumerate(special)
    ]
    state = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None} | rest
    assert len(tokens) <= VOCAB
    inner = Tokenizer.from_str(json.dumps(state))
    out = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<start>", eos_token="<end>", pad_token="<pad>",
        **({"unk_token": "<unk>"} if pre == "pieces" else {}),
    )  # fmt: skip
    out.chat_template = template
    out.save_pretrained(path)


def letters(special: list[str], pre: str) -> dict[str, Any]:
    """Byte-level BPE."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = [*special, *bytes_to_unicode().values(), *PAIRS]
    merges = [["th", "e"] if p == "the" else [p[0], p[1]] for p in PAIRS]
    ends = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pre != "qwen2"}
    step: dict[str, Any] = ends
    if pre != "gpt2":
        first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
        if pre == "qwen2":
            first = {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
        if pre == "odd":
            first = {"type": "Punctuation", "behavior": "Isolated"}
        step = {"type": "Sequence", "pretokenizers": [first, ends]}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {w: i for i, w in enumerate(words)}, "merges": merges}  # fmt: skip
    return {"normalizer": None, "pre_tokenizer": step, "decoder": {**ends, "use_regex": True}, "model": model}


def pieces(special: list[str]) -> dict[str, Any]:
    """sentencepiece's BPE as Gemma's tokenizer.json has it: spaces are letters, unknown letters become bytes."""
    words = [*special, "<unk>", *(f"<0x{i:02X}>" for i in range(256)), *"then\u2581i", "th", "he", "in", "the", "\u2581the"]
    merges = [["t", "h"], ["h", "e"], ["i", "n"], ["th", "e"], ["t", "he"], ["\u2581", "the"]]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
             "vocab": {w: i for i, w in enumerate(words)}, "merges": merges}  # fmt: skip
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    return {
        "normalizer": space, "pre_tokenizer": None, "model": model,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    }  # fmt: skip
