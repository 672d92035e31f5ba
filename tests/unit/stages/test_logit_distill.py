"""Distillation from logits as a stage: learns on given and on its own rows, says so, resumes exactly, refuses other tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from shoestring import stages  # noqa: E402
from shoestring.estimate.flops import ModelShape  # noqa: E402
from shoestring.estimate.machine import prior  # noqa: E402
from shoestring.records import Artifact, Checkpoint, Intent, Problem, StepReport, UserError  # noqa: E402
from shoestring.stages import logit_distill, sft, teachers  # noqa: E402
from shoestring.stages.context import Facts, read_lines, write_lines  # noqa: E402
from shoestring.stages.logit_distill import Config, sampled_rows  # noqa: E402
from shoestring.stages.prompts import to_row  # noqa: E402

WORDS = {chr(33 + i): i for i in range(59)}
MERGES = [["a", "b"], ["c", "d"]]
SPECIAL = [{"id": 59, "content": "<s>", "special": True}, {"id": 60, "content": "</s>", "special": True}]
SETTINGS: dict[str, Any] = dict(epochs=3.0, batch=4, lr=1e-2, rows=64)
MODES = [
    {},
    {"on_policy": 1.0, "max_new": 6},
    {"on_policy": 0.4, "max_new": 5, "loss": "jsd", "beta": 0.3, "top_k": 9},
    {"lora": 3, "loss": "reverse_kl"},
]


def write_tokenizer(folder: Path, **changes: Any) -> Path:
    model = {"type": "BPE", "vocab": WORDS, "merges": MERGES} | {k: v for k, v in changes.items() if k != "added_tokens"}
    added = changes.get("added_tokens", SPECIAL)
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    return folder


def write_model(folder: Path, seed: int, **sizes: Any) -> Path:
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        **(
            dict(
                hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3,
                vocab_size=61, max_position_embeddings=256, tie_word_embeddings=False, initializer_range=0.2,
            )
            | sizes
        )
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return write_tokenizer(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("teacher"), 5)


@pytest.fixture(scope="module")
def student(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a tokenizer beside it."""
    return write_tokenizer(Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("student") / "base")))


@pytest.fixture
def go(make_context: Any, drive: Any, traces: Any, teacher: Path, student: Path, tmp_path: Path) -> Callable[..., list[Any]]:
    """go(where, until, context, inputs, **keys) → the events of the stage."""

    def run(where: str, until: int | None = None, context: Any = None, inputs: Any = None, **keys: Any) -> list[Any]:
        made = make_context(tmp_path / where, "kd", **({"base": student} | (context or {})))
        config = Config(**(SETTINGS | {"teacher": str(teacher)} | keys))
        return drive(logit_distill.run(config, traces if inputs is None else inputs, made), until)

    return run


def steps(events: list[Any]) -> list[StepReport]:
    return [e for e in events if isinstance(e, StepReport) and e.stage == "kd"]


def looks(events: list[Any]) -> list[StepReport]:
    return [e for e in events if isinstance(e, StepReport) and e.stage == "kd.closeness"]


@pytest.mark.parametrize("keys", MODES, ids=str)
def test_it_learns_and_says_how_close_it_came(keys: dict[str, Any], go: Any, tmp_path: Path) -> None:
    events = go("a", epochs=12.0, **keys)
    told, (before, after) = steps(events), looks(events)
    intents = [e for e in events if isinstance(e, Intent)]
    assert [r.step for r in told] == list(range(1, 31)) and len(intents) == 32
    assert before.extra["at_step"] == 0 and after.extra["at_step"] == 30
    assert after.extra["kl"] < (0.8 if "lora" in keys else 0.5) * before.extra["kl"]
    assert after.extra["agreement"] > before.extra["agreement"] and "before:" in after.extra["notice"]
    assert all(r.extra["kl"] > 0 and 0 <= r.extra["agreement"] <= 1 and r.flops > 0 and r.seconds > 0 for r in told)
    first = told[0].extra
    assert first["memory_parts_gib"].keys() >= {"teacher weights"} or first["memory_forecast_gib"] < 0.5
    *_, checkpoint, weights = events
    assert isinstance(checkpoint, Checkpoint) and checkpoint.final
    assert isinstance(weights, Artifact) and weights.path == checkpoint.path
    assert weights.meta["before"]["kl"] == before.extra["kl"] and weights.meta["after"]["kl"] == after.extra["kl"]
    made = sorted((tmp_path / "a" / "work" / "kd").glob("step-*.jsonl"))
    if "on_policy" not in keys:
        assert not made and "on_policy_rows" not in first
        return
    assert [r.extra["on_policy_rows"] for r in told] == [
        sampled_rows(Config(**(SETTINGS | {"teacher": "x"} | keys)), s) for s in range(30)
    ]
    assert sum(r.extra["on_policy_rows"] for r in told) == round(keys["on_policy"] * 4 * 30)
    rows = [r for p in made for r in read_lines(p)]
    assert len(rows) == sum(r.extra["on_policy_rows"] for r in told)
    assert sum(len(r["tokens"]) for r in rows) == sum(r.extra["rollout_tokens"] for r in told)
    assert all(1 <= len(r["tokens"]) <= keys["max_new"] for r in rows)


