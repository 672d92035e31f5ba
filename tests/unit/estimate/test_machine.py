"""The machine's profile: a wide prior, then the measurement, kept by processor, cores and torch version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shoestring.estimate import machine
from shoestring.estimate.machine import (
    cache_folder,
    cpu_flags,
    cpu_model,
    current_profile,
    latest_profile,
    load_profile,
    prior,
    profile_key,
    save_profile,
)  # fmt: skip
from shoestring.records import Quantity

CPUINFO = (
    "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: Some CPU\nflags\t\t: fpu avx512_bf16 sse\n\nprocessor\t: 1\n"
)
MEASURED = replace(prior([], 2), train_flops=Quantity(1, 2, 3, "measured"), basis="measured")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))


def test_cpuinfo(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(CPUINFO)
    assert cpu_flags(info) == {"fpu", "avx512_bf16", "sse"} and cpu_model(info) == "Some CPU (26/2)"
    assert cpu_flags(tmp_path / "none") == frozenset() and cpu_model(tmp_path / "none") == "unknown"


def test_prior_is_ordered_wide_and_from_literature() -> None:
    amx, avx, plain = prior(["amx_bf16", "avx512_bf16"], 2), prior(["avx512_bf16"], 2), prior([], 2)
    assert amx.train_flops.mid == 0.41e12 and avx.train_flops.mid == 0.25e12 and plain.train_flops.mid == 0.1e12
    for p in (amx, avx, plain):
        for q in (p.train_flops, p.decode_tokens, p.prefill_tokens, p.load_seconds, p.disk_bytes_per_second):
            assert q.basis == "literature" and q.high >= 3 * q.low
    assert prior(["amx_bf16"], 8).train_flops.mid == 4 * amx.train_flops.mid
    assert prior(["amx_bf16"], 8).load_seconds == amx.load_seconds


def test_token_rates_carry_over_by_size() -> None:
    p = prior(["amx_bf16"], 2)
    assert p.tokens_for(p.decode_tokens, 2 * p.parameters).mid == pytest.approx(p.decode_tokens.mid / 2)


def test_save_and_load() -> None:
    key = profile_key("2.13.0")
    assert load_profile(key) is None and current_profile("2.13.0").basis == "literature"
    assert save_profile(key, MEASURED)
    assert load_profile(key) == current_profile("2.13.0") == current_profile() == MEASURED
    assert current_profile("2.11.0").basis == "literature"
    newer = replace(MEASURED, load_seconds=Quantity(0, 1, 2, "measured"))
    assert save_profile(profile_key("2.11.0"), newer) and latest_profile() == newer
    assert save_profile(key, MEASURED) and latest_profile() == MEASURED
    assert [p.name for p in cache_folder().iterdir()] == ["profile.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"KEY": 3}', '{"KEY": {"basis": "measured"}}', '{"KEY": null}'])
def test_a_broken_cache_is_no_profile(content: str) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "profile.json").write_text(content.replace("KEY", profile_key("1")))
    assert load_profile(profile_key("1")) is None and latest_profile() is None
    assert save_profile(profile_key("1"), MEASURED) and load_profile(profile_key("1")) == MEASURED


def test_an_unwritable_cache_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert not save_profile("k", MEASURED) and load_profile("k") is None


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOESTRING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/shoestring")
    assert machine.cores() >= 1
