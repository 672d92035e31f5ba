"""The forecast of LoRA and QLoRA against hand counts, and against what the model code makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shoestring.estimate import adapters
from shoestring.estimate.flops import ModelShape

SMOL = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
TINY = ModelShape(2, 24, 6, 2, 4, 40, 61, True)


def test_counts_by_hand() -> None:
    """SmolLM2-135M, rank 16: q and o 576 + 576, k and v 192 + 576, gate, up and down 1536 + 576."""
    a_layer = 2 * 1152 + 2 * 768 + 3 * 2112
    assert adapters.adapter_parameters(SMOL, 16) == 30 * 16 * a_layer == 4_884_480
    assert adapters.adapter_parameters(SMOL, 8, ("q_proj", "v_proj")) == 30 * 8 * (1152 + 768)
    assert 8 * adapters.nf4_bytes(2048 * 2048) / 2048**2 == pytest.approx(4.127, abs=5e-4)
    parts = adapters.adapter_training_bytes(SMOL, 16)
    assert parts["master weights"] == 4 * 4_884_480 and parts["compute copy"] == 2 * (4_884_480 + SMOL.parameters())
    quantised = adapters.adapter_training_bytes(SMOL, 16, quantised=True)
    assert quantised["compute copy"] < 0.5 * parts["compute copy"] and quantised["dequantised matrix"] == 2 * 576 * 3072
    assert 2 / 3 < adapters.adapter_training_flops_share(SMOL, 16) < 0.72


@pytest.mark.parametrize("targets", [adapters.TARGETS, ("k_proj", "down_proj")])
def test_the_model_code_makes_what_is_forecast(targets: tuple[str, ...], tiny_decoder: Callable[..., Any]) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    from shoestring.models import lora, nf4

    model = tiny_decoder()
    done = nf4.quantise_model(model)
    own = lora.attach(model, lora.LoraConfig(3, 6.0, targets), seed=1)
    assert sum(p.numel() for p in own.values()) == adapters.adapter_parameters(TINY, 3, targets)
    rest = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in own.values())
    assert adapters.frozen_bytes(TINY, quantised=True) == done["bytes"] + 2 * rest
    assert adapters.frozen_bytes(TINY) == 2 * TINY.parameters()
    where = lora.spans(model.config)
    assert {t: where[t][1] for t in where} == {t: s[0] for t, s in adapters.target_shapes(TINY).items()}
