"""A pool in parquet files: rows/ as they were read, marks/ what is known of each, signatures/ for near duplicates."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from shoestring.data import decontaminate, minhash
from shoestring.data.marks import HASHES, Marks, mark
from shoestring.data.pool import engine
from shoestring.data.pool.collect import Item, Reader, dumped, faults, written
from shoestring.data.pool.folders import Folders
from shoestring.records import Problem

FIELDS = ("id", "prompt", "answer", "solution", "grader", "grader_args", "source", "licence", "domain", "extras")
NEEDED = ("prompt", "answer", "solution", "grader", "grader_args", "domain")  # by the rules that read text
MARKS = (*HASHES, "domain", "words")


def _row(n: int, item: Item) -> dict[str, Any]:
    p, extras = item
    row = {name: getattr(p, name, None) for name in FIELDS}
    return {"n": n, **row, "grader_args": dumped(p.grader_args), "extras": dumped(extras)}


def _problem(row: dict[str, Any]) -> Problem:
    row = {"id": "", "source": "", "licence": "", **row}
    return Problem(**{**row, "grader_args": json.loads(row["grader_args"]) if row["grader_args"] else {}})


def fill(
    folders: Folders, items: Iterable[Item], reader: Reader, part: int, language: str,
    check: Callable[[Problem], None] | None,
) -> FileTable:  # fmt: skip
    """Write the rows as they come, `part` a file."""
    engine.daft()  # missing: say so before the sources are read
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("n", pa.int64()), *[(name, pa.string()) for name in FIELDS]])
    folders.done("rows")
    started = time.perf_counter()
    rows, total, number = iter(items), 0, 0
    while several := list(islice(rows, part)):
        path = folders.root / "rows" / f"part-{number:05d}.parquet"
        with parquet.ParquetWriter(path, schema, compression="zstd") as out:
            for at in range(0, len(several), 10_000):
                few = [_row(total + at + i, item) for i, item in enumerate(several[at : at + 10_000])]
                out.write_table(pa.Table.from_pylist(few, schema=schema))
        total, number = total + len(several), number + 1
    folders.seconds["rows"] = round(time.perf_counter() - started, 3)
    made = folders.finish("rows", {"rows": total, "unreadable": dict(reader.unreadable), "first": reader.first})
    return FileTable(folders, made, language, check)


def opened(folders: Folders, language: str, check: Callable[[Problem], None] | None) -> FileTable | None:
    """The table that an earlier call has written, or None."""
    if not folders.has("rows"):
        return None
    engine.daft()
    done = folders.done("rows")
    assert done is not None
    return FileTable(folders, done, language, check)


class FileTable:
    def __init__(
        self, folders: Folders, manifest: dict[str, Any], language: str, check: Callable[[Problem], None] | None
    ) -> None:
        import pyarrow as pa

        self.total: int = manifest["rows"]
        self.unreadable = Counter[str](manifest["unreadable"])
        self.collected = self.total + sum(self.unreadable.values())
        self.folders = folders
        self._marks = folders.root / "marks"
        if folders.done("marks") is None:
            started = time.perf_counter()
            hashes = {name: pa.uint64() for name in HASHES}
            texts = {"format": pa.string(), "content": pa.string(), "name": pa.string()}
            schema = {**hashes, **texts, "words": pa.list_(pa.uint64())}
            engine.write(folders.root / "rows", NEEDED, Marker(language, check), schema, self._marks)
            folders.seconds["marks"] = round(time.perf_counter() - started, 3)
            folders.finish("marks", {"seconds": folders.seconds["marks"]})
        named = engine.columns(self._marks, ["name"]).column("name").combine_chunks().dictionary_encode()
        order = sorted(range(len(named.dictionary)), key=lambda i: named.dictionary[i].as_py())
        self.names = tuple(named.dictionary[i].as_py() for i in order)
        self._domain = np.argsort(order).astype(np.int32)[np.asarray(named.indices)]

    def column(self, name: str) -> np.ndarray:
        if name == "domain":
            return self._domain
        return engine.columns(self._marks, [name]).column(name).to_numpy()

    def faults(self, name: str) -> list[tuple[int, str]]:
        found = engine.columns(self._marks, [name])
        found = found.filter(found.column(name).is_valid())
        return list(zip(found.column("n").to_pylist(), found.column(name).to_pylist(), strict=True))

    def marks(self, rows: np.ndarray) -> Marks:
        wanted = np.zeros(self.total, bool)
        wanted[rows] = True
        found = engine.columns(self._marks, [*HASHES, "name", "words"], wanted)
        return marks_of(*[found.column(c).combine_chunks() for c in (*HASHES, "name", "words")])

    def sign(self, templates: np.ndarray, alive: np.ndarray) -> FileSignatures:
        import pyarrow as pa

        folder = self.folders.root / "near"
        bands = {f"b{b:02d}": pa.uint64() for b in range(minhash.BANDS)}
        schema = {"told": pa.bool_(), **bands, "sketch": pa.binary(minhash.MINIMA)}
        engine.write(self._marks, [*HASHES, "name", "words"], Signer(templates), schema, folder, alive)
        return FileSignatures(folder, self.total)

    def leaks(self, index: decontaminate.Index, alive: np.ndarray) -> list[tuple[int, str]]:
        import pyarrow as pa

        columns = [*HASHES, "name", "words"]
        found = engine.collect(self._marks, columns, Leaks(index), {"why": pa.string()}, alive, "why")
        return list(zip(found.column("n").to_pylist(), found.column("why").to_pylist(), strict=True))

    def rows(self, alive: np.ndarray) -> Iterator[dict[str, Any]]:
        from pyarrow import parquet

        for path in sorted((self.folders.root / "rows").glob("part-*.parquet")):
            for batch in parquet.ParquetFile(path).iter_batches(batch_size=10_000):
                kept = batch.filter(alive[batch.column("n").to_numpy()])
                for row in kept.to_pylist():
                    del row["n"]
                    extras = row.pop("extras")
                    yield written(_problem(row), json.loads(extras) if extras else {})


def marks_of(*columns: Any) -> Marks:
    """Marks of arrow arrays: HASHES, the domain's name, the words."""
    *hashes, name, words = columns
    named = name.dictionary_encode()
    lengths = words.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return Marks(
        **{h: np.asarray(c) for h, c in zip(HASHES, hashes, strict=True)}, domain=np.asarray(named.indices, np.int32),
        names=tuple(named.dictionary.to_pylist()), words=np.asarray(words.flatten(), np.uint64),
        starts=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
    )  # fmt: skip


