"""Supervised fine-tuning: the order of the traces, the number of steps, and resuming to the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.records import Artifact, Checkpoint, Intent, StepReport, UserError
from shoestring.stages import sft
from shoestring.stages.context import write_lines
from shoestring.stages.sft import Config, batches_of, steps_of


@given(st.lists(st.integers(1, 90), min_size=1, max_size=50), st.integers(1, 20), st.integers(0, 3), st.integers(1, 300))
def test_every_trace_is_seen_as_often(lengths: list[int], batch: int, seed: int, rows: int) -> None:
    """Whole epochs, but for what the last steps cut off; the longest step stands first and takes the first one's place."""
    config = Config(batch=batch, epochs=3.0, rows=rows)
    made = batches_of(config, seed, lengths)
    assert len(made) == steps_of(config, len(lengths)) and all(len(b) == batch for b in made)

    def widest(step: list[int]) -> int:
        return max(min(sum(lengths[i] for i in step), rows), *(lengths[i] for i in step))

    assert widest(made[0]) == max(map(widest, made))
    for at in range(len(made)):  # undo the exchange: one of the places gives whole shuffled epochs
        order = list(made)
        order[0], order[at] = order[at], order[0]
        flat = [i for b in order for i in b]
        whole = [flat[e : e + len(lengths)] for e in range(0, len(flat) - len(lengths) + 1, len(lengths))]
        if all(sorted(e) == list(range(len(lengths))) for e in whole):
            break
    else:
        raise AssertionError("no exchange of two steps gives whole epochs")


def test_order_is_a_function_of_seed_and_lengths() -> None:
    config = Config(batch=7, epochs=3.0)
    lengths = [10 + i for i in range(21)]
    orders = {tuple(i for b in batches_of(config, seed, lengths) for i in b) for seed in range(5)}
    assert len(orders) == 5
    assert batches_of(config, 1, lengths) == batches_of(config, 1, lengths)


def test_the_longest_trace_is_in_the_first_step() -> None:
    for at in range(20):
        lengths = [5] * 20
        lengths[at] = 500
        assert at in batches_of(Config(batch=4, epochs=2.0, rows=64), 0, lengths)[0]


def test_steps_follow_epochs() -> None:
    assert steps_of(Config(epochs=2, batch=32), 64) == 4
    assert steps_of(Config(epochs=1.5, batch=8), 16) == 3
    assert steps_of(Config(epochs=1, batch=32), 3) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch": -1},
        {"lr": 0.0},
        {"rows": 0},
        {"warmup": 1.0},
        {"optimiser": "sgd"},
        {"schedule": "steps"},
        {"recompute": "some"},
        {"decay": 0.0},
        {"floor": 1.5},
        {"memory_gib": -1.0},
        {"save_total_limit": 0},
        {"max_norm": -1.0},
    ],
)
def test_a_config_that_cannot_train_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Config(**bad)


CONFIG = Config(epochs=3, batch=4, lr=1e-2, rows=64)


@pytest.fixture
def traces(tmp_path: Path) -> dict[str, Path]:
    rows = [
        {
            "problem_id": f"p{i}",
            "messages": [
                {"role": "user", "content": f"please add {i} and {i + 1}"},
                {"role": "assistant", "content": f"it is {2 * i + 1}"},
            ],
        }
        for i in range(10)
    ]
    return {"traces": write_lines(tmp_path / "traces.jsonl", rows)}


def run(make_context: Any, drive: Any, where: Path, inputs: Any, until: int | None = None, **rest: Any) -> list[Any]:
    return drive(sft.run(CONFIG, inputs, make_context(where, "sft", **rest)), until)


def test_a_run_learns_and_says_what_it_did(make_context: Any, drive: Any, traces: Any, tmp_path: Path) -> None:
    events = run(make_context, drive, tmp_path / "a", traces)
    reports = [e for e in events if isinstance(e, StepReport)]
    intents = [e for e in events if isinstance(e, Intent)]
    assert [r.step for r in reports] == [i.step for i in intents] == list(range(1, 9))
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert all(r.useful_tokens < r.tokens < r.extra["plain_rows"] and r.seconds > 0 and r.flops > 0 for r in reports)
    *_, checkpoint, weights = events
    assert isinstance(checkpoint, Checkpoint) and checkpoint.final and checkpoint.step == 8
    assert isinstance(weights, Artifact) and weights.path == checkpoint.path and weights.meta["model"] == "sft"


