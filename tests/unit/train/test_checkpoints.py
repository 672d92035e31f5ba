"""Checkpoints: whole or absent, whatever is killed, full or foreign."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from safetensors import SafetensorError  # noqa: E402

from shoestring.records import UserError  # noqa: E402
from shoestring.train import checkpoints as module  # noqa: E402
from shoestring.train.checkpoints import MANIFEST, STATE, Checkpoints, read_manifest, read_tensors  # noqa: E402


def tensors(step: int) -> dict[str, Any]:
    return {"master/a": torch.full((30, 20), float(step)), "exp_avg/a": torch.full((30, 20), -float(step))}


def saved(root: Path, *steps: int, **rest: Any) -> Checkpoints:
    saves = Checkpoints(root, "recipe", **rest)
    for s in steps:
        saves.save("sft", s, tensors(s), {"cursor": s})
    saves.wait()
    return saves


def test_round_trip(tmp_path: Path) -> None:
    saves = saved(tmp_path, 3)
    found = saves.latest()
    assert found is not None and (found.step, found.stage, found.recipe_hash) == (3, "sft", "recipe")
    assert found.path == tmp_path / "step-3" and not found.final
    assert read_manifest(found.path)["state"] == {"cursor": 3}
    everything = read_tensors(found.path)
    assert everything.keys() == tensors(3).keys()
    assert all(torch.equal(v, tensors(3)[k]) for k, v in everything.items())
    assert list(read_tensors(found.path, "master/")) == ["master/a"]


def test_final_is_whole_when_save_returns(tmp_path: Path) -> None:
    done = Checkpoints(tmp_path, "r").save("grpo", 9, tensors(9), {}, final=True)
    assert done.final and (done.path / MANIFEST).exists()
    assert (again := Checkpoints(tmp_path, "r").latest()) is not None and again.final


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_k_are_kept_by_number_not_by_name(tmp_path: Path, keep: int) -> None:
    saves = saved(tmp_path, 2, 8, 9, 10, 11, keep=keep)
    assert {p.name for p in tmp_path.iterdir()} == {f"step-{s}" for s in (2, 8, 9, 10, 11)[-keep:]}
    found = saves.latest()
    assert found is not None and found.step == 11 and found.parent == "step-10"


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    inner_sync, inner_replace = module._sync, module.os.replace
    monkeypatch.setattr(module, "_sync", lambda p: (order.append(f"sync {p.name}"), inner_sync(p)))
    monkeypatch.setattr(module.os, "replace", lambda a, b: (order.append(f"rename {b.name}"), inner_replace(a, b)))
    saved(tmp_path, 1)
    assert order[:3] == [f"sync {STATE}", f"sync {MANIFEST}.part", f"rename {MANIFEST}"]


@pytest.mark.parametrize("stop_at", [0, 1])
def test_died_before_the_manifest_is_as_if_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """The n-th sync never returns: the machine died there."""
    saved(tmp_path, 1)
    calls = []

    def dying(path: Path) -> None:
        calls.append(path)
        if len(calls) > stop_at:
            raise SystemExit

    monkeypatch.setattr(module, "_sync", dying)
    Checkpoints(tmp_path, "recipe").save("sft", 2, tensors(2), {})
    for _ in range(200):
        if len(calls) > stop_at:
            break
        time.sleep(0.01)
    monkeypatch.undo()
    after = Checkpoints(tmp_path, "recipe")
    found = after.latest()
    assert found is not None and found.step == 1
    assert (tmp_path / "step-2" / STATE).exists()
    after.sweep()
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    assert torch.equal(read_tensors(found.path)["master/a"], tensors(1)["master/a"])


SAVER = """
import sys
import torch
from pathlib import Path
from shoestring.train.checkpoints import Checkpoints
saves = Checkpoints(Path(sys.argv[1]), "recipe")
saves.sweep()
step = saves.latest().step if saves.latest() else 0
while True:
    step += 1
    saves.save("sft", step, {f"master/{i}": torch.full((200, 200), float(step)) for i in range(8)}, {})
    if step % 3 == 0:
        saves.save("sft", step, {f"master/{i}": torch.full((200, 200), float(step)) for i in range(8)}, {}, final=True)
        print(step, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(1)
    last = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.stdout.read().split()]
        process.stdout.close()
        process.wait()
        saves = Checkpoints(tmp_path, "recipe")
        found = saves.latest()
        assert found is not None and found.step >= max([last + 1, *told])
        state = read_tensors(found.path)
        assert len(state) == 8 and all(bool((v == found.step).all()) for v in state.values())
        last = found.step


