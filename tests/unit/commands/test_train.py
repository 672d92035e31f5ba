"""Flags under TRL's names become a recipe; what they mean is checked against the recipe that one would write by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring import cli, recipe, stages
from shoestring.commands import train
from shoestring.commands.parser import parse
from shoestring.records import UserError

BASE = ["--model_name_or_path", "smollm2-135m-instruct", "--dataset_name", "bundled:lcm", "--budget", "1 USD"]


def made(command: str, *args: str, out: str = "runs/x", common: list[str] = BASE) -> recipe.Recipe:
    parsed = parse(cli.parser(), [command, *common, "--output_dir", out, *args])
    return train._recipe(parsed, parsed.out)


def stage(r: recipe.Recipe, name: str) -> Any:
    return next(t.config for t in r.stages if t.name == name)


def test_sft_is_the_recipe_that_one_would_write() -> None:
    flags = made(
        "sft", "--learning_rate", "1e-4", "--num_train_epochs", "3", "--per_device_train_batch_size", "4",
        "--gradient_accumulation_steps", "2", "--seed", "5", "--report_to", "tensorboard,wandb", "--warmup_ratio", "0.1",
        "--weight_decay", "0.01", "--max_grad_norm", "0.5", "--rate", "0.2 USD/hour", "--set", "sft.rows=512",
    )  # fmt: skip
    text = """
        name = "x"
        budget = "1 USD"
        rate = "0.2 USD/hour"
        base = "smollm2-135m-instruct"
        seed = 5
        report_to = ["tensorboard", "wandb"]
        [[stage]]
        use = "data"
        dataset = "bundled:lcm"
        give = "traces"
        [[stage]]
        use = "sft"
        lr = 1e-4
        epochs = 3
        batch = 8
        warmup = 0.1
        weight_decay = 0.01
        max_norm = 0.5
        rows = 512
    """
    assert flags == recipe.loads(text, stages.configs())
    assert recipe.loads(flags.to_toml(), stages.configs()) == flags


@pytest.mark.parametrize("args", [["--learning_rate", "1e-4"], ["--learning-rate", "1e-4"], ["--learning-rate=1e-4"]])
def test_both_spellings(args: list[str]) -> None:
    assert stage(made("sft", *args), "sft").lr == 1e-4


@pytest.mark.parametrize("steps", [1, 3, 7, 100])
def test_max_steps_of_sft(steps: int) -> None:
    from shoestring.stages import data
    from shoestring.stages.sft import steps_of

    r = made("sft", "--max_steps", str(steps), "--per_device_train_batch_size", "4")
    assert steps_of(stage(r, "sft"), len(data.traces(stage(r, "data")))) == steps


def test_grpo_counts_completions() -> None:
    from shoestring.stages import data

    r = made("grpo", "--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "2", "--num_generations", "4")
    assert (stage(r, "grpo").prompts, stage(r, "grpo").group) == (8, 4) and stage(r, "data").give == "pool"
    rows = len(data.read(stage(r, "data")))
    r = made("grpo", "--num_train_epochs", "2")
    assert stage(r, "grpo").steps == round(2 * rows / stage(r, "grpo").prompts)
    assert stage(made("grpo", "--max_steps", "9", "--num_train_epochs", "2"), "grpo").steps == 9, "steps win, as in TRL"
    with pytest.raises(UserError, match="= 10 completions a step, which must be a multiple of --num_generations 8"):
        made("grpo", "--per_device_train_batch_size", "10")


def test_rewards_by_name_and_weight() -> None:
    flags = ("--reward_funcs", "grader", "mine.py:brief")
    assert stage(made("grpo", *flags), "grpo").rewards == {"grader": 1.0, "mine.py:brief": 1.0}
    r = made("grpo", *flags, "--reward_weights", "1", "0.2")
    assert stage(r, "grpo").rewards == {"grader": 1.0, "mine.py:brief": 0.2}
    again = recipe.loads(r.to_toml(), stages.configs())
    assert stage(again, "grpo").rewards == stage(r, "grpo").rewards
    for more, said in ((("1",), "1 weights for 2"), (("1", "x"), "must be numbers")):
        with pytest.raises(UserError, match=said):
            made("grpo", *flags, "--reward_weights", *more)
    with pytest.raises(UserError, match="belongs to --reward_funcs"):
        made("grpo", "--reward_weights", "1")


def test_distill_and_evaluate() -> None:
    r = made("distill", "--num_generations", "3", "--max_completion_length", "20", "--temperature", "0.7")
    assert stage(r, "data").give == "problems"
    assert (stage(r, "distill").samples, stage(r, "distill").max_new, stage(r, "distill").temperature) == (3, 20, 0.7)
    assert stage(r, "distill").teacher is None
    flags = ["--teacher_url", "https://h/v1", "--teacher_model", "m", "--teacher_key_env", "KEY", "--teacher_price", "litellm/m"]
    r = made("distill", *flags, "--keep", "2", "--prefer", "diverse", "--rationalise", "--self_filter", "--concurrency", "4")
    d = stage(r, "distill")
    assert d.teacher == {"url": "https://h/v1", "model": "m", "key_env": "KEY", "price": "litellm/m"}
    assert (d.keep, d.prefer, d.rationalise, d.self_filter, d.concurrency) == (2, "diverse", True, True, 4)
    assert recipe.loads(r.to_toml(), stages.configs()) == r
    assert stage(made("distill", "--recorded", "r.jsonl.gz"), "distill").teacher == {"recorded": "r.jsonl.gz"}
    assert stage(made("distill", "--teacher_model", "/a/folder"), "distill").teacher == {"model": "/a/folder"}
    with pytest.raises(UserError, match="--teacher_url: .*teacher lacks model"):
        made("distill", "--teacher_url", "https://h/v1")
    r = made("evaluate", "--max_completion_length", "20")
    assert [t.use for t in r.stages] == ["evaluate"] and stage(r, "evaluate").sources == ["bundled:lcm"]
    r = made("sft", "--evaluate", "bundled:lcm", "--evaluate", "bundled:gcd")
    assert stage(r, "score").sources == ["bundled:lcm", "bundled:gcd"]


def test_the_name_is_the_folder_s() -> None:
    assert made("sft", out="runs/my first (run)!").name == "my-first-run"
    assert made("sft", out="/").name == "sft"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--learning_rate", "0"], "--learning_rate: .*lr = 0.0 must be above zero"),
        (["--budget", "0.05"], "--budget: .*no currency"),
        (["--seed", "-1"], "--seed: seed must be a whole number"),
        (["--max_steps", "0"], "--max_steps 0: must be a whole number from 1"),
        (["--dataset_name", "bundled:lcmm", "--max_steps", "3"], "did you mean 'lcm'"),
        (["--set", "sft.learning_rate=3"], 'unknown key "learning_rate"'),
    ],
)
def test_complaints_name_the_flag(args: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as e:
        made("sft", *args)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["sft", "--learning_rat", "1"], "shoestring sft: unknown option --learning_rat; did you mean '--learning_rate'?"),
        (["sft", "--learning-rat=1"], "unknown option --learning-rat; did you mean '--learning-rate'?"),
        (["sft", "--learning_rate", "fast"], "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        (["sft", "extra"], "unexpected argument 'extra'"),
        (["evaluate", "--learning_rate", "1"], "unknown option --learning_rate"),
        (["sftt"], "unknown command 'sftt'; did you mean 'sft'?"),
        (["data", "validate"], "required: FILE"),
    ],
)
def test_wrong_usage_is_one_line(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(args)
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.count("\n") == 1


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft", "--dataset_name", "x"]) == 2
    assert "--model_name_or_path is missing" in capsys.readouterr().err
    assert cli.main(["grpo", "--model_name_or_path", "x"]) == 2
    assert "--dataset_name is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("usd", "said"), [(0.0042, "0.01"), (0.0123, "0.02"), (0.1, "0.1"), (0.101, "0.11"), (1.0, "1.0"), (101, "110"), (4200, "4200")]
)
def test_the_budget_that_is_proposed_is_enough(usd: float, said: str) -> None:
    assert float(train._round_up(usd)) == float(said) >= usd


def test_resume_goes_on_only_from_its_own_newest(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for step in (1, 2):
        folder = out / "checkpoints" / "sft" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        import os

        os.utime(folder, (step, step))
    newest = out / "checkpoints" / "sft" / "step-2"
    assert not train._resumes(None, out) and not train._resumes("False", out)
    for said in ("true", "True", str(out), str(newest)):
        assert train._resumes(said, out)
    with pytest.raises(UserError, match="goes on from its newest checkpoint.*step-2"):
        train._resumes(str(newest.with_name("step-1")), out)


def test_report_to_in_a_recipe() -> None:
    text = 'name = "x"\nbudget = "1 USD"\nbase = "b"\n{}\n[[stage]]\nuse = "sft"\n'

    def load(line: str) -> recipe.Recipe:
        return recipe.loads(text.format(line), stages.configs())

    assert load("").report_to == () == load('report_to = "none"').report_to
    assert load('report_to = "a, b"').report_to == ("a", "b") == load('report_to = ["a", "b", "a"]').report_to
    assert load('report_to = ["a"]').hash == load("").hash, "it decides no result"
    with pytest.raises(UserError, match="recipe.toml:4: report_to must be a list of names"):
        load("report_to = 3")


def test_a_resumed_run_keeps_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(made("sft", "--learning_rate", "1e-4").to_toml())

    def again(*args: str) -> recipe.Recipe:
        return train._again(parse(cli.parser(), ["sft", "--resume_from_checkpoint", "--output_dir", str(tmp_path), *args]), tmp_path)

    assert again().hash == again("--budget", "2 USD", "--report_to", "wandb").hash
    assert (str(again("--budget", "2 USD").budget), again("--report_to", "wandb").report_to) == ("2", ("wandb",))
    for flag in (["--learning_rate", "1"], ["--seed", "0"], ["--evaluate", "bundled:lcm"], ["--dry-run"]):
        with pytest.raises(UserError, match=f"{flag[0]} cannot change a run that is resumed"):
            again(*flag)


def test_adapters_and_other_names() -> None:
    c = stage(made("sft", "--use_peft"), "sft")
    assert (c.lora, c.lora_alpha, c.targets()[0], c.quantise, c.rslora) == (16, 32.0, "q_proj", "none", False)
    flags = ["--use_peft", "true", "--lora_r", "8", "--lora_alpha", "4", "--load_in_4bit", "--use_rslora", "--optim", "adamw_8bit"]
    flags += ["--lr_scheduler_type", "warmup_stable_decay", "--gradient_checkpointing", "--lora_target_modules", "q_proj", "v_proj"]
    for command in ("sft", "grpo"):
        r = made(command, *flags)
        c = stage(r, command)
        assert (c.lora, c.lora_alpha, c.targets(), c.quantise, c.rslora) == (8, 4.0, ("q_proj", "v_proj"), "nf4", True)
        assert (c.optimiser, c.schedule, c.recompute) == ("adamw8bit", "wsd", "full")
        assert recipe.loads(r.to_toml(), stages.configs()) == r
    c = stage(made("sft", "--gradient_checkpointing", "false", "--use_peft", "no", "--optim", "muon"), "sft")
    assert (c.lora, c.recompute, c.optimiser) == (0, "none", "muon")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--lora_r", "8"], "--lora_r belongs to adapters: add --use_peft"),
        (["--load_in_4bit"], "--load_in_4bit belongs to adapters: add --use_peft"),
        (["--use_peft", "--lora_r", "0"], "--lora_r 0: must be a whole number from 1"),
        (["--use_peft", "--lora_target_modules", "q_prj"], "--lora_target_modules: .*no projection 'q_prj'"),
        (["--use_peft", "--optim", "muon"], "--optim: .*whole matrices"),
        (["--optim", "adamw_8bits"], "--optim adamw_8bits: unknown; did you mean 'adamw_8bit'"),
        (["--lr_scheduler_type", "cosin"], "did you mean 'cosine'"),
    ],
)
def test_complaints_about_adapters_name_the_flag(args: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        made("sft", *args)
