"""Weight files: one below the limit, several with an index above it, and both ways of reading them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from safetensors.torch import load_file, save_file  # noqa: E402

from shoestring.models import shards  # noqa: E402
from shoestring.records import UserError  # noqa: E402

TENSORS = {f"t{i}": torch.full((i + 1, 10), float(i)) for i in range(6)}  # 40 bytes a row


def test_one_file_below_the_limit(tmp_path: Path) -> None:
    shards.write(tmp_path, TENSORS.items())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    read = shards.reader(tmp_path)
    assert all(torch.equal(read(k), v) for k, v in TENSORS.items())


def test_several_with_an_index_above_it(tmp_path: Path) -> None:
    shards.write(tmp_path, TENSORS.items(), largest=200)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [*(f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)), "model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 21 * 40 and set(index["weight_map"]) == set(TENSORS)
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], TENSORS[name])
    read = shards.reader(tmp_path)
    assert all(torch.equal(read(k), v) for k, v in TENSORS.items())


def test_the_index_decides_and_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    shards.write(tmp_path, TENSORS.items(), largest=200)
    save_file({"t0": torch.ones(1)}, tmp_path / "zz-other-format.safetensors")
    assert torch.equal(shards.reader(tmp_path)("t0"), TENSORS["t0"])
    (tmp_path / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00005.safetensors: the index names this file"):
        shards.reader(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="not an index"):
        shards.reader(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights"):
        shards.reader(tmp_path)
