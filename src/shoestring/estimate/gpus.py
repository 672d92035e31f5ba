"""Peaks of GPUs by any of their names: the card of a cloud's catalogue, of a paper's table or of torch. Standard library only.

The rows stand in `data/gpu_peaks.csv` with their sources. Peaks are dense (never the sparse figure of an advert) and, where
a card has two, with fp32 accumulation, which is what training uses.
"""

from __future__ import annotations

import csv
import difflib
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from shoestring.records import UserError

PEAKS = Path(__file__).parent / "data" / "gpu_peaks.csv"

# What others call a row of the table. Spelling is compared without case, blanks and marks.
ALIASES = {
    "V100-SXM2-16GB": ("V100", "V100-16GB", "V100-SXM2", "p3"),
    "V100-SXM2-32GB": ("V100-32GB",),
    "A100-SXM-40GB": ("A100-40GB", "A100-SXM4-40GB", "A100-PCIe-40GB"),
    "A100-SXM-80GB": ("A100", "A100-80GB", "A100-SXM", "A100-SXM4", "A100-SXM4-80GB", "A800", "A800-80GB", "A800-SXM4-80GB"),
    "A100-PCIe-80GB": ("A100-PCIe", "A100-80GB-PCIe"),
    "A6000": ("RTX-A6000", "RTXA6000"),
    "A10": ("A10-24GB",),
    "L4": ("L4-24GB",),
    "L40S": ("L40S-48GB",),
    "RTX3090": ("3090", "RTX3090-24GB"),
    "RTX4090": ("4090", "RTX4090-24GB"),
    "RTX5090": ("5090", "RTX5090-32GB"),
    "MI250X": ("AMD-Instinct-MI250X", "MI250"),
    "RTX-PRO-6000": ("RTXPRO6000", "RTX-PRO-6000-Blackwell", "RTX-PRO-6000-Blackwell-Server-Edition", "RTX-PRO-6000-WS"),
    "RTX-6000-Ada": ("RTX6000-Ada", "RTX-6000-Ada-Generation"),
    "RTX-2000-Ada": ("RTX2000-Ada", "RTX-2000-Ada-Generation"),
    "H100-PCIe": ("H100-80GB-PCIe",),
    "H100-NVL": ("H100-94GB", "H100NVL"),
    "H100-SXM": ("H100", "H100-80GB", "H100-SXM5", "H100-80GB-HBM3", "H100-SXM5-80GB", "H100-80GB-SXM"),
    "H100-SXM-96GB-500W": ("H100-96GB HBM2e 2.4TB/s 500W", "H100-96GB"),
    "H800-SXM": ("H800", "H800-80GB", "H800-SXM5"),
    "H200-SXM": ("H200", "H200-141GB", "H200-SXM5"),
    "GH200": ("GH200-96GB", "GH200-480GB"),
    "H20": ("H20-96GB",),
    "B200-SXM": ("B200",),
    "B300-SXM": ("B300",),
    "MI300X": ("AMD-Instinct-MI300X", "MI300X-192GB"),
}


@dataclass(frozen=True)
class Gpu:
    """One card. Peaks in FLOP/s, memory in GiB, bandwidth in bytes a second.

    bf16_flops is the speed of bf16 code: where `has_bf16` is false the card computes it at its fp32 peak.
    fp8_flops and measured_bf16_flops (the best matrix product that somebody measured) are None where unknown.
    """

    name: str
    memory_gib: float
    bf16_flops: float
    fp16_flops: float
    fp32_flops: float
    fp8_flops: float | None
    bytes_per_second: float
    has_bf16: bool = True
    measured_bf16_flops: float | None = None
    source: str = ""
    note: str = ""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)


def _plain(name: str) -> str:
    """A name without maker, marks, blanks and case: "NVIDIA H100 80GB HBM3" → "h10080gbhbm3"."""
    words = re.sub(r"[-_]", " ", name.lower())
    words = re.sub(r"\b(nvidia|geforce|tesla|amd|instinct|graphics|device)\b", " ", words)
    return re.sub(r"[^a-z0-9]", "", words)


def _tera(text: str) -> float | None:
    return float(text) * 1e12 if text.strip() else None


@functools.cache
def _table() -> dict[str, Gpu]:
    """Plain name → card, aliases included."""
    found: dict[str, Gpu] = {}
    with PEAKS.open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            fp32 = _tera(row["fp32_tflops"]) or 0.0
            bf16 = _tera(row["bf16_tflops_dense"])
            card = Gpu(
                name=row["gpu"],
                memory_gib=float(row["mem_gb"]),
                bf16_flops=bf16 or fp32,
                fp16_flops=_tera(row["fp16_tflops_dense"]) or fp32,
                fp32_flops=fp32,
                fp8_flops=_tera(row["fp8_tflops_dense"]),
                bytes_per_second=float(row["hbm_tb_per_s"]) * 1e12,
                has_bf16=bf16 is not None,
                measured_bf16_flops=_tera(row["measured_max_matmul_bf16_tflops"]),
                source=row["sources"],
                note=row["note"],
            )
            for name in (card.name, *ALIASES.get(card.name, ())):
                found[_plain(name)] = card
    return found


def names() -> list[str]:
    """The cards known, by the table's names."""
    return sorted({card.name for card in _table().values()})


@functools.cache
def gpu(name: str) -> Gpu:
    """The card of this name. UserError with the nearest names where it is unknown: a peak is never guessed."""
    table = _table()
    plain = _plain(name)
    if card := table.get(plain):
        return card
    # torch and clouds add sockets and generations ("… 80GB HBM3", "… SXM5"): drop them from the right
    for cut in ("hbm3e", "hbm3", "hbm2e", "hbm2", "sxm5", "sxm4", "sxm2", "sxm", "serveredition", "blackwell"):
        if plain.endswith(cut) and (card := table.get(plain.removesuffix(cut))):
            return card
    shown = {_plain(n): n for n in [*names(), *(a for group in ALIASES.values() for a in group)]}
    near = [shown[p] for p in difflib.get_close_matches(plain, shown, n=2, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(names())}"
    raise UserError(f"unknown GPU {name!r}{hint}")