@pytest.mark.parametrize("keys", MODES, ids=str)
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(
    keys: dict[str, Any], go: Any, tmp_path: Path, final_state: Any
) -> None:
    whole = go("whole", **keys)
    parts: list[Any] = []
    for until in (0, 1, 5, 5):
        part = go("parts", until, **keys)
        assert isinstance(part[-1], Checkpoint) and part[-1].step == until and not part[-1].final
        parts += part
    parts += go("parts", **keys)
    assert [(r.step, r.loss, r.extra["kl"]) for r in steps(whole)] == [(r.step, r.loss, r.extra["kl"]) for r in steps(parts)]
    assert [r.extra["kl"] for r in looks(whole)] == [r.extra["kl"] for r in looks(parts)]
    a, b = (final_state(tmp_path / where / "checkpoints" / "kd") for where in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("keys", MODES[:2], ids=str)
def test_killed_between_checkpoints_replays_to_the_same_weights(
    keys: dict[str, Any],
    go: Any,
    make_context: Any,
    kill: Any,
    traces: Any,
    teacher: Path,
    student: Path,
    tmp_path: Path,
    final_state: Any,
) -> None:
    go("whole", **keys)
    context = make_context(tmp_path / "cut", "kd", base=student, checkpoint_seconds=10.0)
    events = logit_distill.run(Config(**(SETTINGS | {"teacher": str(teacher)} | keys)), traces, context)
    saved = kill(events, more=1)
    resumed = go("cut", **keys)
    assert steps(resumed)[0].step == saved + 1 and len(looks(resumed)) == 1
    a, b = (final_state(tmp_path / where / "checkpoints" / "kd") for where in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_students_own_rows_come_from_problems_where_it_answers_all(go: Any, tmp_path: Path) -> None:
    problems = [Problem.make(f"question {i}", str(i), domain="sums") for i in range(6)]
    inputs = {"problems": write_lines(tmp_path / "problems.jsonl", [to_row(p) for p in problems])}
    events = go("a", inputs=inputs, on_policy=1.0, max_new=4, epochs=2.0)
    assert len(steps(events)) == 3 and isinstance(events[-1], Artifact)
    with pytest.raises(UserError, match="needs traces; put a distill stage before it"):
        go("b", inputs=inputs, on_policy=0.5, max_new=4)
    with pytest.raises(UserError, match="no traces or problems"):
        go("c", inputs={"traces": write_lines(tmp_path / "none.jsonl", [])})


def test_a_model_is_its_own_teacher_at_kl_zero(go: Any, student: Path) -> None:
    events = go("a", teacher=str(student), epochs=1.0, lr=1e-9)
    assert looks(events)[0].extra["kl"] == 0.0 and looks(events)[0].extra["agreement"] == 1.0
    assert steps(events)[0].loss == pytest.approx(0.0, abs=1e-6)


def test_a_stop_in_the_end_still_hands_over_the_weights(go: Any, drive: Any) -> None:
    """The last comparison is not worth the reserve: without money for it the weights are final all the same."""
    events = go("a", 8)
    assert len(steps(events)) == 8 and len(looks(events)) == 1
    assert isinstance(events[-2], Checkpoint) and events[-2].final and "after" not in events[-1].meta


def change(**keys: Any) -> Callable[[Path], Any]:
    return lambda folder: write_tokenizer(folder, **keys)


OTHERS = {
    "a token": (change(vocab={**WORDS, "!": 1, '"': 0}), "vocabularies (59 and 59 tokens): id 0 is '!' and '\"'"),
    "more tokens": (change(vocab={**WORDS, "zz": 59}), "vocabularies (59 and 60 tokens)"),
    "merges": (change(merges=[["a", "b"], ["d", "c"]]), "merges (2 and 2, the first at rule 2)"),
    "fewer merges": (change(merges=MERGES[:1]), "merges (2 and 1)"),
    "a special token": (change(added_tokens=[SPECIAL[0]]), "special tokens: '</s>' is id 60 and absent"),
    "not special": (
        change(added_tokens=[SPECIAL[0], {**SPECIAL[1], "special": False}]),
        "'</s>' is id 60 and id 60, not special",
    ),
    "another kind": (change(type="WordPiece"), "kinds: BPE and WordPiece"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_tokenizer_is_refused_by_name(name: str, go: Any, teacher: Path, student: Path, tmp_path: Path) -> None:
    spoil, says = OTHERS[name]
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    spoil(other)
    with pytest.raises(UserError) as e:
        go("a", teacher=str(other))
    assert says in str(e.value) and str(other) in str(e.value) and str(student) in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match="different tokenizers"):
        logit_distill.check(Config(teacher=str(other)), str(student))  # before anything is spent


def test_merges_written_the_old_way_are_the_same_merges(teacher: Path, student: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    write_tokenizer(other, merges=["a b", "c d"])
    teachers.refuse_another_tokenizer(student, other)


def test_a_padded_head_is_no_other_tokenizer_but_a_short_one_is(go: Any, student: Path, tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    events = go("a", teacher=str(write_model(tmp_path / "wide", 5, vocab_size=80)), epochs=1.0)
    assert len(steps(events)) == 2 or steps(events)
    (tmp_path / "short").mkdir()
    with pytest.raises(UserError, match="id 60, which one of them cannot say"):
        go("b", teacher=str(write_model(tmp_path / "short", 5, vocab_size=60)))


def test_teachers_that_cannot_teach(go: Any, tmp_path: Path, student: Path) -> None:
    with pytest.raises(UserError, match=r"^teacher '.*nowhere'"):
        go("a", teacher=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"^teacher '.*nowhere'"):
        logit_distill.check(Config(teacher=str(tmp_path / "nowhere")), str(student))
    (tmp_path / "narrow").mkdir()
    with pytest.raises(UserError, match="its window is 16 tokens and the longest row can have"):
        go("b", teacher=str(write_model(tmp_path / "narrow", 5, max_position_embeddings=16)))
    (tmp_path / "bare").mkdir()
    bare = write_model(tmp_path / "bare", 5)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer.json to compare tokenizers by"):
        go("c", teacher=str(bare))
    (bare / "tokenizer.json").write_text("[1]")
    with pytest.raises(UserError, match="not a readable tokenizer"):
        go("d", teacher=str(bare))


@pytest.mark.parametrize(
    "bad",
    [
        {"teacher": " "}, {"loss": "kl"}, {"loss": "jsd", "beta": 0.0}, {"beta": 0.3}, {"temperature": 0.0}, {"top_k": -1},
        {"on_policy": 1.1}, {"max_new": 9}, {"epochs": 0.0}, {"lr": 0.0}, {"warmup": 1.0}, {"beta2": 1.0}, {"optimiser": "sgd"},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_cannot_train_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(reversed(bad)))):
        Config(**({"teacher": "x"} | bad))


def test_a_steps_flops_are_update_teacher_and_answers() -> None:
    """Each part by its formula: the student's update, the teacher's forward pass, and what the student writes."""
    from shoestring.estimate.flops import forward_flops, generation_flops, training_flops
    from shoestring.records import Example

    config = Config(teacher="x", on_policy=0.5, max_new=9)
    small, large = ModelShape(2, 32, 4, 2, 8, 48, 61, True), ModelShape(3, 48, 6, 3, 8, 64, 61, False)
    given, made = Example((1,) * 12, (0.0,) * 8 + (1.0,) * 4, 8), Example((1,) * 15, (0.0,) * 8 + (1.0,) * 7, 8)
    expected = training_flops(small, [12, 15], 11) + forward_flops(large, [12, 15], 11)
    cost = logit_distill._flops(config, small, large)
    assert cost([given], [made], 27, 11) == pytest.approx(expected + generation_flops(small, 8, 7))
    assert cost([given, made], [], 27, 11) == pytest.approx(expected)


def test_it_is_a_stage() -> None:
    assert stages.configs()["logit_distill"] is Config


def test_the_forecast_prices_teacher_update_and_rollouts(teacher: Path) -> None:
    big = ModelShape(30, 576, 9, 3, 64, 1536, 49152, True)
    facts = Facts(big, prior(frozenset(), 2), "this/machine-second", "kd", traces=64, problems=64, trained=True)
    plain = sft.forecast(sft.Config(memory_gib=64.0), facts)
    name = "SmolLM2-1.7B-Instruct"  # by its name: nothing of it is here
    keys: dict[str, Any] = {"teacher": name, "memory_gib": 64.0}
    given, own = (logit_distill.forecast(Config(**keys, on_policy=p), facts) for p in (0.0, 1.0))
    assert given.parts["update"] == pytest.approx(plain.parts["update"]) and given.parts["rollouts"] == 0.0
    assert given.parts["teacher"] > 3 * given.parts["update"]  # 12 times the weights, a third of the passes
    assert given.usages[0].quantity > plain.usages[0].quantity
    assert own.parts["rollouts"] > 0 and own.usages[0].quantity > given.usages[0].quantity and own.trains
    weights = teachers.shape_of(name).parameters()
    assert given.memory["teacher weights"] == 2 * weights and "prepacked weights" in own.memory
    assert given.memory_bytes > plain.memory_bytes + 2 * weights
    small = logit_distill.forecast(Config(teacher=str(teacher)), facts)
    assert small.usages[0].quantity < given.usages[0].quantity
    with pytest.raises(UserError, match=r"^teacher 'nobody'"):
        logit_distill.forecast(Config(teacher="nobody"), facts)