@pytest.mark.parametrize("stops", [[0], [1], [5], [2, 3, 7], [4, 4]])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(
    stops: list[int], make_context: Any, drive: Any, traces: Any, tmp_path: Path, final_state: Any
) -> None:
    import torch

    whole = run(make_context, drive, tmp_path / "whole", traces)
    parts = []
    for until in stops:
        part = run(make_context, drive, tmp_path / "parts", traces, until)
        assert isinstance(part[-1], Checkpoint) and part[-1].step == until and not part[-1].final
        parts += part
    parts += run(make_context, drive, tmp_path / "parts", traces)
    losses = [[(e.step, e.loss) for e in events if isinstance(e, StepReport)] for events in (whole, parts)]
    assert losses[0] == losses[1]
    a, b = (final_state(tmp_path / where / "checkpoints" / "sft") for where in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_killed_between_checkpoints_replays_to_the_same_weights(
    make_context: Any, drive: Any, kill: Any, traces: Any, tmp_path: Path, final_state: Any
) -> None:
    import torch

    run(make_context, drive, tmp_path / "whole", traces)
    events = sft.run(CONFIG, traces, make_context(tmp_path / "cut", "sft", checkpoint_seconds=10.0))
    saved = kill(events, more=2)
    resumed = run(make_context, drive, tmp_path / "cut", traces)
    assert next(e for e in resumed if isinstance(e, StepReport)).step == saved + 1
    a, b = (final_state(tmp_path / where / "checkpoints" / "sft") for where in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_stage_run_again_keeps_its_result(make_context: Any, drive: Any, traces: Any, tmp_path: Path) -> None:
    run(make_context, drive, tmp_path / "a", traces)
    manifest = tmp_path / "a" / "checkpoints" / "sft" / "step-8" / "manifest.json"
    stamp = manifest.stat().st_mtime_ns
    events = run(make_context, drive, tmp_path / "a", traces)
    assert [type(e) for e in events] == [Checkpoint, Artifact] and manifest.stat().st_mtime_ns == stamp


def test_missing_or_empty_traces_are_one_clear_line(make_context: Any, drive: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs traces; put a distill stage before it"):
        run(make_context, drive, tmp_path, {})
    empty = write_lines(tmp_path / "none.jsonl", [])
    with pytest.raises(UserError, match="no traces"):
        run(make_context, drive, tmp_path, {"traces": empty})


def test_steps_take_the_place_of_epochs() -> None:
    config = Config(epochs=2.0, steps=5, batch=4)
    assert steps_of(config, 100) == 5 == len(batches_of(config, 0, [3] * 100))
    assert len(batches_of(config, 0, [3] * 6)) == 5  # over and over
    with pytest.raises(ValueError, match="steps = -1"):
        Config(steps=-1)


def test_a_random_start_is_the_seeds_and_not_the_bases(make_context: Any, drive: Any, traces: Any, tmp_path: Path) -> None:
    """The checkpoint after steps at a rate near zero is the drawn weights: alike for one seed, other for another, and the
    base's nowhere."""
    from shoestring.train.checkpoints import read_tensors

    found: dict[str, Any] = {}
    for name, start, seed in (("a", "random", 0), ("b", "random", 0), ("c", "random", 1), ("d", "base", 0)):
        context = make_context(tmp_path / name, "sft", seed=seed)
        drive(sft.run(Config(steps=1, batch=2, lr=1e-12, start=start), traces, context))
        last = max(context.checkpoints.glob("step-*"))
        found[name] = {k: t for k, t in read_tensors(last, "master/").items() if t.ndim > 1}
    for key, drawn in found["a"].items():
        assert (drawn - found["b"][key]).abs().max() < 1e-6
        assert all((drawn - found[other][key]).abs().max() > 1e-3 for other in "cd")
    with pytest.raises(ValueError, match="with lora"):
        Config(start="random", lora=4)


@pytest.mark.parametrize("key, value", [("beta1", 1.0), ("beta2", -0.1), ("lr", float("inf")), ("batch", 0), ("warmup", 1.0)])
def test_settings_that_mean_nothing(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{key} = "):
        sft.Config(**{key: value})  # type: ignore[arg-type]
