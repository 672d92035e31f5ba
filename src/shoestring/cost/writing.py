"""A book written to disk: rows of an imported catalogue as TOML, or machines as CSV, which cost/book.py reads again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from shoestring.cost.book import TOKENS
from shoestring.cost.rows import MachineRow, TeacherRow
from shoestring.cost.sources.instances import SPOT_STATUS
from shoestring.records import UserError

COLUMNS = ("provider", "region", "zone", "instance_type", "gpu", "gpu_count", "gpu_mem_gib", "vcpus", "host_mem_gib",
           "ondemand_usd_per_hour", "spot_usd_per_hour", "spot_status", "price_not_before", "price_not_after",
           "source_repo", "source_path", "source_commit")  # fmt: skip


def write(rows: Sequence[MachineRow | TeacherRow], path: Path) -> None:
    """Raises UserError: a name that ends otherwise, teachers for CSV, a file that is there, a folder that is not."""
    kind = path.suffix.lower()
    if kind not in (".toml", ".csv"):
        raise UserError(f"{path}: a book ends in .toml or .csv")
    if kind == ".csv" and any(isinstance(r, TeacherRow) for r in rows):
        raise UserError(f"{path}: a CSV book holds machines only; write teachers to a .toml")
    text = toml(rows) if kind == ".toml" else table([r for r in rows if isinstance(r, MachineRow)])
    try:
        with path.open("x", encoding="utf-8", newline="") as f:
            f.write(text)
    except FileExistsError:
        raise UserError(f"{path}: this file exists; choose another --out or remove it first") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror}") from None


def toml(rows: Sequence[MachineRow | TeacherRow]) -> str:
    """Each row with its own source and date, so that books can be joined by putting one after the other."""
    parts = []
    for row in rows:
        if isinstance(row, MachineRow):
            note = "; ".join(p for p in (row.note, row.spot_remark) if p)
            values: dict[str, Any] = {
                "provider": row.provider, "instance": row.instance, "region": row.region, "zone": row.zone, "gpu": row.gpu,
                "gpus": row.gpus, "gpu_memory_gib": row.gpu_memory_gib, "vcpus": row.vcpus, "memory_gib": row.memory_gib,
                "on_demand_usd_per_hour": row.ondemand, "spot_usd_per_hour": row.spot,
            }  # fmt: skip
        else:
            note = row.note
            values = {"catalogue": row.catalogue, "model": row.model, "provider": row.provider}
            values |= {key: row.usd.get(kind) for kind, key in TOKENS.items()}
            values |= {"hours": row.hours, "since": row.since}
        values |= {"source": row.source, "date": row.date, "note": note}
        name = "machine" if isinstance(row, MachineRow) else "teacher"
        parts.append("\n".join([f"[[{name}]]", *(f"{k} = {_value(v)}" for k, v in values.items() if v)]))
    return "\n\n".join(parts) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text if "." in text else f"{text}.0"
    if isinstance(value, str):  # a JSON string is a TOML one, but for the one control character that JSON leaves bare
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def table(rows: Sequence[MachineRow]) -> str:
    out = io.StringIO()
    made = csv.writer(out, lineterminator="\n")
    made.writerow(COLUMNS)
    status = {remark: name for name, remark in SPOT_STATUS.items()}
    for row in rows:
        repo, _, rest = row.source.partition("@")
        commit, _, where = rest.partition(" ")
        first, _, last = row.date.partition("..")
        spot = "not_offered" if row.spot is None else status.get(row.spot_remark, "quoted")
        made.writerow([
            row.provider, row.region, row.zone, row.instance, row.gpu, row.gpus, f"{row.gpu_memory_gib:g}", row.vcpus,
            f"{row.memory_gib:g}", _plain(row.ondemand), _plain(row.spot), spot, first, last or first, repo, where, commit,
        ])  # fmt: skip
    return out.getvalue()


def _plain(usd: Decimal | None) -> str:
    return "" if usd is None else f"{usd:f}"
