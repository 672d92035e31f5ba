"""Daft, where it is installed: columns of parquet files in, a function over batches, columns of parquet files out.

The order in which batches come back is Daft's own; every row carries its number `n`, and whoever reads goes by it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoestring.records import UserError

BATCH = 4096  # rows that a function sees at once


def daft() -> Any:
    """The module. UserError where it is missing, or Ray is, which DAFT_RUNNER=ray asks for."""
    if os.environ.get("DAFT_RUNNER", "").lower() == "ray" and importlib.util.find_spec("ray") is None:
        raise UserError(
            "curate: DAFT_RUNNER=ray asks for Ray, which is not installed: pip install 'shoestring[ray]', or unset DAFT_RUNNER "
            "to run on this machine's cores"
        )
    os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")  # it would report its import to its makers
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    try:
        import daft  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "curate: a pool of this size needs Daft: pip install 'shoestring[curate]' (smaller pools need nothing)"
        ) from None
    return daft


def runner() -> str:
    """Where the plan runs: this machine's cores, or the Ray cluster that DAFT_RUNNER=ray asks for."""
    return "daft on ray" if daft().get_or_infer_runner_type() == "ray" else "daft"


def _frame(folder: Path, columns: Sequence[str], alive: np.ndarray | None) -> Any:
    module = daft()
    frame = module.read_parquet(str(folder / "*.parquet")).select("n", *[c for c in columns if c != "n"])
    if alive is None:
        return frame
    bits = np.packbits(alive)

    @module.func.batch(return_dtype=module.DataType.bool(), batch_size=BATCH)
    def living(n: Any) -> Any:
        import pyarrow as pa

        return pa.array(np.unpackbits(bits)[np.asarray(n.to_arrow())].astype(bool))

    return frame.where(living(module.col("n")))


def _mapped(frame: Any, columns: Sequence[str], function: Callable[..., Any], schema: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    module = daft()
    made = pa.struct(list(schema.items()))

    @module.func.batch(return_dtype=module.DataType.from_arrow_type(made), unnest=True, batch_size=BATCH)
    def work(*series: Any) -> Any:
        import pyarrow as pa

        found = function(*[s.to_arrow() for s in series])
        arrays = [pa.array(found[name], type=kind) for name, kind in schema.items()]
        return pa.StructArray.from_arrays(arrays, fields=list(made))

    return frame.select(module.col("n"), work(*[module.col(c) for c in columns]))


def write(
    source: Path, columns: Sequence[str], function: Callable[..., Mapping[str, Any]], schema: Mapping[str, Any],
    target: Path, alive: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Parquet files in `target`: "n" and what `function` made of the columns (arrow arrays) of `source`, a batch at a time.

    alive [N] bool: the rows to take. schema: arrow types of the columns that the function returns by name.
    """
    if not list(source.glob("*.parquet")):
        return
    _mapped(_frame(source, columns, alive), columns, function, schema).write_parquet(str(target), compression="zstd")


def collect(
    source: Path, columns: Sequence[str], function: Callable[..., Mapping[str, Any]], schema: Mapping[str, Any],
    alive: np.ndarray | None, where: str,
) -> Any:  # fmt: skip
    """The same as `write`, handed over as an arrow table of the rows whose column `where` is not null, by "n"."""
    made = _mapped(_frame(source, columns, alive), columns, function, schema)
    return made.where(~daft().col(where).is_null()).to_arrow().sort_by("n")


def columns(source: Path, names: Sequence[str], alive: np.ndarray | None = None) -> Any:
    """An arrow table of "n" and the named columns, by "n"."""
    return _frame(source, names, alive).to_arrow().sort_by("n")


def batches(source: Path, names: Sequence[str], alive: np.ndarray | None = None) -> Iterator[Any]:
    """The same as arrow record batches, in no order, so that a wide column is never held whole."""
    return iter(_frame(source, names, alive).to_arrow_iter())
