"""A model folder's tokenizer into a GGUF header: tokens, types, merges or scores, pre-tokenizer, special ids, template.

What llama.cpp calls a pre-tokenizer is a name for a split that it has in code, so a split that it has not is refused:
the file would load and read text as other tokens. Names and splits: llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from shoestring.records import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
)
# (split before the bytes, whole words taken without their merges) → llama.cpp's name
SPLITS = {
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
    (_CASED + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+", True): "tekken",
    ("digits+gpt2", False): "smollm",
    ("gpt2", False): "gpt-2",
}
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def add(out: Any, tokenizer: Any, rows: int, where: str) -> str:
    """Write the vocabulary of `tokenizer` (a `models.tokenizer.Tokenizer`) for `rows` rows of the embedding.

    Returns the pre-tokenizer's name ("sentencepiece" for the kind without one). UserError where llama.cpp has no such
    tokenizer.
    """
    inner = tokenizer.inner
    state = json.loads(inner.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise UserError(f"{where}: a tokenizer of the kind {model['type']} has no place in GGUF here; BPE has")
    words: list[str | None] = [None] * rows
    types = [UNUSED] * rows
    for text, i in [*model["vocab"].items(), *((t["content"], t["id"]) for t in state["added_tokens"])]:
        if i >= rows:
            raise UserError(f"{where}: token {text!r} has id {i} and the embedding {rows} rows")
        words[i], types[i] = text, NORMAL
    pieces = bool(model.get("byte_fallback")) or not _is_bytes(state["pre_tokenizer"])
    if pieces:
        types = [BYTE if w and _BYTE_TOKEN.fullmatch(w) else t for w, t in zip(words, types, strict=True)]
    for t in state["added_tokens"]:
        types[t["id"]] = CONTROL if t["special"] else USER_DEFINED
    tokens = [w if w is not None else f"[PAD{i}]" for i, w in enumerate(words)]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if pieces:
        name = "sentencepiece"
        if (unknown := model.get("unk_token")) in tokens:
            types[tokens.index(unknown)] = UNKNOWN
        out.add_tokenizer_model("llama")
        out.add_tokenizer_pre("default")
        out.add_token_scores(_scores(tokens, merges))
        out.add_add_space_prefix(_prefixes(state))
    else:
        name = pre_tokenizer(state, where)
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre(name)
        out.add_token_merges([f"{a} {b}" for a, b in merges])
        out.add_add_space_prefix(False)
    out.add_token_list(tokens)
    out.add_token_types(types)
    _specials(out, tokenizer)
    return name


def pre_tokenizer(state: Mapping[str, Any], where: str) -> str:
    """llama.cpp's name for the split of a byte-level tokenizer.json."""
    steps = state["pre_tokenizer"]
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    split = ""
    for step in steps:
        if step["type"] == "Split" and "Regex" in step["pattern"] and step["behavior"] == "Isolated" and not step["invert"]:
            split += step["pattern"]["Regex"]
        elif step["type"] == "Digits" and step["individual_digits"]:
            split += "digits+"
        elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            split += "gpt2" if step["use_regex"] else ""
        else:
            split += f"<{step['type']}>"
    found = SPLITS.get((split, bool(state["model"].get("ignore_merges"))))
    if found is None:
        raise UserError(
            f"{where}: the tokenizer splits text in a way that llama.cpp has no name for; it knows here: "
            + ", ".join(sorted(SPLITS.values()))
        )
    return found


def _is_bytes(step: Mapping[str, Any] | None) -> bool:
    """Whether text is split into bytes written as letters (GPT-2's way)."""
    if step is None:
        return False
    return any(s["type"] == "ByteLevel" for s in step.get("pretokenizers", [step]))


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """sentencepiece joins the neighbours whose whole scores best: a token scores by the place of the first merge that
    makes it. What no merge makes comes after all of them."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault("".join(pair), rank)
    return [-float(first.get(t, len(merges) + i)) for i, t in enumerate(tokens)]


def _prefixes(state: Mapping[str, Any]) -> bool:
    """Whether a text begins with a space that nobody wrote."""
    text = json.dumps([state.get("normalizer"), state.get("pre_tokenizer")])
    return '"Prepend"' in text or '"prepend_scheme": "always"' in text or '"prepend_scheme": "first"' in text


def _specials(out: Any, tokenizer: Any) -> None:
    inner = tokenizer.inner
    for add_id, value in (
        (out.add_bos_token_id, inner.bos_token_id), (out.add_eos_token_id, inner.eos_token_id),
        (out.add_unk_token_id, inner.unk_token_id), (out.add_pad_token_id, inner.pad_token_id),
    ):  # fmt: skip
        if value is not None:
            add_id(int(value))
    if tokenizer.end != inner.eos_token_id:  # a turn ends in another token than a text, as in Gemma
        out.add_eot_token_id(tokenizer.end)
    out.add_add_bos_token(adds_bos(tokenizer))
    out.add_add_eos_token(bool(inner.eos_token_id is not None and inner.encode("a")[-1] == inner.eos_token_id))
    template = inner.chat_template
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()))
    out.add_chat_template(template)


def adds_bos(tokenizer: Any) -> bool:
    inner = tokenizer.inner
    return inner.bos_token_id is not None and inner.encode("a")[0] == inner.bos_token_id
