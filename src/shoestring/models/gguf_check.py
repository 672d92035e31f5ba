"""How close a GGUF file's model is to the folder that it was written from: both computed here, on a few texts.

The file is read from its own header and tensors, with nothing taken from the folder but the token ids, so that a wrong
key, order or type is seen as a difference of logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoestring.models import families, folder, gguf
from shoestring.models.decoder import Decoder
from shoestring.models.tokenizer import Tokenizer
from shoestring.records import Document, UserError

# what the least share of positions with the same most probable token may be before the file is thought broken. A good
# file lies far above (docs/export.md); a wrong rotary order or a lost bias lies near nothing.
FLOOR = {"f16": 0.98, "q8_0": 0.90, "q4_k_m": 0.60}
LONGEST = 256  # tokens of a text
TEXTS = (
    "A bakery sells 24 loaves in the morning and half as many in the afternoon. It baked 50. How many loaves are left? "
    "In the afternoon it sells 24 / 2 = 12 loaves. Together it sells 24 + 12 = 36 loaves, so 50 - 36 = 14 are left.",
    "The old lighthouse stood at the end of the pier, and every evening at six its keeper climbed the narrow stairs to "
    "clean the glass, wind the clockwork and light the lamp before the first of the fishing boats came home.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n",
    "Question: which is heavier, a litre of water or a litre of oil? Let us think. Oil floats on water, so a litre of "
    "oil must weigh less than a litre of water. Answer: a litre of water.",
    "Am Montag regnete es, am Dienstag schien die Sonne. En hiver, les jours sont courts et les nuits sont longues. "
    "El tren sale a las ocho y media de la mañana.",
)


@dataclass(frozen=True)
class Closeness:
    """Over all positions of all texts. largest: |difference| of any logit; kl: mean KL(folder ‖ file), nats a token; top:
    share of positions with the same most probable token. same_ids: texts that transformers' reading of the file's
    vocabulary splits into the same ids as the folder's tokenizer; None where it cannot read that vocabulary."""

    tokens: int
    largest: float
    kl: float
    top: float
    texts: int
    same_ids: int | None


def closeness(model: Path, path: Path) -> Closeness:
    """Measure `path` against the folder `model`. Two fp32 models are made, one after the other."""
    tokenizer = Tokenizer(model)
    ids = [tokenizer.encode(t)[:LONGEST] for t in TEXTS]
    ids = [i for i in ids if i]
    before = _logits(folder.load(model), ids)
    after = _logits(read(path), ids)
    largest = kl = 0.0
    agree = count = 0
    for a, b in zip(before, after, strict=True):
        largest = max(largest, _worst(a, b))
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum())
        agree += int((a.argmax(-1) == b.argmax(-1)).sum()) if bool(b.isfinite().all()) else 0
        count += len(a)
    return Closeness(count, largest, kl / count, agree / count, len(ids), _same_ids(tokenizer, path))


def read(path: Path) -> Decoder:
    """A GGUF file as a Decoder in fp32, without a folder in between."""
    reader = gguf._reader(path)
    hf = gguf.read_config(reader, path)
    family = families.find(hf, str(path))
    with torch.device("meta"):
        model = Decoder(family.config(hf, str(path)))
    model = model.to(torch.float32).to_empty(device="cpu")
    family.read(model, gguf.Lookup(reader, hf, path))
    return model


@torch.inference_mode()
def _logits(model: Any, texts: list[tuple[int, ...]]) -> list[torch.Tensor]:
    return [model.logits(torch.tensor(t), torch.arange(len(t)), [Document(0, len(t))]) for t in texts]


def _worst(a: torch.Tensor, b: torch.Tensor) -> float:
    difference = (a - b).abs().max()
    return float(difference) if bool(difference.isfinite()) else float("inf")


def _same_ids(tokenizer: Tokenizer, path: Path) -> int | None:
    try:
        other = gguf._tokenizer(path)
    except UserError:
        return None
    return sum(tokenizer.encode(t) == tuple(other.encode(t, add_special_tokens=False)) for t in TEXTS)