def test_another_recipes_checkpoint_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    with pytest.raises(UserError, match="another recipe"):
        Checkpoints(tmp_path, "other").latest()
    with pytest.raises(UserError, match="another recipe"):
        Checkpoints(tmp_path, "other").save("sft", 5, tensors(5), {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-4"]


def full(*args: Any, **rest: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def refused(*args: Any, **rest: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("failing", [full, refused])
def test_a_full_disk_is_one_clear_line_and_the_last_checkpoint_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Any
) -> None:
    saves = saved(tmp_path, 1)
    monkeypatch.setattr(module, "save_file", failing)
    with pytest.raises(UserError, match="No space left on device.*--resume") as e:
        saves.save("sft", 2, tensors(2), {})
    assert "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    monkeypatch.undo()
    saves.save("sft", 2, tensors(2), {}, final=True)
    assert [p.name for p in tmp_path.iterdir()] == ["step-2"]


def test_a_disk_that_fills_while_syncing_is_told_at_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = saved(tmp_path, 1)
    monkeypatch.setattr(module, "_sync", full)
    saves.save("sft", 2, tensors(2), {})
    with pytest.raises(UserError, match="No space left"):
        saves.save("sft", 3, tensors(3), {})
    with pytest.raises(UserError, match="No space left"):
        saves.save("sft", 3, tensors(3), {}, final=True)
    found = Checkpoints(tmp_path, "recipe").latest()
    assert found is not None and found.step == 1


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        Checkpoints(tmp_path / "file" / "sft", "r").save("sft", 1, tensors(1), {})


def test_a_whole_checkpoint_is_never_removed_to_write_itself_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run resumed at step 5 and stopped at once saves step 5: on a full disk that must not lose step 5."""
    saves = saved(tmp_path, 5)
    monkeypatch.setattr(module, "save_file", full)
    again = saves.save("sft", 5, tensors(5), {})
    assert again.step == 5 and again.path == tmp_path / "step-5"
    found = Checkpoints(tmp_path, "recipe").latest()
    assert found is not None and torch.equal(read_tensors(found.path)["master/a"], tensors(5)["master/a"])


def test_a_whole_checkpoint_becomes_the_final_one_by_its_manifest_alone(tmp_path: Path) -> None:
    saves = saved(tmp_path, 5)
    before = (tmp_path / "step-5" / STATE).stat().st_ino
    done = saves.save("sft", 5, tensors(5), {"cursor": 5}, final=True)
    found = Checkpoints(tmp_path, "recipe").latest()
    assert done.final and found is not None and found.final and found.step == 5
    assert (tmp_path / "step-5" / STATE).stat().st_ino == before
    assert read_manifest(done.path)["state"] == {"cursor": 5}


def test_a_directory_without_a_manifest_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "step-5").mkdir()
    (tmp_path / "step-5" / STATE).write_bytes(b"torn")
    done = saved(tmp_path, 5).latest()
    assert done is not None and bool((read_tensors(done.path)["master/a"] == 5).all())


def test_damage_is_one_clear_line(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = tmp_path / "step-1"
    whole = (path / STATE).read_bytes()
    (path / STATE).write_bytes(whole[:100])
    with pytest.raises(UserError, match="unreadable checkpoint"):
        read_tensors(path)
    (path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="unreadable checkpoint manifest"):
        Checkpoints(tmp_path, "recipe").latest()


def test_strange_names_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    saved(tmp_path, 1)
    copy = tmp_path / "step-1-copy"
    shutil.copytree(tmp_path / "step-1", copy)
    saves = Checkpoints(tmp_path, "recipe")
    saves.sweep()
    found = saves.latest()
    assert found is not None and found.step == 1 and copy.exists() and (tmp_path / "notes").exists()
    assert json.loads((copy / MANIFEST).read_text())["step"] == 1
    assert Checkpoints(tmp_path / "none", "recipe").latest() is None


def test_tensors_that_a_whole_checkpoint_lacks_are_put_beside_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All or nothing: where the disk refuses, what stood goes on standing."""
    saves = saved(tmp_path, 5)
    more = tensors(5) | {"merged/a": torch.ones(3)}
    with monkeypatch.context() as m:
        m.setattr(module, "save_file", full)
        with pytest.raises(UserError, match="free space"):
            saves.save("sft", 5, more, {})
    assert read_tensors(tmp_path / "step-5").keys() == tensors(5).keys()
    saves.save("sft", 5, more, {})
    assert read_tensors(tmp_path / "step-5").keys() == more.keys()
    assert not list((tmp_path / "step-5").glob("*.part"))
    saves.save("sft", 5, tensors(5), {})
    assert read_tensors(tmp_path / "step-5").keys() == more.keys()
