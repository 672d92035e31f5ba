"""The ledger: nothing is lost and nothing doubles, whatever is torn, refused, full or interrupted; processes have their own tests."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.cost import ledger as ledger_module
from shoestring.cost.ledger import Ledger, LedgerError
from shoestring.cost.process import process_alive
from shoestring.records import Intent, Usage, UserError

SKU = "x/machine-second"


def seconds(n: float, **rest: Any) -> Usage:
    return Usage(SKU, n, "second", "sft", **rest)


def intent(n: float, *more: Usage) -> Intent:
    return Intent("sft", 1, (seconds(n), *more))


def yes(_: object) -> bool:
    return True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # the disk is not what is tested here


def test_round_trip_and_one_line_release(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ledger.jsonl"
    with Ledger.open(path) as ledger:
        ledger.begin("a1", seed=3)
        ledger.post(seconds(2.5, outcome="idle"))
        held = ledger.reserve(intent(10), yes, attempt="a1")
        assert held and [r.id for r in ledger.open_reservations()] == [held]
        before = path.read_bytes().count(b"\n")
        ledger.release(held, [seconds(4), Usage("teacher:x/y/in", 12, "token", "distill")])
        assert path.read_bytes().count(b"\n") == before + 1
        ledger.end("a1", "done")
        again = Ledger.open(path)
        assert again.usages() == ledger.usages() == Ledger.read(path).usages
        assert [u.quantity for u in again.usages()] == [2.5, 4.0, 12.0]
        assert again.open_reservations() == [] and again.state.ended == {"a1": "done"}
        assert again.verify() == ledger.verify() == 5


def test_every_append_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    for _ in range(3):
        ledger.post(seconds(1))
        assert synced[-1] == (tmp_path / "ledger.jsonl").stat().st_size
    assert len(synced) == 3


def test_allowed_sees_what_others_appended_and_may_refuse(tmp_path: Path) -> None:
    one, two = Ledger.open(tmp_path / "ledger.jsonl"), Ledger.open(tmp_path / "ledger.jsonl")
    assert one.reserve(intent(5), yes)
    seen: list[int] = []
    assert two.reserve(intent(5), lambda s: bool(seen.append(len(s.reservations)))) is None
    assert seen == [1] and len(one.open_reservations()) == 1


def test_release_needs_an_open_reservation(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    held = ledger.reserve(intent(5), yes)
    assert held
    ledger.release(held, [])
    with pytest.raises(LedgerError, match="is not open"):
        ledger.release(held, [seconds(1)])
    with pytest.raises(ValueError, match="releases r9"):
        ledger.append("release", {"id": "r9", "usages": []})
    assert ledger.usages() == [] and ledger.verify() == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5])
def test_bad_quantities_are_refused(tmp_path: Path, bad: float) -> None:
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    with pytest.raises(ValueError, match="quantity"):
        ledger.post(seconds(bad))
    with pytest.raises(ValueError, match="quantity"):
        ledger.reserve(intent(bad), yes)
    assert ledger.verify() == 0


def test_torn_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path) as ledger:
        for n in range(3):
            ledger.post(seconds(n))
        held = ledger.reserve(intent(7), yes)
        assert held
        ledger.release(held, [seconds(3)])
    whole = path.read_bytes()
    ends = [0] + [i + 1 for i, b in enumerate(whole) if b == 10]
    full = Ledger.read(path).usages
    for cut in range(len(whole) + 1):
        for old in tmp_path.iterdir():
            old.unlink()
        path.write_bytes(whole[:cut])
        lines = max(i for i, end in enumerate(ends) if end <= cut)
        assert len(Ledger.read(path).usages) == min(lines, 3) + (lines == 5)
        with Ledger.open(path) as ledger:
            assert ledger.verify() == lines
            assert ledger.usages() == full[: min(lines, 3) + (lines == 5)]
            ledger.post(seconds(9))
            assert ledger.verify() == lines + 1
        torn = tmp_path / "ledger.torn"
        assert (torn.read_bytes() if torn.exists() else b"\n") == whole[ends[lines] : cut] + b"\n"


def test_zeros_at_the_end_are_torn(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path) as ledger:
        ledger.post(seconds(1))
    path.write_bytes(path.read_bytes() + b"\0" * 40 + b"\n")
    assert Ledger.open(path).verify() == 1


@pytest.mark.parametrize("change", [lambda s: s.replace('"quantity":1.0', '"quantity":0.5'), lambda s: "rubbish",
                                    lambda s: s.replace('"seq":2', '"seq":3'), lambda s: None])  # fmt: skip
def test_a_changed_or_missing_line_is_named(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path) as ledger:
        for n in range(4):
            ledger.post(seconds(n))
    lines = path.read_text().splitlines()
    changed = change(lines[1])
    lines[1:2] = [] if changed is None else [changed]
    path.write_text("\n".join(lines) + "\n")
    for use in (Ledger.open, Ledger.read):
        with pytest.raises(LedgerError, match=r"ledger\.jsonl:2: "):
            use(path)


def test_a_shortened_file_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger.open(path)
    ledger.post(seconds(1))
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="became shorter"):
        ledger.post(seconds(1))


@pytest.mark.parametrize(("code", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "input/output error")])
def test_full_disk_is_one_line_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger.open(path)
    ledger.post(seconds(1))
    size = path.stat().st_size
    write = os.write

    def part(fd: int, data: bytes) -> int:
        write(fd, data[:7])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", part)
    with pytest.raises(UserError, match=said):
        ledger.post(seconds(2))
    monkeypatch.setattr(os, "write", write)
    assert path.stat().st_size == size
    ledger.post(seconds(3))
    assert [u.quantity for u in Ledger.open(path).usages()] == [1, 3] and ledger.verify() == 2


def test_no_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match="no permission"):
        Ledger.open(tmp_path / "ledger.jsonl")
    monkeypatch.undo()
    with pytest.raises(UserError, match="no such file"):
        Ledger.read(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        Ledger.open(tmp_path / "file" / "ledger.jsonl")


def test_recover_bills_the_dead_and_leaves_the_living(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger.open(path)
    ledger.begin("dead", now=100)
    ledger.begin("living", now=100)
    ledger.reserve(intent(60, Usage("teacher:a/b/out", 500, "token", "sft")), yes, "dead", now=100)
    ledger.reserve(intent(10), yes, "dead", now=150)
    ledger.reserve(intent(10), yes, "living", now=150)
    posted = ledger.recover(now=155, alive=lambda begun: begun["attempt"] == "living")
    assert [(u.quantity, u.unit, u.outcome) for u in posted] == [
        (55, "second", "failed"), (500, "token", "failed"), (5, "second", "failed")]  # fmt: skip
    assert all(u.attempt == "dead" for u in posted)
    assert [r.attempt for r in ledger.open_reservations()] == ["living"]
    assert ledger.recover(now=155, alive=lambda begun: True) == []
    ledger.end("living", "done")
    assert [u.quantity for u in ledger.recover(now=500, alive=lambda begun: True)] == [10]  # it said that it ended
    assert ledger.recover(now=100) == [] and Ledger.open(path).usages() == ledger.usages()


def test_recover_counts_machines_by_the_planned_time(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    ledger.reserve(Intent("sft", 1, (seconds(40, start=100, end=110), seconds(0))), yes, "dead", now=100)
    four, none = ledger.recover(now=103)
    assert (four.quantity, four.start, four.end, none.quantity) == (12, 100, 103, 0)


def test_an_interrupt_between_the_line_and_memory_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    ledger.post(seconds(1))
    for step in ("_write", "apply"):
        whole = getattr(ledger if step == "_write" else ledger_module.State, step)
        with monkeypatch.context() as patch:
            if step == "_write":
                patch.setattr(ledger, "_write", lambda line, w=whole: (w(line), _interrupt()))
            else:
                patch.setattr(
                    ledger_module.State, "apply", lambda s, e, w=whole: (w(s, e), s is ledger.state and _interrupt())
                )
            with pytest.raises(KeyboardInterrupt):
                ledger.post(seconds(2))
        ledger.refresh()
    ledger.post(seconds(3))
    assert [u.quantity for u in ledger.usages()] == [1, 2, 2, 3] and ledger.verify() == 4


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_process_is_known_by_more_than_its_number(tmp_path: Path) -> None:
    begun = dict(Ledger.open(tmp_path / "ledger.jsonl").begin("a").payload)
    assert process_alive(begun) and os.uname().nodename not in json.dumps(begun)
    assert not process_alive({"process": {**begun["process"], "started": 1}})
    assert not process_alive({"process": {"pid": 2**22 + 1}})
    assert not process_alive({})


OPS = st.lists(
    st.one_of(
        st.tuples(st.just("post"), st.floats(0, 1e6)),
        st.tuples(st.just("reserve"), st.floats(0, 1e6)),
        st.tuples(st.just("refuse"), st.floats(0, 1e6)),
        st.tuples(st.just("release"), st.integers(0, 9)),
        st.tuples(st.just("reopen"), st.integers(0, 200)),
        st.tuples(st.just("recover"), st.floats(0, 100)),
    ),
    max_size=25,
)


@given(OPS)
@settings(max_examples=60, deadline=None)
def test_random_operations_against_a_model(
    tmp_path_factory: pytest.TempPathFactory, ops: list[tuple[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("ops") / "ledger.jsonl"
    pair = [Ledger.open(path), Ledger.open(path)]  # two writers, taking turns
    used: list[float] = []
    held: dict[str, float] = {}
    for n, (op, value) in enumerate(ops):
        ledger = pair[n % 2]
        if op == "post":
            ledger.post(seconds(value))
            used.append(value)
        elif op == "reserve":
            name = ledger.reserve(intent(value), yes, now=1000.0)
            assert name and name not in held
            held[name] = value
        elif op == "refuse":
            assert ledger.reserve(intent(value), lambda s: False) is None
        elif op == "release" and held:
            name = sorted(held)[value % len(held)]
            ledger.release(name, [seconds(held.pop(name) / 2), seconds(1)])
            used += [ledger.usages()[-2].quantity, 1.0]
        elif op == "recover":
            ledger.recover(now=1000.0 + value)
            used += [min(v, value) for v in held.values()]
            held = {}
        elif op == "reopen":
            with path.open("ab") as f:
                f.write(b'{"seq":' * (value % 3))  # a torn tail, now and then
            pair[n % 2].close()
            pair[n % 2] = Ledger.open(path)
        for one in pair:
            assert [u.quantity for u in one.usages()] == pytest.approx(used)
            assert {r.id for r in one.open_reservations()} == set(held)
    assert pair[0].verify() == pair[1].verify()
