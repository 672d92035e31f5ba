"""The bench's arithmetic, verdicts, stored table and workload: no torch, no other tools."""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import groups, results, run, workload  # noqa: E402
from benchmarks.protocol import Worker  # noqa: E402
from benchmarks.results import Row, markdown, medians, merge, missed, print_table, same_share, with_table, write  # noqa: E402
from benchmarks.table import MEASURED, SPECS, Must, Spec  # noqa: E402

SPEED = Spec("x", "f", "tokens/s", "higher")
TIME = Spec("y", "f", "s", "lower")
NONE = Must()


def row(better: str = "higher", ours: float | None = 4.0, peer: float | None = 2.0, must: Must = NONE, **rest: Any) -> Row:
    return Row(replace(SPEED if better == "higher" else TIME, must=must), ours, peer, **rest)


def test_a_ratio_above_one_is_better_whichever_way_the_unit_runs() -> None:
    assert row("higher").ratio == 2 and row("lower").ratio == 0.5
    assert row(peer=None).ratio is None and row(peer=0.0).ratio is None and row("lower", ours=0.0).ratio is None


@pytest.mark.parametrize(
    ("found", "met"),
    [
        (row(), None),
        (row(must=Must(ratio_at_least=2.0)), True),
        (row(must=Must(ratio_at_least=2.01)), False),
        (row(peer=None, must=Must(ratio_at_least=1.0)), False),  # nothing to compare with is not a pass
        (row("lower", must=Must(ratio_at_least=1.0)), False),
        (row(peer=None, must=Must(ours_at_most=4.0)), True),
        (row(peer=None, must=Must(ours_at_most=3.9)), False),
        (row(peer=None, must=Must(ours_at_least=4.0)), True),
        (row(peer=None, must=Must(ours_at_least=4.1)), False),
        (row(ours=math.nan, must=Must(ours_at_most=3.9)), False),
        (row(ours=math.nan, must=Must(ours_at_least=0.1)), False),
        (row(ours=math.nan, must=Must(ratio_at_least=0.1)), False),
        (row(sound=False), False),  # fast and wrong is a miss, asked for or not
        (row(sound=False, must=Must(ratio_at_least=1.0)), False),
        (row(ours=None, peer=None, must=Must(ratio_at_least=1.0), not_run="no GPU"), None),  # neither met nor missed
    ],
)
def test_verdicts(found: Row, met: bool | None) -> None:
    assert found.met is met
    assert missed([found]) == ([found] if met is False else [])


def test_medians_over_blocks_are_what_one_bad_block_cannot_move() -> None:
    r = medians(replace(TIME, must=Must(ratio_at_least=2.9)), [1.0, 1.0, 50.0], [3.0, 3.0, 0.1])
    assert (r.ours, r.peer, r.ratio, r.met) == (1.0, 3.0, 3.0, True)
    assert r.runs == {"ours": [1.0, 1.0, 50.0], "peer": [3.0, 3.0, 0.1]}
    alone = medians(TIME, [0.2, 0.1, 0.3])
    assert (alone.ours, alone.peer, alone.ratio) == (0.2, None, None) and "peer" not in alone.runs


def test_mfu_divides_every_block_by_the_rate_measured_after_it() -> None:
    blocks = [{"flops": 6e12, "seconds": 10.0}, {"flops": 6e12, "seconds": 20.0}, {"flops": 3e12, "seconds": 5.0}]
    rates = [{"square": 2e12, "model": 3e12, "head": 1e12}, {"square": 1e12, "model": 3e12, "head": 1e12}]
    rates.append({"square": 4e12, "model": 3e12, "head": 1e12})
    found = groups.mfu([{**b, "matmul": m} for b, m in zip(blocks, rates, strict=True)], 2048)
    assert found.runs["ours"] == pytest.approx([30, 30, 15]) and found.ours == pytest.approx(30)
    assert found.met and "0.600 TFLOP/s of 2.00" in found.correctness and "20.0% of the 3.00" in found.correctness


def test_identical_tokens_count_by_position_and_missing_ones_differ() -> None:
    assert same_share([[1, 2], [3, 4]], [[1, 2], [3, 9]]) == 0.75
    assert same_share([[1]], [[1, 2]]) == 0.5
    assert same_share([], []) == 1.0


