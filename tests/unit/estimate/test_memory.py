"""Bytes by part, against sums written out by hand; the policy that fits; what the machine says it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring.estimate.flops import ModelShape
from shoestring.estimate.memory import (
    MARGIN,
    POLICIES,
    activation_bytes,
    available_bytes,
    choose_recompute,
    decoding_bytes,
    kv_cache_bytes,
    rollout_bytes,
    state_bytes,
    training_bytes,
)

SMOL = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
STATES = ("master weights", "moments", "gradients", "compute copy")


def test_states_are_eighteen_bytes_a_weight() -> None:
    parts = training_bytes(SMOL, 2048)
    assert sum(parts[k] for k in STATES) == 18 * SMOL.parameters()
    assert sum(training_bytes(SMOL, 2048, micro_batches=1)[k] for k in STATES) == 16 * SMOL.parameters()
    assert parts["logits"] == (8 * 256 + 2 * 1024) * 49152 + 6 * 49152 * 576
    assert training_bytes(SMOL, 100)["logits"] == 10 * 100 * 49152 + 2 * 49152 * 576


def test_other_optimisers_keep_less() -> None:
    n = SMOL.parameters()
    assert state_bytes(SMOL) == 8 * n
    assert 2 * n < state_bytes(SMOL, "adamw8bit") < 2.04 * n
    matrices = 30 * (576 * 960 + 576 * 576 + 3 * 576 * 1536)
    assert state_bytes(SMOL, "muon") == 4 * matrices + 8 * (n - matrices)


def test_activations_grow_with_rows_and_shrink_with_recomputation() -> None:
    one, two = (training_bytes(SMOL, rows)["activations"] for rows in (1000, 2000))
    values = 4 * 576 + 3 * 576 + 2 * 192 + 3 * 1536 + 64
    assert two == 2 * one == 2 * 1000 * 30 * (2 * values + 4 * 9 + 8)
    assert activation_bytes(SMOL) - activation_bytes(SMOL, "selective") == 2 * (2 * 576 + 1536)
    full = training_bytes(SMOL, 1000, "full")
    assert full["activations"] == 1000 * 30 * 2 * 576 and full["recomputed layer"] == 1000 * activation_bytes(SMOL)
    sums = [sum(training_bytes(SMOL, 1000, p).values()) for p in POLICIES]
    assert sums == sorted(sums, reverse=True)


def test_kv_cache() -> None:
    assert kv_cache_bytes(SMOL, 1) == 2 * 30 * 3 * 64 * 2  # 23,040 bytes a token
    assert decoding_bytes(SMOL, 32, 128)["kv cache"] == kv_cache_bytes(SMOL, 4096)
    assert rollout_bytes(SMOL, 32, 128) == {"prepacked weights": 2 * SMOL.parameters(), "kv cache": kv_cache_bytes(SMOL, 4096)}


def test_the_quickstart_fits_under_six_gib() -> None:
    parts = training_bytes(SMOL, 2048) | rollout_bytes(SMOL, 64, 256)
    assert sum(parts.values()) < 6 * 2**30


@pytest.mark.parametrize("rows", [256, 2048])
@pytest.mark.parametrize("optimiser", ["adamw", "adamw8bit", "muon"])
def test_auto_takes_the_cheapest_policy_that_fits(rows: int, optimiser: str) -> None:
    totals = [choose_recompute(SMOL, rows, p, optimiser, memory_gib=1).total for p in POLICIES]
    for i, policy in enumerate(POLICIES):
        enough = int(totals[i] / MARGIN) + 1
        chosen = choose_recompute(SMOL, rows, "auto", optimiser, available=enough)
        assert (chosen.recompute, chosen.total, chosen.fits) == (policy, totals[i], True)
    least = choose_recompute(SMOL, rows, "auto", optimiser, memory_gib=0.5)
    assert least.recompute == "full" and not least.fits and least.available == 2**29
    stated = choose_recompute(SMOL, rows, "none", optimiser, memory_gib=0.5)
    assert stated.recompute == "none" and not stated.fits


def test_what_else_is_in_the_process_counts() -> None:
    alone = choose_recompute(SMOL, 2048, available=int(5.0 * 2**30))
    beside = choose_recompute(SMOL, 2048, available=int(5.0 * 2**30), beside=rollout_bytes(SMOL, 64, 256))
    assert POLICIES.index(beside.recompute) > POLICIES.index(alone.recompute)


def world(tmp_path: Path, meminfo: str, cgroup: str, files: dict[str, str]) -> int | None:
    proc, groups = tmp_path / "proc", tmp_path / "cg"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(meminfo)
    (proc / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    return available_bytes(proc, groups)


MEMINFO = "MemTotal:  8000 kB\nMemFree: 10 kB\nMemAvailable:   4000 kB\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, 4000 * 1024),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5"}, 4000 * 1024),
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "400"}, 600),
        ("0::/a/b\n", {"a/memory.max": "1000", "a/memory.current": "900", "a/memory.stat": "anon 1\ninactive_file 500\n"}, 600),
        ("0::/a\n", {"memory.max": "700", "memory.current": "0", "a/memory.max": "900", "a/memory.current": "0"}, 700),
        ("4:memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": "500", "memory/x/memory.usage_in_bytes": "600"}, 0),
        ("3:cpu:/x\n", {"memory/x/memory.limit_in_bytes": "5", "memory/x/memory.usage_in_bytes": "0"}, 4000 * 1024),
        ("nonsense\n", {}, 4000 * 1024),
    ],
)
def test_the_tightest_limit_counts(tmp_path: Path, cgroup: str, files: dict[str, str], expected: int) -> None:
    assert world(tmp_path, MEMINFO, cgroup, files) == expected


def test_a_system_that_does_not_say_is_not_a_limit(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) is None
    assert world(tmp_path, "MemTotal: 5 kB\n", "", {}) is None
