"""Whether what an evaluation asks fits the model's window: the longest prompt with all that may be written after it.

Known before anything is spent where the model is on this machine, else when the stage begins. A server knows its own window
and says so; where thinking is forced there, it is in the tokens of the base, which is then the model that is served. No torch
at module level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.records import UserError
from shoestring.stages import _evaluate_asks as asks
from shoestring.stages.prompts import plain

if TYPE_CHECKING:
    from shoestring.data.benchmarks import Loaded
    from shoestring.stages.evaluate import Config

LONGEST = 8  # so many prompts, the longest by characters, are counted in tokens


def check(config: Config, base: str, found: Sequence[Loaded]) -> None:
    """UserError for the base, or the model that it is compared with; one that is yet to be downloaded is left for later."""
    from shoestring.estimate.locate import locate
    from shoestring.stages.teachers import folder_of

    if not known(config):
        return
    for name in filter(None, (base, other(config))):
        try:
            locate(name)
        except UserError:
            continue
        refuse(config, folder_of(name), name, found)


def known(config: Config) -> bool:
    """Whether the base's window is that of the model which is asked."""
    return not config.endpoint or bool(config.thinking)


def other(config: Config) -> str:
    """The model that is asked too; "" where there is none."""
    return config.compare if asks.compared_run(config.compare) is None else ""


def refuse(config: Config, folder: Path, name: str, found: Sequence[Loaded]) -> None:
    """UserError that says which benchmark, and which keys, do not fit the model `name` in `folder`."""
    from shoestring.models.tokenizer import Tokenizer

    tokenizer, window = Tokenizer(folder), of(folder)
    most = max(asks.settings(config), key=lambda s: s.max_new)
    new, lower = f"max_new = {most.max_new}", "max_new"
    if config.thinking:
        new, lower = f"thinking = {max(config.thinking)} and answer = {config.answer}", "thinking or answer"
    for bench in found:
        prompt = longest(tokenizer, [plain(p) for p in bench.problems])
        if prompt + most.max_new > window:
            raise UserError(
                f"benchmark {bench.benchmark.name}: its longest prompt of {prompt} tokens, {new} are together "
                f"{prompt + most.max_new} tokens, more than the window of {window} of {name}: lower {lower}"
            )


def refuse_sources(
    chats: Sequence[list[dict[str, str]]], tokenizer: Any, folder: Path, new: int, stage: str, keys: str
) -> None:
    """UserError where the longest of these chats with `new` tokens after it does not fit. keys: what could be lowered."""
    prompt, window = longest(tokenizer, chats), of(folder)
    if chats and prompt + new > window:
        raise UserError(
            f"stage {stage!r}: a prompt of {prompt} tokens and max_new = {new} are more than the model's window of {window}: "
            f"lower {keys}"
        )


def longest(tokenizer: Any, chats: Iterable[list[dict[str, str]]]) -> int:
    """Tokens of the longest of these chats, with the opening of the answer; 0 for none."""
    some = sorted(chats, key=lambda messages: sum(len(m["content"]) for m in messages))[-LONGEST:]
    return max((len(tokenizer.chat(m)) for m in some), default=0)


def of(folder: Path) -> int:
    """The window of a model folder, in tokens."""
    from shoestring.models import families
    from shoestring.models.folder import read_config

    where = str(folder / "config.json")
    hf = read_config(folder)
    return families.find(hf, where).config(hf, where).max_positions
