"""The draw's mixture, curriculum and replay: shares, preference, determinism, and that a resumed run draws the same."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.records import Checkpoint, Problem, StepReport, UserError
from shoestring.stages import grpo
from shoestring.stages._grpo_draw import Lately, _replays, draw, others, read_pool, step_file, told, turns_of, weighted
from shoestring.stages.context import write_lines
from shoestring.stages.prompts import to_row


@dataclass
class Keys:
    prompts: int = 8
    mix: dict[str, float] | None = None
    curriculum: Literal["none", "moving"] = "none"
    replay: float = 0.0


def make_pool(*sizes: int) -> dict[str, list[Problem]]:
    return {
        f"f{f}": [Problem.make(f"question {f}/{i}", str(i), domain=f"f{f}") for i in range(n)] for f, n in enumerate(sizes)
    }


def todays_draw(pool: Any, prompts: int, seed: int, step: int) -> list[Problem]:
    """The draw as it was before it had keys."""
    families = sorted(pool)
    out = []
    for place in range(step * prompts, (step + 1) * prompts):
        turn, which = divmod(place, len(families))
        members = pool[families[which]]
        epoch, at = divmod(turn, len(members))
        order = list(range(len(members)))
        random.Random(f"{seed}/{families[which]}/{epoch}").shuffle(order)
        out.append(members[order[at]])
    return out


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(SIZES, st.integers(1, 7), st.integers(0, 5), st.integers(0, 30))
def test_without_keys_the_draw_is_what_it_was(sizes: list[int], prompts: int, seed: int, step: int) -> None:
    pool, lately = make_pool(*sizes), Lately()
    lately.note(1, [(p.id, 0.5) for ps in pool.values() for p in ps])
    wanted = todays_draw(pool, prompts, seed, step)
    assert draw(pool, Keys(prompts), seed, step) == draw(pool, Keys(prompts), seed, step, lately) == wanted
    even = Keys(prompts, dict.fromkeys(pool, 3.0))
    assert draw(pool, even, seed, step) == wanted


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6), st.integers(1, 200))
def test_families_come_as_often_as_their_weights_say(weights: list[float], places: int) -> None:
    turns = turns_of(weights, places)
    counts = Counter(which for _, which in turns)
    for i, w in enumerate(weights):
        share = places * w / sum(weights)
        assert abs(counts[i] - share) <= max(1.0, 0.5 * len(weights))
        assert [t for t, which in turns if which == i] == list(range(counts[i]))


def test_a_mixture_leaves_out_and_prefers() -> None:
    pool = make_pool(20, 20, 20)
    config = Keys(8, {"f0": 2.0, "f2": 0.0})
    counts = Counter(p.domain for step in range(30) for p in draw(pool, config, 0, step))
    assert counts == {"f0": 160, "f1": 80}


@given(SIZES, st.integers(1, 12), st.integers(0, 3), st.integers(0, 20), st.sampled_from([0.0, 0.3, 0.9]))
def test_a_moving_draw_is_a_function_of_seed_step_and_what_was_seen(
    sizes: list[int], prompts: int, seed: int, step: int, replay: float
) -> None:
    pool, config = make_pool(*sizes), Keys(prompts, None, "moving", replay)
    everything = [p for ps in pool.values() for p in ps]
    lately, shuffled = Lately(), Lately()
    for s in range(1, step + 1):
        scores = [(p.id, float(random.Random(f"{s}{p.id}").random() < 0.5)) for p in everything[s % 3 :: 3]]
        lately.note(s, scores)
        shuffled.note(s, reversed(scores))
    shuffled.note(step + 1, [(p.id, 0.0) for p in everything])  # what lies ahead is not looked at
    made = draw(pool, config, seed, step, lately)
    assert len(made) == prompts
    assert made == draw(dict(reversed(pool.items())), config, seed, step, shuffled)
    if prompts <= len(everything):
        assert len({p.id for p in made}) == prompts


def test_the_curriculum_moves_to_what_is_half_solved() -> None:
    pool = make_pool(60, 60, 60)
    lately = Lately()
    for step in range(1, 9):  # f0 is solved, f1 half, f2 never
        rates = {"f0": (1.0, 1.0), "f1": (0.0, 1.0), "f2": (0.0, 0.0)}
        lately.note(step, [(p.id, rates[f][i % 2]) for f in pool for i, p in enumerate(pool[f])])
    config = Keys(8, None, "moving")

    def share(seen: Lately, at: int) -> float:
        return sum(p.domain == "f1" for s in range(40) for p in draw(pool, config, s, at, seen)) / 320

    assert share(Lately(), 0) == pytest.approx(1 / 3, abs=0.1)
    before = share(lately, 8)
    for step in range(9, 60):  # now f1 is solved too, and f2 has begun
        rates = {"f0": (1.0, 1.0), "f1": (1.0, 1.0), "f2": (0.0, 1.0)}
        lately.note(step, [(p.id, rates[f][i % 2]) for f in pool for i, p in enumerate(pool[f])])
    after = share(lately, 59)
    assert 0.25 < before < 0.9 and after < 0.3


def test_inside_a_family_half_solved_problems_are_preferred() -> None:
    pool, lately = make_pool(30), Lately()
    for step in range(1, 20):
        lately.note(step, [(p.id, score) for i, p in enumerate(pool["f0"]) for score in ((0, 0), (0, 1), (1, 1))[i % 3]])
    drawn = Counter(pool["f0"].index(p) % 3 for s in range(100) for p in draw(pool, Keys(5, None, "moving"), s, 19, lately))
    assert drawn[1] > 2 * max(drawn[0], drawn[2]) and drawn[0] and drawn[2]


@given(st.integers(0, 50))
def test_replay_draws_what_was_failed(seed: int) -> None:
    pool, lately = make_pool(40), Lately()
    ps = pool["f0"]
    lately.note(1, [(p.id, 1.0) for p in ps[:4]] + [(p.id, 0.0) for p in ps[4:8]])
    lately.note(2, [(p.id, 0.0) for p in ps[:2]])  # solved once, now failed
    made = draw(pool, Keys(8, None, "none", 0.5), seed, 2, lately)
    plain = todays_draw(pool, 8, seed, 2)
    kept = [p for a, p in zip(plain, made, strict=True) if p == a]
    replayed = [p for a, p in zip(plain, made, strict=True) if p != a]
    assert len(kept) >= 4 and len({p.id for p in made}) == 8
    assert all(p in ps[:2] + ps[4:8] for p in replayed)
    assert draw(pool, Keys(8, None, "none", 0.5), seed, 0, lately) == todays_draw(pool, 8, seed, 0)  # nothing is seen yet


def test_once_solved_and_now_failed_comes_first() -> None:
    pool, lately = make_pool(40), Lately()
    ps = pool["f0"]
    lately.note(1, [(p.id, float(i < 10)) for i, p in enumerate(ps[:20])])
    lately.note(2, [(p.id, 0.0) for p in ps[:10]])
    config, counts = Keys(4, None, "none", 0.25), Counter()
    for seed in range(200):
        plain, made = todays_draw(pool, 4, seed, 2), draw(pool, config, seed, 2, lately)
        counts.update("once" if p in ps[:10] else "never" for a, p in zip(plain, made, strict=True) if a != p)
    assert counts["once"] > 2 * counts["never"] > 0


@given(st.lists(st.floats(0, 5), max_size=12), st.integers(0, 8), st.integers(0, 9))
def test_weighted_places_are_distinct_and_never_of_weight_zero(weights: list[float], count: int, seed: int) -> None:
    made = weighted(random.Random(seed), weights, count)
    assert len(made) == len(set(made)) == min(count, sum(w > 0 for w in weights)) and all(weights[i] > 0 for i in made)


def test_rates_forget_and_lean_on_the_family() -> None:
    (ps,) = make_pool(3).values()
    lately = Lately(most=2.0)
    lately.note(1, [(ps[0].id, 2.0)] * 8 + [(ps[1].id, None)])
    lately.note(30, [(ps[0].id, 0.0)] * 8)
    first, second, third = lately.rates(ps, 30)
    assert first < 0.2 and second == third and 0 < second < 0.3
    assert lately.rates(ps, 1)[0] > 0.9 and lately.rates(ps, 0) == [0.5] * 3
    assert told(ps, lately, 30) == {"drawn": {"f0": 3}, "asked_before": 1, "rate_before": pytest.approx(0.0750, abs=1e-4)}


def test_a_mixture_names_families_that_are_there(tmp_path: Path) -> None:
    pool = make_pool(3, 2)
    inputs = {"pool": write_lines(tmp_path / "pool.jsonl", [to_row(p) for ps in pool.values() for p in ps])}
    assert list(read_pool(inputs, "grpo", {"f1": 0.0})) == ["f0"]
    with pytest.raises(UserError, match="no family 'f3'; did you mean"):
        read_pool(inputs, "grpo", {"f3": 1.0})
    with pytest.raises(UserError, match="mix leaves every family out"):
        read_pool(inputs, "grpo", {"f0": 0.0, "f1": 0.0})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"curriculum": "up"}, "curriculum = 'up'"), ({"replay": 1.0}, "replay = 1.0"),
        ({"mix": {"a": -1.0}}, "mix: the weight of a"), ({"mix": {"a": math.inf}}, "mix: the weight of a"),
    ],
)  # fmt: skip
def test_bad_keys(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grpo.Config(**keys)


@pytest.mark.parametrize("stops", [[0], [3], [1, 2, 4]])
def test_a_resumed_curriculum_ends_in_the_same_weights(
    stops: list[int], make_context: Any, drive: Any, tmp_path: Path, final_state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a killed attempt has left the file of a step that it did not finish."""
    import torch

    from shoestring import rewards
    from shoestring.stages import workbench

    def score_all(texts: list[str], problems: list[Problem], **columns: Any) -> list[rewards.Verdict]:
        return [rewards.of_score(float(sum(map(ord, t)) % 2 == 0)) for t in texts]

    monkeypatch.setattr(workbench.rewards, "score_all", score_all)
    inputs = {"pool": write_lines(tmp_path / "pool.jsonl", [to_row(p) for ps in make_pool(9, 7).values() for p in ps])}
    config = grpo.Config(
        steps=6, prompts=3, group=4, lr=5e-3, warmup=1, max_new=6, rows=64, curriculum="moving", replay=0.4, mix={"f0": 2.0}
    )

    def go(where: str, until: int | None = None) -> list[Any]:
        return drive(grpo.run(config, inputs, make_context(tmp_path / where, "grpo")), until)

    whole, parts = go("whole"), []
    for until in stops:
        parts += go("parts", until)
        assert isinstance(parts[-1], Checkpoint)
        ahead = step_file(tmp_path / "parts" / "work" / "grpo", until + 1)
        ahead.parent.mkdir(parents=True, exist_ok=True)
        ahead.write_text("".join([p.read_text() for p in ahead.parent.glob("step-*.jsonl")]))  # of a killed attempt
    parts += go("parts")
    reports = [[e for e in events if isinstance(e, StepReport)] for events in (whole, parts)]
    said = [[(e.step, e.loss, e.extra["drawn"], e.extra["asked_before"], e.extra["entropy"]) for e in es] for es in reports]
    assert said[0] == said[1] and any(asked for _, _, _, asked, _ in said[0])
    a, b = (final_state(tmp_path / where / "checkpoints" / "grpo") for where in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(("replay", "prompts"), [(0.05, 8), (0.3, 4), (0.25, 8), (0.1, 10), (0.9, 1)])
def test_the_share_of_a_replay_is_kept_over_steps(replay: float, prompts: int) -> None:
    """Also where it is no whole number of a step's problems, or less than one."""
    config, steps = Keys(prompts, None, "none", replay), 40
    counts = [_replays(config, step) for step in range(steps)]
    assert sum(counts) == math.floor(replay * prompts * steps + 1e-9) > 0
    assert max(counts) - min(counts) <= 1 and max(counts) <= prompts


@given(
    SIZES, st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.data(), st.sampled_from(["none", "moving"]), st.booleans()
)
def test_others_are_new_while_the_pool_has_new_ones(
    sizes: list[int], prompts: int, seed: int, step: int, data: st.DataObject, curriculum: Any, replay: bool
) -> None:
    pool, lately = make_pool(*sizes), Lately()
    every = [p.id for ps in pool.values() for p in ps]
    drawn = set(data.draw(st.lists(st.sampled_from(every), max_size=len(every))))
    lately.note(step, [(id, 0.5) for id in every[::2]])
    config = Keys(prompts, None, curriculum, 0.5 if replay else 0.0)
    made = [p.id for p in others(pool, config, seed, step, lately, drawn)]
    assert len(made) == prompts and set(made) <= set(every)
    fresh = len(every) - len(drawn)
    assert len({id for id in made if id not in drawn}) == min(prompts, fresh)
    assert not drawn & set(made[:fresh])  # an old one only after the last new one
    assert len(set(made)) == min(prompts, len(every))
    assert made == [p.id for p in others(pool, config, seed, step, lately, drawn)]