def test_the_table_holds_every_row_that_was_asked_for() -> None:
    must = {s.what: str(s.must) for s in SPECS}
    assert len(must) == len(SPECS)
    assert must["SFT"] == "≥ 3.2×" and must["SFT against the defaults"] == "≥ 3.5×" and must["SFT, peak memory"] == "≤ 4.5"
    assert must["decode, batch 8"] == must["decode, batch 32"] == "≥ 1.5×" and must["SFT, MFU"] == "≥ 20"
    assert must["decode, batch 32, against vLLM"] == "≥ 0.9×" and must["GRPO step, 4 x 8 x 64"] == "≥ 3×"
    assert all(must[f"start, shoestring {c}"] == "≤ 0.4" for c in ("--help", "plan", "bill"))
    assert set(MEASURED) == set(groups.MAKERS) == {s.family for s in SPECS} - {"h100"}
    assert (run.FULL.blocks, run.FULL.steps) == (5, 3)


def test_a_row_measured_again_replaces_the_old_one_and_a_reason_replaces_no_figure() -> None:
    a, b, c = (replace(SPEED, what=w) for w in "abc")
    old = [Row(a, 1.0, date="monday"), Row(b, 2.0, date="monday")]
    new = [Row(a, 3.0, date="tuesday"), Row(b, not_run="the peer died")]
    found = merge(old, new, [a, b, c])
    assert [(r.ours, r.date) for r in found] == [(3.0, "tuesday"), (2.0, "monday"), (None, "")]
    assert found[2].not_run == results.NOT_YET
    assert merge([], new, [b])[0].not_run == "the peer died"
    assert merge(merge(old, new, [a, b, c]), [], [a, b, c]) == found
    assert merge([], [], [replace(c, family="h100")])[0].not_run == results.NO_GPU


KEYS = {"what", "ours", "peer", "peer_name", "peer_version", "unit", "ratio", "must", "runs", "correctness"}


def test_the_file_and_the_table_say_the_same(tmp_path: Path) -> None:
    here = {"cpu": "some", "cores": 2}
    name = {"peer_version": "1.16.0", "date": "2026-01-02", "machine": here}
    sft, start, vllm = (next(s for s in SPECS if s.what == w) for w in ("SFT", SPECS[0].what, "decode, batch 32, against vLLM"))
    rows = [
        Row(sft, 4.0, 2.0, correctness="equal tokens", runs={"ours": [4.0], "peer": [2.0]}, **name),
        Row(start, 0.123456, date="2026-01-02", machine=here),
        Row(vllm, not_run="it cannot be installed here"),
    ]
    path = tmp_path / "new" / "cpu.json"
    write(rows, path)
    data = json.loads(path.read_text())
    assert all(set(d) >= KEYS | {"not_run", "date", "machine", "aim"} for d in data)
    assert [d["met"] for d in data] == [False, True, None] and [d["basis"] for d in data] == ["measured", "measured", None]
    assert data[0]["must"] == {"ratio_at_least": 3.2} and data[1]["must"] == {"ours_at_most": 0.4}
    assert data[1]["ours"] == 0.1235 and data[1]["peer"] is None and data[1]["machine"] == here
    assert data[2]["ours"] is None and data[2]["not_run"] == "it cannot be installed here"
    again = results.load(path)
    assert again[0] == rows[0] and again[2] == rows[2] and again[1].ours == 0.1235
    out = io.StringIO()
    print_table(rows, Console(file=out, width=150))
    for text in (out.getvalue(), markdown(rows)):
        for x in ("2.00×", "≥ 3.2×", "missed", "≤ 0.4", "met", "(1.16.0)", "equal tokens", "cores 2", "it cannot be installed", "not run"):
            assert x in text
    page = f"before {results.BEGIN} old {results.END} after"
    assert with_table(page, rows) == with_table(with_table(page, rows), rows) and " old " not in with_table(page, rows)
    with pytest.raises(ValueError, match="lacks"):
        with_table("no markers", rows)


def test_the_stored_file_is_one_list_of_every_row_and_the_page_is_in_step_with_it() -> None:
    data = json.loads(results.STORED.read_text())
    assert [d["what"] for d in data] == [s.what for s in SPECS]
    assert all(set(d) >= KEYS and (d["ours"] is None) == bool(d["not_run"]) for d in data)
    text = results.DOCS.read_text()
    assert with_table(text, results.load()) == text, "run: python -m benchmarks.results --write-docs"


