"""The command line by itself: commands, exit codes, and how quickly it starts without torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import start_time

from shoestring import __version__, cli, commands
from shoestring.commands.recipes import recipe_of
from shoestring.records import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_has_a_parser_and_a_function() -> None:
    (sub,) = [a for a in cli.parser()._actions if a.dest == "command"]
    assert sub.choices is not None and set(sub.choices) == set(commands.table())


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([c, "--help"] for c in commands.table())])
def test_help_ends_well(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(args)
    assert e.value.code == 0
    assert (__version__ if args == ["--version"] else "usage") in capsys.readouterr().out


@pytest.mark.parametrize("args", [[], ["runn"], ["run"], ["bill", "x", "--jsn"]])
def test_wrong_usage_is_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(args)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.startswith("shoestring") and "--help" in err and err.count("\n") == 1


def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> int:
        raise UserError("what is wrong")

    monkeypatch.setattr("shoestring.commands.prices.run", fail)
    assert cli.main(["prices"]) == 2
    assert capsys.readouterr().err == "shoestring: what is wrong\n"


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("shoestring.commands.prices.run", stop)
    assert cli.main(["prices"]) == 130
    assert capsys.readouterr().err == "shoestring: stopped\n"


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(args: object) -> int:
        raise KeyError("x")

    monkeypatch.setattr("shoestring.commands.prices.run", bug)
    with pytest.raises(KeyError):
        cli.main(["prices"])


def test_prices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prices", "--machine", "THIS:"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all("USD/hour" in line and line.startswith("this:") for line in lines)


def test_seed_name_and_rate_are_checked_like_the_recipe(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "quickstart.toml"
    args = cli.parser().parse_args(["plan", str(recipe), "--seed", "5", "--name", "mine", "--rate", "0.2 USD/hour"])
    made = recipe_of(args)
    assert (made.seed, made.name, str(made.rate)) == (5, "mine", "0.2")
    assert made.hash != recipe_of(cli.parser().parse_args(["plan", str(recipe)])).hash
    for bad in (["--seed", "-1"], ["--seed", str(2**63)], ["--name", 'a"b'], ["--rate", '1"'], ["--set", "seed=-1"]):
        with pytest.raises(UserError):
            recipe_of(cli.parser().parse_args(["plan", str(recipe), *bad]))


@pytest.mark.parametrize("args", [["--help"], ["plan", "recipes/quickstart.toml"], ["prices", "--machine", "this"]])
def test_starts_quickly_without_torch(args: list[str], tmp_path: Path) -> None:
    """0.4 s of the processor's time at most, the best of three; importing torch alone takes more than a second."""
    assert start_time.seconds(tmp_path, *args) <= start_time.LIMIT
