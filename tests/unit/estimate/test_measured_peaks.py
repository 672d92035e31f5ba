"""The memory forecast beside peaks that we measured: within 15% of each.

Source: largest resident set (ru_maxrss) of a process that made three steps of two micro-batches of the quickstart's traces with
SmolLM2-135M-Instruct, freed memory kept (allocator.py), torch 2.13.0 CPU, Linux x86_64, one thread, 2026-11-22. The last row
is the GRPO bench's (docs/benchmarks.md, 2026-11-21: 4 prompts x 8 answers of at most 64 tokens).
"""

from __future__ import annotations

from typing import Any

import pytest

from shoestring.estimate.adapters import adapter_training_bytes
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.memory import choose_recompute, rollout_bytes

SMOL = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
PEAKS = [  # settings, measured GiB
    ({"rows": 2048}, 4.546),
    ({"rows": 1024}, 3.748),
    ({"rows": 2048, "optimiser": "adamw8bit"}, 3.779),
    ({"rows": 2048, "recompute": "selective"}, 4.313),
    ({"rows": 2048, "recompute": "full"}, 3.528),
    ({"rows": 2048, "adapter": adapter_training_bytes(SMOL, 16)}, 2.5),
    ({"rows": 2048, "adapter": adapter_training_bytes(SMOL, 16, quantised=True)}, 2.306),
    ({"rows": 2048, "beside": rollout_bytes(SMOL, 32, 58 + 64)}, 4.47),
]


@pytest.mark.parametrize(("settings", "measured"), PEAKS)
def test_within_fifteen_percent(settings: dict[str, Any], measured: float) -> None:
    made = choose_recompute(SMOL, **{"recompute": "none", "memory_gib": 64.0} | settings)
    assert made.total / 2**30 == pytest.approx(measured, rel=0.15)
