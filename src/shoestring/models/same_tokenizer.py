"""Whether two model folders cut and number text alike: their vocabularies, merges and special tokens, not just the sizes.

Comparing distributions token by token means nothing unless id i is one string on both sides. Reads files; needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoestring.records import UserError

PLAIN = (("tokenizer.model",), ("vocab.json", "merges.txt"))  # of folders that have no tokenizer.json


def difference(student: Path, teacher: Path) -> str:
    """What differs first, in words; "" where nothing does. UserError for a tokenizer that cannot be read."""
    if (student / "tokenizer.json").is_file() and (teacher / "tokenizer.json").is_file():
        return _by_tables(_read(student), _read(teacher))
    for names in PLAIN:
        if all((folder / name).is_file() for folder in (student, teacher) for name in names):
            differing = [n for n in names if (student / n).read_bytes() != (teacher / n).read_bytes()]
            return f"{differing[0]} differs" if differing else ""
    lacking = teacher if (student / "tokenizer.json").is_file() else student
    raise UserError(f"{lacking}: no tokenizer.json to compare tokenizers by; save the folder again with transformers")


def largest_id(folder: Path) -> int | None:
    """The largest id that the folder's tokenizer.json gives out; None where there is none."""
    if not (folder / "tokenizer.json").is_file():
        return None
    tables = _read(folder)
    return max([*tables["vocab"].values(), *(i for i, _ in tables["added"].values())], default=None)


def _read(folder: Path) -> dict[str, Any]:
    """vocab {string: id}, merges [(left, right)], added {string: (id, special)}."""
    path = folder / "tokenizer.json"
    try:
        whole = json.loads(path.read_bytes())
        model = whole["model"]
        vocab = model.get("vocab", {})
        if not isinstance(vocab, Mapping):  # unigram models list (string, score)
            vocab = {row[0]: i for i, row in enumerate(vocab)}
        merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model.get("merges", ())]
        added = {t["content"]: (int(t["id"]), bool(t.get("special"))) for t in whole.get("added_tokens") or ()}
        return {"kind": model.get("type") or "", "vocab": vocab, "merges": merges, "added": added}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise UserError(f"{path}: not a readable tokenizer ({e!r})") from None


def _by_tables(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    if a["kind"] and b["kind"] and a["kind"] != b["kind"]:
        return f"kinds: {a['kind']} and {b['kind']}"
    if a["vocab"] != b["vocab"]:
        sizes = f"{len(a['vocab']):,} and {len(b['vocab']):,} tokens"
        names: list[dict[int, str]] = [{i: s for s, i in t["vocab"].items()} for t in (a, b)]
        for i in sorted(names[0].keys() & names[1].keys()):
            if names[0][i] != names[1][i]:
                return f"vocabularies ({sizes}): id {i} is {names[0][i]!r} and {names[1][i]!r}"
        return f"vocabularies ({sizes})"
    if a["merges"] != b["merges"]:
        first = next((i for i, (x, y) in enumerate(zip(a["merges"], b["merges"], strict=False)) if x != y), None)
        counts = f"{len(a['merges']):,} and {len(b['merges']):,}"
        return f"merges ({counts}{'' if first is None else f', the first at rule {first + 1}'})"
    if a["added"] != b["added"]:
        name = min(s for s in a["added"].keys() | b["added"].keys() if a["added"].get(s) != b["added"].get(s))
        said = [
            f"id {t[name][0]}{'' if t[name][1] else ', not special'}" if name in t else "absent"
            for t in (a["added"], b["added"])
        ]
        return f"special tokens: {name!r} is {said[0]} and {said[1]}"
    return ""
