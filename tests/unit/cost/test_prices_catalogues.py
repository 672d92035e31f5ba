"""Newer catalogues from disk: what their formats get wrong, and that what is written is a book that reads."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.cost import book as own
from shoestring.cost import catalogues, writing
from shoestring.cost.catalogues import Ask, Taken, take
from shoestring.cost.rows import MachineRow, TeacherRow
from shoestring.cost.sources import DATA
from shoestring.records import UserError

ASK = Ask("2026-11-20", "a test")
HEAD = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone\n"


def info(mib: float, count: int, total: float) -> str:
    return f"\"{{'Gpus': [{{'Name': 'X', 'Count': {count}, 'MemoryInfo': {{'SizeInMiB': {mib}}}}}], 'TotalGpuMemoryInMiB': {total}}}\""


def sky(tmp_path: Path, cloud: str, *lines: str) -> Taken:
    folder = tmp_path / cloud
    folder.mkdir(exist_ok=True)
    (folder / "vms.csv").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    return take(folder / "vms.csv", ASK)


def machine(taken: Taken, n: int = 0) -> MachineRow:
    row = taken.rows[n]
    assert isinstance(row, MachineRow)
    return row


def test_skypilot_a_row(tmp_path: Path) -> None:
    row = machine(
        sky(tmp_path, "aws", f"p5.48xlarge,H100,8.0,192.0,2048.0,{info(81920, 8, 655360)},55.04,10.24,us-east-1,use1-az1")
    )
    assert row == MachineRow(
        "aws",
        "p5.48xlarge",
        "a test",
        "2026-11-20",
        "us-east-1",
        "use1-az1",
        "H100",
        8,
        80.0,
        192,
        2048.0,
        Decimal("55.04"),
        Decimal("10.24"),
    )


def test_skypilot_memory_units(tmp_path: Path) -> None:
    """RunPod's MiB are GiB; Lambda's total is one GPU's; Vast's size is the node's; Yotta's Count is always 1."""
    runpod = machine(sky(tmp_path, "runpod", f"2x_A100-80GB,A100-80GB,2.0,16,234,{info(80, 2, 160)},2.78,2.78,US,US-TX-1"))
    assert (runpod.gpu_memory_gib, runpod.gpus, runpod.gpu) == (80.0, 2, "A100-80GB") and "taken as GiB" in runpod.note
    one = machine(sky(tmp_path, "lambda", f"gpu_8x_v100,V100,8.0,88,448,{info(16384, 8, 16384)},6.32,,us-east-1,"))
    assert one.gpu_memory_gib == 16.0
    vast = machine(sky(tmp_path, "vast", f'8x-H200,H200,8,32,64,{info(1150168, 8, 1150168)},17.88,0.00,"France, FR, EU",'))
    assert vast.gpu_memory_gib == pytest.approx(140.4, abs=0.1) and (vast.region, vast.zone) == ("FR", "France")
    yotta = machine(sky(tmp_path, "yotta", f"8x_5090,RTX5090,8.0,112,952,{info(32607, 1, 260856)},5.2,,us-east-2,"))
    assert (yotta.gpus, yotta.gpu_memory_gib) == (8, 31.8)
    pcie = machine(sky(tmp_path, "vast", f'1x-A100_PCIE,A100,1,32,64,{info(81920, 1, 81920)},0.87,0.00,"Oklahoma, US, NA",'))
    assert pcie.gpu == "A100-80GB"
    nvl = machine(sky(tmp_path, "vast", f'2x-H100_NVL,H100,2,32,64,{info(191660, 2, 191660)},4.53,0.00,"Australia, AU, OC",'))
    assert nvl.gpu == "H100-NVL" and nvl.gpu_memory_gib == 93.6
    odd = sky(tmp_path, "vast", f'2x-NEW,NEW1,2,32,64,{info(7_000_000, 2, 7_000_000)},4.53,0.00,"Australia, AU, OC",')
    assert machine(odd).gpu_memory_gib == 0.0 and "GPU memory unknown: 1 rows" in odd.said


def test_skypilot_prices_that_are_none(tmp_path: Path) -> None:
    zero = sky(
        tmp_path,
        "azure",
        "a,H100,1,8,64,,0.0,0.00,eastus,1",
        "b,H100,1,8,64,,3.5,0.00,eastus,1",
        "c,H100,1,8,64,,,1.2,eastus,1",
    )
    assert [(r.instance, r.ondemand, r.spot) for r in map(lambda n: machine(zero, n), range(2))] == [("b", Decimal("3.5"), None), ("c", None, Decimal("1.2"))]  # fmt: skip
    assert (
        zero.said[:1] == ["left out, no price or $0 (unknown, not free): 1 rows"]
        and "spot only" in machine(zero, 1).spot_remark
    )
    repeats = sky(tmp_path, "runpod", "a,H100,1,8,64,,3.5,3.5,US,1", "b,H100,2,8,64,,7,7,US,1")
    assert machine(repeats).spot is None and any("repeats the on-demand price" in s for s in repeats.said)
    some = sky(tmp_path, "aws", "a,H100,1,8,64,,3.5,3.5,US,1", "a,H100,1,8,64,,3.5,0.35,US,2", "a,H100,1,8,64,,3.5,1,US,3")
    assert [machine(some, n).spot_remark[:10] for n in range(3)] == ["spot costs", "exactly a ", ""]
    cpu = machine(sky(tmp_path, "aws", "m7i.large,,,2,8,,0.1008,,us-east-1,az1"))
    assert (cpu.gpu, cpu.gpus, cpu.gpu_memory_gib) == ("", 0, 0.0)


def test_two_prices_of_one_row_are_left_out_and_said(tmp_path: Path) -> None:
    got = sky(
        tmp_path,
        "aws",
        "a,H100,1,8,64,,3.5,1,US,1",
        "a,H100,1,8,64,,3.6,1,US,1",
        "b,H100,1,8,64,,2,1,US,1",
        "b,H100,1,8,64,,2,1,US,1",
    )
    assert [r.instance for r in got.rows if isinstance(r, MachineRow)] == ["b"]
    assert got.said[:1] == ["left out, more than one price: aws/a/US/1: $3.5/h / $1/h and $3.6/h / $1/h"]


def test_litellm(tmp_path: Path) -> None:
    path = tmp_path / "model_prices.json"
    path.write_text(
        json.dumps({
            "sample_spec": {"input_cost_per_token": 1, "output_cost_per_token": 1},
            "o9": {"mode": "chat", "litellm_provider": "openai", "input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06, "cache_read_input_token_cost": 5e-07,
                   "input_cost_per_token_batches": 1e-06, "source": "https://example.org", "input_cost_per_token_above_200k_tokens": 4e-06},
            "free": {"mode": "chat", "input_cost_per_token": 0, "output_cost_per_token": 0},
            "paint": {"mode": "image_generation", "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06},
        })
    )  # fmt: skip
    taken = take(path, ASK)
    (row,) = taken.rows
    assert isinstance(row, TeacherRow) and (row.catalogue, row.model, row.provider, row.source) == (
        "litellm",
        "o9",
        "openai",
        "https://example.org",
    )
    assert row.usd == {"in": 2, "out": 8, "cached": Decimal("0.5"), "in-batch": 1, "out-batch": None}
    assert "dearer for long prompts" in row.note and taken.said == ["left out, no price or $0 (unknown, not free): 1 models"]


def test_genai_prices(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    hours = {"start_time": "00:30:00Z", "end_time": "16:30:00Z"}
    models = [
        {
            "id": "m",
            "prices_checked": "2026-07-29",
            "prices": {"input_mtok": {"base": 3, "tiers": [{"start": 200000, "price": 6}]}, "output_mtok": 15},
        },
        {
            "id": "n",
            "prices": [
                {"prices": {"input_mtok": 1, "output_mtok": 2}},
                {"constraint": hours, "prices": {"input_mtok": 2, "output_mtok": 4}},
            ],
        },
        {"id": "free", "prices": {"input_mtok": 0, "output_mtok": 0}},
    ]
    path.write_text(
        json.dumps(
            [{"id": "a", "models": models}, {"id": "b", "models": [{"id": "m", "prices": {"input_mtok": 4, "output_mtok": 9}}]}]
        )
    )
    taken = take(path, ASK)
    rows = [r for r in taken.rows if isinstance(r, TeacherRow)]
    assert [(r.model, r.hours, r.date, r.usd["in"]) for r in rows] == [
        ("a/m", "", "2026-07-29", 3), ("n", "", "2026-11-20", 1), ("n", "00:30Z-16:30Z", "2026-11-20", 2), ("b/m", "", "2026-11-20", 4)
    ]  # fmt: skip
    assert "from 200000 tokens $6" in rows[0].note
    out = tmp_path / "teachers.toml"
    writing.write(rows, out)
    got = own.read(out)
    assert (
        got["teacher:genai-prices/n/in@16:30Z-00:30Z"].amount * 1_000_000 == 1
        and got["teacher:genai-prices/a/m/out"].ref.date == "2026-07-29"
    )
    with pytest.raises(UserError, match="holds machines only"):
        writing.write(rows, tmp_path / "teachers.csv")
    with pytest.raises(UserError, match="this file exists"):
        writing.write(rows, out)


def test_our_own_file_comes_back_the_same(tmp_path: Path) -> None:
    """instances.csv → book.csv and book.toml → the same prices and facts as shipped."""
    from shoestring.cost.sources import instances

    taken = take(DATA / "instances.csv", ASK)
    want = {s: (p.amount, p.machine, p.ref.date) for s, p in instances.load()}
    for name in ("book.csv", "book.toml"):
        writing.write(taken.rows, tmp_path / name)
        assert {s: (p.amount, p.machine, p.ref.date) for s, p in own.read(tmp_path / name).items()} == want


def test_files_that_are_none(tmp_path: Path) -> None:
    for body, said in (
        ("", "none of the known formats"),
        ("InstanceType,SpotPrice\n1,2\n", "column vCPUs is missing|does not say whose"),
        ("[1]", "none of the known|not"),
    ):
        path = tmp_path / "x.csv"
        path.write_text(body)
        with pytest.raises(UserError, match=said):
            take(path, ASK)
    with pytest.raises(UserError, match='unknown format "litelm"; did you mean "litellm"'):
        take(path, ASK, "litelm")
    with pytest.raises(UserError, match="No such file"):
        take(tmp_path / "none.csv", ASK)


json_like = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "models", "prices", "input_mtok", "output_mtok", "constraint", "start_date", "start_time", "end_time", "base", "tiers", "mode", "input_cost_per_token", "output_cost_per_token", "x"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=80) | json_like.map(json.dumps) | st.lists(json_like, max_size=3).map(lambda x: json.dumps([{"id": "p", "models": x}])), st.sampled_from(sorted(catalogues.formats())))  # fmt: skip
def test_any_file_is_read_or_a_user_error(tmp_path: Path, text: str, format: str) -> None:
    path = tmp_path / "any"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(UserError):
        for row in take(path, Ask("2026-01-01", "s", "p"), format).rows:
            assert all(p.amount > 0 for _, p in row.prices())


cells = st.sampled_from(["", "0", "0.00", "1.5", "8.0", "nan", "-1", "1e400", "x", "1/2"]) | st.text(max_size=6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(cells, min_size=10, max_size=10), min_size=1, max_size=3))
def test_any_row_of_skypilot_is_read_or_a_user_error(tmp_path: Path, lines: list[list[str]]) -> None:
    import csv
    import io

    out = io.StringIO()
    csv.writer(out).writerows(lines)
    path = tmp_path / "vms.csv"
    path.write_bytes((HEAD + out.getvalue()).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(UserError):
        for row in take(path, Ask("2026-01-01", "s", "p"), "skypilot-csv").rows:
            assert all(p.amount > 0 for _, p in row.prices())
