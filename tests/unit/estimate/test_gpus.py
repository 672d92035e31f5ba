"""Cards by any of their names; an unknown one is refused with the nearest."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from shoestring.estimate import gpus
from shoestring.estimate.gpus import gpu
from shoestring.records import UserError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
DATA = gpus.PEAKS.parent


@pytest.mark.parametrize(
    "name, found",
    [
        ("H100", "H100-SXM"), ("H100-80GB", "H100-SXM"), ("NVIDIA H100 80GB HBM3", "H100-SXM"), ("H100-NVL", "H100-NVL"),
        ("H100-96GB HBM2e 2.4TB/s 500W", "H100-SXM-96GB-500W"), ("A100", "A100-SXM-80GB"), ("A100-40GB", "A100-SXM-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"), ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"), ("V100-32GB", "V100-SXM2-32GB"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"), ("RTX-6000-Ada", "RTX-6000-Ada"), ("RTX2000-Ada", "RTX-2000-Ada"), ("h200", "H200-SXM"),
        ("Tesla T4", "T4"), ("NVIDIA L4", "L4"), ("B300", "B300-SXM"),
    ],
)  # fmt: skip
def test_spellings(name: str, found: str) -> None:
    assert gpu(name).name == found


def test_every_row_has_peaks_and_a_source() -> None:
    for name in gpus.names():
        card = gpu(name)
        assert card.memory_gib >= 16 and card.bytes_per_second > 1e11 and card.source, name
        assert card.fp16_flops >= card.fp32_flops > 0 and card.bf16_flops >= card.fp32_flops, name
        assert card.fp8_flops is None or card.fp8_flops > 1.9 * card.bf16_flops, name


def test_no_bf16_is_fp32_speed() -> None:
    card = gpu("V100")
    assert not card.has_bf16 and card.bf16_flops == card.fp32_flops == 15.7e12 and card.fp16_flops == 125e12


def test_unknown_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown GPU 'H1000'; did you mean H100"):
        gpu("H1000")
    with pytest.raises(UserError, match="unknown GPU ''; known are"):
        gpu("")


def test_names_of_the_shipped_tables_resolve() -> None:
    for table in ("runs", "throughput_llmfoundry", "throughput_torchtitan", "memory_lora_litgpt"):
        with (DATA / f"{table}.csv").open(newline="") as f:
            for name in {row["gpu"] for row in csv.DictReader(f)} - {""}:
                assert gpu(name)


def test_names_of_the_price_list_resolve() -> None:
    path = SHARED / "prices" / "instances.csv"
    if not path.exists():
        pytest.skip("the reference prices are not in ../shared/data/prices; the copy that ships is tested")
    with path.open(newline="") as f:
        for name in {row["gpu"] for row in csv.DictReader(f)}:
            assert gpu(name)
