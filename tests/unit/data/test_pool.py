"""The free steps over files: memory = Daft, resuming, what is wrong is counted and said."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic_pool

from shoestring.data import pool
from shoestring.data.pool import Settings, collect, curate_pool, engine, files, steps
from shoestring.records import UserError

DAFT = importlib.util.find_spec("daft") is not None
needs_daft = pytest.mark.skipif(not DAFT, reason="needs Daft: pip install 'shoestring[curate]'")
STEPS = ("rows", "marks", "format", "duplicates", "near", "decontamination", "quality", "problems")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def given_pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pool")
    made = list(synthetic_pool.rows(1500))
    leak = [r for r in made if len(str(r["prompt"]).split()) > 20][:40]
    source, against = folder / "pool.jsonl", folder / "eval.jsonl"
    wrong = ['{"prompt": "no answer column"}', "not json", '{"prompt": "", "answer": "1"}', json.dumps({"prompt": "计算三加五的和是多少啊", "answer": "8"})]
    source.write_text("".join(json.dumps(r) + "\n" for r in made) + "\n".join(wrong) + "\n", encoding="utf-8")
    against.write_text("".join(json.dumps({"prompt": "Well: " + str(r["prompt"]), "answer": "0"}) + "\n" for r in leak))
    return source, against


def small(**more: Any) -> Settings:
    return Settings(**{"light": 10**6, **more})


@pytest.fixture(scope="module")
def in_memory(given_pool: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> pool.PoolResult:
    source, against = given_pool
    return curate_pool([str(source), "bundled:lcm"], [str(against)], tmp_path_factory.mktemp("memory"), small())


@pytest.fixture(scope="module")
def through_daft(given_pool: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[pool.PoolResult]:
    source, against = given_pool
    folder = tmp_path_factory.mktemp("daft")
    yield curate_pool([str(source), "bundled:lcm"], [str(against)], folder, small(light=100, part=400))


def test_the_funnel_counts_every_row(in_memory: pool.PoolResult) -> None:
    rows = {r["step"]: r for r in in_memory.funnel}
    assert list(rows) == ["collected", "format and language", "duplicates", "near duplicates", "decontamination", "quality"]
    assert rows["collected"]["before"] == 1504 + 262
    assert "1 not JSON" in rows["format and language"]["why"] and "1 a column missing" in rows["format and language"]["why"]
    assert "1 a field empty" in rows["format and language"]["why"] and "1 not in English" in rows["format and language"]["why"]
    for step in ("duplicates", "near duplicates", "decontamination", "quality"):
        assert rows[step]["after"] < rows[step]["before"], step
    assert rows["quality"]["after"] == len(lines(in_memory.problems_path))
    assert in_memory.runner == "memory" and in_memory.peak > 0 and in_memory.seconds["near"] >= 0


def test_rows_keep_source_licence_and_what_was_measured(in_memory: pool.PoolResult, given_pool: tuple[Path, Path]) -> None:
    first, last = lines(in_memory.problems_path)[0], lines(in_memory.problems_path)[-1]
    assert first["source"] == str(given_pool[0]) and first["licence"] == "CC0-1.0"
    assert 0 <= first["pass_rate"] <= 1 and first["tokens"] >= 100
    assert last["domain"] == "lcm" and last["licence"] == "Apache-2.0" and "pass_rate" not in last


@needs_daft
def test_daft_gives_the_same(in_memory: pool.PoolResult, through_daft: pool.PoolResult) -> None:
    assert through_daft.runner == "daft" and through_daft.funnel == in_memory.funnel
    assert through_daft.problems_path.read_bytes() == in_memory.problems_path.read_bytes()
    parts = sorted(p.name for p in (through_daft.problems_path.parent / "rows").glob("*.parquet"))
    assert parts == [f"part-{i:05d}.parquet" for i in range(5)]
    assert not list((through_daft.problems_path.parent / "near").glob("*.parquet"))
    for step in ("format", "duplicates", "near", "decontamination", "quality"):
        mine, theirs = (lines(r.problems_path.parent / step / "dropped.jsonl") for r in (in_memory, through_daft))
        assert sorted(mine, key=str) == sorted(theirs, key=str) and mine


@needs_daft
def test_a_restart_skips_what_is_done(through_daft: pool.PoolResult, given_pool: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, whole = through_daft.problems_path.parent, through_daft.problems_path.read_bytes()
    again = [str(given_pool[0]), "bundled:lcm"], [str(given_pool[1])], folder, small(light=100, part=400)
    monkeypatch.setattr(engine, "write", lambda *a, **k: pytest.fail("a finished step ran again"))
    made = curate_pool(*again)
    assert made.resumed == STEPS and made.funnel == through_daft.funnel
    monkeypatch.undo()
    (folder / "near" / "manifest.json").unlink()  # killed inside the third step
    made = curate_pool(*again)
    assert made.resumed == ("rows", "marks", "format", "duplicates") and made.funnel == through_daft.funnel
    assert made.problems_path.read_bytes() == whole
    other = curate_pool([str(given_pool[0])], [], folder, small(light=100, part=400))
    assert other.resumed == () and other.funnel[0]["before"] == 1504  # other inputs: nothing is taken up
    assert "no evaluation set named" in {r["why"] for r in other.funnel}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    source = synthetic_pool.write(tmp_path / "a.jsonl", 50)
    first = curate_pool([str(source)], [], tmp_path / "w", small())
    assert curate_pool([str(source)], [], tmp_path / "w", small()).resumed == STEPS[2:]
    synthetic_pool.write(source, 60)
    second = curate_pool([str(source)], [], tmp_path / "w", small())
    assert second.resumed == () and second.funnel[0]["before"] == first.funnel[0]["before"] + 10


def test_without_daft_small_pools_work_and_large_ones_say_why(tmp_path: Path) -> None:
    source = synthetic_pool.write(tmp_path / "a.jsonl", 30)
    code = (
        "import sys; sys.modules['daft'] = None; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path; from shoestring.data.pool import Settings, curate_pool\n"
        "a, b = sys.argv[1:]\n"
        "assert curate_pool([a], [], Path(b), Settings(light=100)).runner == 'memory'\n"
        "curate_pool([a], [], Path(b + '2'), Settings(light=10))"
    )
    made = subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "w")], capture_output=True, text=True)
    assert "UserError: curate: a pool of this size needs Daft: pip install 'shoestring[curate]'" in made.stderr


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"question": "q", "answer": "1"}\n', "no column 'prompt'"),
        ("a.jsonl", "", "no row of it is in the split 'train'"),
        ("a.jsonl", '{"prompt": "what is it", "answer": ""}\n', "no problem is left of 1 (quality 1)"),
        ("b.csv", "prompt;answer\n1;2\n", "no column 'prompt'"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as e:
        curate_pool([str(tmp_path / name)], [], tmp_path / "w", small())
    assert says in str(e.value) and "\n" not in str(e.value)


def test_more_that_cannot_be_used(tmp_path: Path) -> None:
    for sources, says in (([], "no source is named"), ([str(tmp_path / "none.jsonl")], "no such file")):
        with pytest.raises(UserError, match=says):
            curate_pool(sources, [], tmp_path / "w", small())
    for wrong in ({"language": "de"}, {"light": -1}, {"part": 0}):
        with pytest.raises(UserError):
            Settings(**wrong)
    packed = tmp_path / "torn.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"prompt": "what is it", "answer": "1"}\n' * 5000)[:-20])
    with pytest.raises(UserError, match="torn.jsonl.gz: cannot be read"):
        curate_pool([str(packed)], [], tmp_path / "w", small())


def test_columns_are_mapped_measurements_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,a,score\nwhat is it,7,0.5\nwhat is that,7,1.5\n")
    made = curate_pool([f"{tmp_path}/a.csv?prompt=q&answer=a&pass_rate=score"], [], tmp_path / "w", small())
    assert lines(made.problems_path)[0] | {"id": ""} == {
        "id": "", "prompt": "what is it", "answer": "7", "solution": None, "grader": "exact", "grader_args": {},
        "source": f"{tmp_path}/a.csv", "licence": "", "domain": "", "pass_rate": 0.5,
    }  # fmt: skip


def test_rates_that_are_none_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "what is it", "answer": "7"}\n{"prompt": "who", "answer": "1", "pass_rate": 7}\n')
    made = curate_pool([f"{tmp_path}/a.jsonl"], [], tmp_path / "w", small())
    assert made.funnel[1]["why"] == "1 a field of the wrong type"


def test_both_tables_are_one_protocol() -> None:
    wanted = {n for n in vars(steps.Table) if not n.startswith("_")}
    for kind in (collect.MemoryTable, files.FileTable):
        assert wanted <= set(dir(kind)) and {"column", "faults", "sign", "leaks", "rows"} <= wanted


def test_a_hub_id_is_streamed_with_its_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.data.sources import _hub
    from shoestring.data.sources._files import Row

    asked = []

    def rows(name: str, split: str, config: str) -> Iterator[Row]:
        asked.append((name, split, config))
        for n in range(3):
            yield Row(f"{name}:{n}", {"question": f"what is {n}", "answer": n, "source": name, "licence": "mit"})

    monkeypatch.setattr(_hub, "rows", rows)
    made = curate_pool(["org/name?prompt=question&config=main&split=validation"], [], tmp_path / "w", small())
    assert asked == [("org/name", "validation", "main")]
    assert [(r["source"], r["licence"], r["answer"]) for r in lines(made.problems_path)] == [("org/name", "mit", str(n)) for n in range(3)]


@pytest.mark.slow
@needs_daft
def test_ray_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAFT_RUNNER", "ray")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"DAFT_RUNNER=ray .* pip install 'shoestring\[ray\]'"):
        engine.daft()


def test_ray_gives_the_same(in_memory: pool.PoolResult, given_pool: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'shoestring[ray]'")
    code = (
        "import sys; from pathlib import Path; from shoestring.data.pool import Settings, curate_pool\n"
        "made = curate_pool([sys.argv[1], 'bundled:lcm'], [sys.argv[2]], Path(sys.argv[3]), Settings(light=100, part=400))\n"
        "print(made.runner)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, *map(str, given_pool), str(tmp_path / "ray")], text=True, capture_output=True,
        env={**os.environ, "DAFT_RUNNER": "ray"},
    )  # fmt: skip
    assert "daft on ray" in made.stdout, made.stderr[-2000:]
    assert (tmp_path / "ray" / "problems.jsonl").read_bytes() == in_memory.problems_path.read_bytes()


@pytest.mark.slow
@needs_daft
@pytest.mark.parametrize(("count", "seconds", "gib"), [(60_000, 60, 2), (2_000_000, 1800, 4)])
def test_size(tmp_path: Path, count: int, seconds: float, gib: float) -> None:
    """The issue's ceilings; each in a process of its own, whose peak is measured."""
    source = synthetic_pool.write(tmp_path / "pool.jsonl", count)
    program = [sys.executable, synthetic_pool.__file__, str(source), str(tmp_path / "work")]
    found = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert found["runner"] == "daft" and found["wall"] < seconds
    assert found["peak_gib"] + found["children_gib"] < gib
