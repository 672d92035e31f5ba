"""Reading rows: every kind of file gives the same rows, each with its place, and a bad row hides no other."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoestring.data import sources
from shoestring.data.sources import _files, _hub
from shoestring.records import UserError

ROWS = [{"prompt": "a, b", "completion": "1"}, {"prompt": 'say "x"\nagain', "completion": "2"}, {"prompt": "é", "completion": "3"}]
LINES = {"jsonl": ["1", "2", "3"], "json": ["2", "6", "10"], "csv": ["2", "4", "5"], "parquet": ["row 1", "row 2", "row 3"]}


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pa, pq = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'shoestring[data]'"), pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'shoestring[data]'")
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    text = {
        "json": json.dumps(ROWS, indent=1, ensure_ascii=False),
        "csv": 'prompt,completion\n"a, b",1\n"say ""x""\nagain",2\né,3\n',
    }.get(name.removesuffix(".gz").rpartition(".")[2], "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS))
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.ndjson", "a", "a.parquet"]
)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    found = list(sources.rows(str(write(tmp_path, name))))
    assert [r.data for r in found] == ROWS
    lines = LINES.get(name.removesuffix(".gz").rpartition(".")[2], LINES["jsonl"])
    assert [r.where for r in found] == [f"{tmp_path / name}:{n}" for n in lines]


@pytest.mark.parametrize(
    ("name", "raw", "wrong"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a"\n[1]\n\xff\n{"a": 2}\n', ["", "is not JSON", "must be a JSON object, not list", "is not UTF-8", ""]),
        ("a.json", b'[{"a": 1},\n 3, {"a": 2}]', ["", "must be a JSON object, not int", ""]),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', ["", "is not JSON"]),
        ("a.json", b'[{"a": 1},', ["", "has no end"]),
        ("a.csv", b"a,b\n1,2\n1,2,3\n4,5\n", ["", "has 3 fields where the header names 2", ""]),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', ["", ""]),
    ],
)
def test_a_bad_row_hides_no_other(tmp_path: Path, name: str, raw: bytes, wrong: list[str]) -> None:
    (tmp_path / name).write_bytes(raw)
    found = list(sources.rows(str(tmp_path / name)))
    assert len(found) == len(wrong)
    for row, part in zip(found, wrong, strict=True):
        assert part in row.wrong and (row.data is None) == bool(part)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "chats.jsonl")
    with pytest.raises(UserError, match="no such file; did you mean chats.jsonl"):
        list(sources.rows(str(tmp_path / "chat.jsonl")))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'shoestring\[data\]'"):
        list(sources.rows(str(tmp_path / "x.parquet")))


def test_a_torn_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'shoestring[data]'")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="x.parquet: cannot be read"):
        list(sources.rows(str(tmp_path / "x.parquet")))


def test_rows_of_another_split_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"n": n} | ({"split": s} if s else {})) + "\n" for n, s in enumerate(["train", "test", ""])))
    assert [r.data["n"] for r in sources.rows(str(path), "train") if r.data] == [0, 2]
    assert [r.data["n"] for r in sources.rows(str(path), "test") if r.data] == [1, 2]


def test_problems_both_ways(tmp_path: Path) -> None:
    first = next(sources.rows("bundled:lcm"))
    assert first.where == "bundled:lcm:1" and first.data and first.data["licence"] == "Apache-2.0" and first.data["answer"]
    (tmp_path / "p.csv").write_text("prompt,answer\n1+1,2\n2+2,4\n")
    assert [p.answer for p in sources.load(str(tmp_path / "p.csv"))] == ["2", "4"]
    (tmp_path / "p.json").write_text('[{"question": "1+1", "answer": 2}]')
    assert [p.answer for p in sources.load(f"{tmp_path / 'p.json'}?prompt=question")] == ["2"]


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """A stand-in for the datasets library, which remembers what was asked."""
        asked: list[Any] = []

        class Stream(list):
            info = SimpleNamespace(license="cc-by-4.0")

        def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Stream:
            asked.append((name, config, split, streaming))
            if name == "org/none":
                raise ConnectionError("no route\nto the hub")
            return Stream([{"prompt": "1+1", "answer": "2"}, {"prompt": "q", "answer": "a", "source": "book", "licence": "CC0"}])

        def builder(name: str, config: str | None) -> Any:
            return SimpleNamespace(info=SimpleNamespace(splits={"train": SimpleNamespace(num_examples=7)}))

        fake = SimpleNamespace(load_dataset=load_dataset, load_dataset_builder=builder, disable_progress_bars=lambda: None)
        monkeypatch.setitem(sys.modules, "datasets", fake)
        return asked

    def test_streams_with_source_and_licence(self, hub: list[Any]) -> None:
        found = list(sources.rows("org/name", "train", "main"))
        assert hub == [("org/name", "main", "train", True)]
        assert [r.where for r in found] == ["org/name:1", "org/name:2"]
        assert found[0].data == {"source": "org/name", "licence": "cc-by-4.0", "prompt": "1+1", "answer": "2"}
        assert [p.licence for p in sources.load("org/name?config=main", "test")] == ["cc-by-4.0", "CC0"]
        assert hub[-1] == ("org/name", "main", "test", True)
        assert sources.count("org/name") == 7 and sources.count("org/name", "dev") is None

    def test_offline_is_one_line(self, hub: list[Any]) -> None:
        with pytest.raises(UserError, match="cannot be read from the hub .ConnectionError: no route to the hub") as e:
            list(sources.rows("org/none"))
        assert "\n" not in str(e.value)

    @pytest.mark.slow
    def test_the_real_library_offline(self) -> None:
        """In a process of its own: the library reads HF_HUB_OFFLINE when it is imported."""
        pytest.importorskip("datasets", reason="needs datasets: pip install 'shoestring[hub]'")
        code = (
            "from shoestring.data import sources\nfrom shoestring.records import UserError\n"
            "try: list(sources.rows('org/name-that-is-nowhere'))\nexcept UserError as e: print(e)"
        )
        env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
        assert "cannot be read from the hub" in done.stdout and len(done.stdout.splitlines()) == 1, done

    def test_missing_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(UserError, match=r"needs datasets: pip install 'shoestring\[hub\]'"):
            list(sources.rows("org/name"))

    def test_what_is_an_id(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").mkdir()
        assert _hub.is_id("openai/gsm8k")
        for text in ("data/rows", "rows/a.jsonl", "rows/a.csv.gz", "a/b/c", "name", "./a", "~/a"):
            assert not _hub.is_id(text), text
        assert _files.kind(Path("A.JSON.GZ")) == ".json" and _files.kind(Path("x.txt")) == ".jsonl"
