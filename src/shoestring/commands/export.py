"""`shoestring export`: a model as one GGUF file for llama.cpp and Ollama, checked against the original before it is kept."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.records import UserError

if TYPE_CHECKING:
    from shoestring.models.gguf_check import Closeness
    from shoestring.models.gguf_write import Written

KINDS = ("q8_0", "q4_k_m", "f16")


def add(sub: Any) -> argparse.ArgumentParser:
    said = "write a model as a GGUF file for llama.cpp and Ollama"
    c = sub.add_parser("export", help=said, description=said)
    c.add_argument("model", metavar="MODEL", help="a run's or a model's folder, a name or a hub id")
    c.add_argument("--gguf", required=True, choices=KINDS, help="how the weights are stored")
    c.add_argument("--out", type=Path, metavar="FILE", help="default: NAME-KIND.gguf in this folder")
    c.add_argument("--json", action="store_true", help="as data (docs/json/export.md)")
    return c


def run(args: argparse.Namespace) -> int:
    from shoestring import export
    from shoestring.models import gguf_check, gguf_write
    from shoestring.models.modelfile import modelfile
    from shoestring.models.tokenizer import Tokenizer

    started = time.monotonic()
    folder, name, licence = export.model_and_licence(args.model)
    out = args.out or Path(f"{name}-{args.gguf}.gguf")
    if out.suffix != ".gguf":
        raise UserError(f"{out}: give --out a name that ends in .gguf")
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} is not there; make it first")
    beside = out.with_name(f"{out.stem}.Modelfile")
    for made in (out, beside):
        if made.exists():
            raise UserError(f"{made}: this file exists; remove it or give another --out")
    written = gguf_write.write(folder, out, args.gguf, name, licence)
    try:
        close = gguf_check.closeness(folder, out)
        if not close.top >= gguf_check.FLOOR[args.gguf]:
            raise UserError(
                f"{out}: removed, because the same token comes first on {close.top:.1%} of {close.tokens} positions only "
                f"(a sound {args.gguf} file: {gguf_check.FLOOR[args.gguf]:.0%} at least); keep the model's safetensors"
            )
        text, why = modelfile(out.name, Tokenizer(folder), licence)
    except BaseException:  # an unchecked file is not left behind, interrupted or not
        out.unlink(missing_ok=True)
        raise
    beside.write_text(text, encoding="utf-8")
    data = to_dict(written, close, args.gguf, beside, why, licence, time.monotonic() - started)
    print(json.dumps(data, indent=1)) if args.json else _print(data)
    return 0


def to_dict(
    w: Written, close: Closeness, kind: str, beside: Path, why: str, licence: str, seconds: float
) -> dict[str, Any]:  # fmt: skip
    """The content of `export --json` (docs/json/export.md)."""
    return {
        "file": str(w.path), "kind": kind, "bytes": w.bytes, "seconds": round(seconds, 2), "licence": licence or None,
        "pre_tokenizer": w.pre, "tensors": dict(sorted(w.types.items())), "fell_back": dict(w.fell_back),
        "notes": list(w.notes),
        "closeness": {
            "tokens": close.tokens, "texts": close.texts, "largest_difference": close.largest, "mean_kl": close.kl,
            "same_top_token": close.top, "texts_with_same_ids": close.same_ids, "basis": "measured",
        },
        "modelfile": {"file": str(beside), "template": not why, "why_no_template": why or None},
    }  # fmt: skip


def _print(d: dict[str, Any]) -> None:
    close = d["closeness"]
    kinds = ", ".join(f"{n} {k}" for k, n in sorted(d["tensors"].items()))
    print(f"{d['file']}: {d['bytes'] / 1e6:,.1f} MB, {kinds}")
    if d["fell_back"]:
        each = ", ".join(f"{n} {what}" for what, n in d["fell_back"].items())
        print(f"fell back: {sum(d['fell_back'].values())} tensors whose rows are not whole blocks ({each})")
    for note in d["notes"]:
        print(f"note: {note}")
    print(
        f"logits: largest difference {close['largest_difference']:.3g}, mean KL {close['mean_kl']:.2e} nats, same top token "
        f"on {close['same_top_token']:.1%} of {close['tokens']} positions (measured against the original)"
    )
    ids = close["texts_with_same_ids"]
    same = "not compared: it reads no such vocabulary" if ids is None else f"same ids on {ids} of {close['texts']} texts"
    print(f"tokens: pre-tokenizer {d['pre_tokenizer']}; read back by transformers, {same}")
    m = d["modelfile"]
    told = "" if m["template"] else f" without a TEMPLATE: {m['why_no_template']}"
    print(f"{m['file']}: an Ollama Modelfile{told}")