class Marker:
    """Rows → marks and row-wise faults. A class, not a closure: it travels to workers by name."""

    def __init__(self, language: str, check: Callable[[Problem], None] | None) -> None:
        self.language, self.check = language, check

    def __call__(self, *columns: Any) -> dict[str, Any]:
        import pyarrow as pa

        texts = [c.to_pylist() for c in columns]
        problems = [_problem(dict(zip(NEEDED, row, strict=True))) for row in zip(*texts, strict=True)]
        marks = mark(problems)
        why = [faults(p, self.language, self.check) for p in problems]
        return {
            **{name: getattr(marks, name) for name in HASHES},
            "format": [w["format"] for w in why], "content": [w["content"] for w in why],
            "name": [p.domain for p in problems],
            "words": pa.ListArray.from_arrays(pa.array(marks.starts, pa.int32()), pa.array(marks.words)),
        }  # fmt: skip


class Signer:
    def __init__(self, templates: np.ndarray) -> None:
        self.templates = templates

    def __call__(self, *columns: Any) -> dict[str, Any]:
        import pyarrow as pa

        signed = minhash.sign(marks_of(*columns), self.templates)
        bands = {f"b{b:02d}": signed.bands[:, b] for b in range(minhash.BANDS)}
        sketch = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(minhash.MINIMA), len(signed.told), [None, pa.py_buffer(signed.sketch.tobytes())]
        )
        return {"told": signed.told, **bands, "sketch": sketch}


class Leaks:
    def __init__(self, index: decontaminate.Index) -> None:
        self.index = index

    def __call__(self, *columns: Any) -> dict[str, Any]:
        return {"why": self.index.faults(marks_of(*columns))}


class FileSignatures:
    def __init__(self, folder: Any, total: int) -> None:
        self.folder = folder
        told = np.zeros(total, bool)
        if list(folder.glob("*.parquet")):
            found = engine.columns(folder, ["told"])
            told[found.column("n").to_numpy()] = found.column("told").to_numpy(zero_copy_only=False)
        self.rows = np.flatnonzero(told)
        self._told = told

    def band(self, band: int) -> np.ndarray:
        if not len(self.rows):
            return np.zeros(0, np.uint64)
        name = f"b{band:02d}"
        return engine.columns(self.folder, [name], self._told).column(name).to_numpy()

    def sketches(self, at: np.ndarray) -> np.ndarray:
        made = np.zeros((len(at), minhash.MINIMA), np.uint8)
        if not len(at):
            return made
        wanted = np.zeros(len(self._told), bool)
        wanted[self.rows[at]] = True
        place = np.cumsum(wanted) - 1
        for batch in engine.batches(self.folder, ["sketch"], wanted):
            data = batch.column("sketch").cast("binary").to_pylist()
            if data:
                made[place[batch.column("n").to_numpy()]] = np.frombuffer(b"".join(data), np.uint8).reshape(len(data), -1)
        return made