def test_families_are_chosen_by_name_in_the_order_of_a_run() -> None:
    assert run.families("grpo,sft") == ["sft", "grpo"] and run.families("decode") == ["decode"]
    for bad in ("", "sft,gpo"):
        with pytest.raises(argparse.ArgumentTypeError, match="choose from startup, sft"):
            run.families(bad)


def test_vllm_that_is_not_there_is_a_row_with_its_reason(tmp_path: Path) -> None:
    assert run.vllm_python(tmp_path) == ("", f"vLLM is not in {tmp_path.name}; run `make peers-vllm`")
    (tmp_path / "failed").write_text("no wheel for this machine\n")
    missing = run.vllm_python(tmp_path)[1]
    bench = groups.Bench(run.QUICK, tmp_path, 1, "python")
    (found,), fine = run.measure(bench, "vllm", missing, {})
    assert fine and found.not_run == "no wheel for this machine" and found.met is None
    (tmp_path / "installed").touch()
    assert run.vllm_python(tmp_path) == (str(tmp_path / "bin" / "python"), "")


def test_a_family_whose_worker_dies_is_not_run_and_fails_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(name: str) -> Any:
        def rows(bench: groups.Bench, family: str) -> Any:
            raise RuntimeError(f"{name} ended with exit code 1:\nTraceback\nMemoryError: no room")
            yield

        return rows

    bench = groups.Bench(run.QUICK, tmp_path, 1, "python")
    for family, name, fine in (("decode", "peer", False), ("vllm", "peer", True), ("vllm", "ours", False)):
        monkeypatch.setitem(groups.MAKERS, family, dies(name))
        rows, said = run.measure(bench, family, "", {})
        assert said is fine and {r.not_run for r in rows} == {f"{name} ended with exit code 1: MemoryError: no room"}


def test_everybody_computes_with_the_same_threads() -> None:
    e = groups.environment(1)
    assert e["OMP_NUM_THREADS"] == "1" and e["VLLM_CPU_OMP_THREADS_BIND"].isdigit()


def words(messages: list[dict[str, str]]) -> int:
    return sum(len(m["content"].split()) for m in messages)


def test_chats_are_seeded_varied_and_solved() -> None:
    made = list(workload.chats(60, words))
    assert made == list(workload.chats(60, words)) != list(workload.chats(60, words, seed=1))
    sizes = sorted(map(words, made))
    assert sizes[0] < 80 and sizes[-1] > 500 and 200 < sizes[30] < 450
    assert all([m["role"] for m in c] == ["system", "user", "assistant"] for c in made)


@given(st.integers(0, 2**32), st.integers(0, 40))
def test_a_story_ends_in_the_number_of_its_last_line(seed: int, events: int) -> None:
    import random
    import re

    question, answer = workload.story(random.Random(seed), events)
    *steps, last = answer.splitlines()
    assert len(steps) == events + 1 and question.endswith("in the end?")
    for a, op, b, c in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", answer):
        assert int(c) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) // int(b)}[op]
    assert re.findall(r"\d+", last)[-1] in re.findall(r"\d+", steps[-1])


def test_rewards_take_the_last_number() -> None:
    assert workload.reward("3 + 4 is 7.", "7") == 1 and workload.reward("7, no: 8", "7") == 0
    assert workload.reward("none", "7") == 0 and workload.reward("it is -7", "7") == 0
    assert all(str(eval(m[0]["content"].split("?")[0][8:])) == a for m, a in workload.sums(20))


def test_batches_go_around_in_order() -> None:
    assert [workload.batch("abcde", step, 2) for step in range(3)] == [["a", "b"], ["c", "d"], ["e", "a"]]


WORKER = """
import sys
from benchmarks.protocol import Channel
c = Channel()
print("noise of a library")
c.send(ready=True)
while (x := c.receive()) is not None:
    if x["do"] == "die":
        sys.exit("out of luck")
    c.send(twice=2 * x["n"])
"""


def test_workers_answer_in_turns_and_a_dead_one_says_why() -> None:
    command, environment = [sys.executable, "-c", WORKER], {"PYTHONPATH": str(ROOT)}
    with Worker("a", command, environment) as a, Worker("b", command, environment) as b:
        assert a.ready["ready"] and a.ready["peak_gib"] > 0
        assert [w.ask("block", n=n)["twice"] for n in (1, 2) for w in (a, b)] == [2, 2, 4, 4]
        with pytest.raises(RuntimeError, match=r"(?s)b ended with exit code 1:.*out of luck"):
            b.ask("die")
        assert a.ask("block", n=5)["twice"] == 10
