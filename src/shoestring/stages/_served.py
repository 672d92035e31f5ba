"""A server that a stage asks beside its own work: one table of a recipe, checked, forecast, asked, and paid for by the token.

The table has a distill teacher's keys (`_distill_teacher.parse`) and may have some of its user's. How it is asked is how a
teacher is asked (`_distill_ask`): an `Intent` first, a `Usage` an attempt, a row on the disk a reply.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoestring.records import UserError
from shoestring.stages import _distill_teacher
from shoestring.stages._distill_teacher import TeacherTable
from shoestring.stages.context import Answer, Context, Event

if TYPE_CHECKING:
    from shoestring.generate.teacher import Question
    from shoestring.stages._distill_ask import Asking, Till


@dataclass(frozen=True)
class Served:
    """what: the recipe's key that names it, for complaints; max_new: tokens an answer, 0 where the table does not say;
    names: a list that only a label model has."""

    what: str
    table: TeacherTable
    max_new: int = 0
    names: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        return self.table.model


def parse(what: str, table: Mapping[str, Any], own: Sequence[str] = ("max_new",)) -> Served:
    """ValueError in one line that names `what`. own: keys beside a teacher's that are read here ("max_new", "names")."""
    rest = {k: v for k, v in table.items() if k not in own}
    if "url" not in rest:
        raise ValueError(f'{what} needs a server: {{ url = "https://…/v1", model = "…", price = "catalogue/model" }}')
    try:
        made = _distill_teacher.parse(rest)
    except ValueError as e:
        raise ValueError(str(e).replace("teacher", what, 1)) from None
    most, names = table.get("max_new", 0), table.get("names", [])
    if isinstance(most, bool) or not isinstance(most, int) or ("max_new" in table and most < 1):
        raise ValueError(f"{what}.max_new = {most!r} must be a whole number from 1")
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError(f"{what}.names = {names!r} must be a list of names")
    return Served(what, made, most, tuple(names))


def check(served: Served) -> None:
    """UserError, before anything is spent, for a server that could not be asked. Asks nobody."""
    try:
        _distill_teacher.check(served.table)
    except UserError as e:
        raise UserError(f"{served.what}: {e}") from None


def ask(
    served: Served, context: Context, questions: Sequence[Question], name: str, concurrency: int, done: int = 0, total: int = 0
) -> Generator[Event, Answer | None, tuple[Asking, Till]]:
    """The replies, and the attempts that they took. name: of the cache in the stage's folder; done, total: as in
    `_distill_ask.asked`. Tokens that the server does not report are counted by the base's tokenizer."""
    from shoestring.generate.teacher import Cache
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages import _distill_ask as asking

    sku = served.table.sku
    till = asking.Till(sku, context.stage, bool(sku and context.priced(f"{sku}/cached")))
    teacher = _distill_teacher.open_teacher(served.table, concurrency, context, Tokenizer(context.base), till.put)
    made = yield from asking.asked(teacher, questions, Cache(context.folder / f"{name}.jsonl"), till, context, done, total)
    return made, till


def told(served: Served, till: Till) -> dict[str, Any]:
    """What an artifact says of it: tokens by kind over all attempts of this process, and who pays."""
    return {
        "model": served.model, "attempts": len(till.heard),
        "price": till.sku.removeprefix("teacher:") or "this machine's seconds",
        "tokens": {k: sum(s.counts.get(k, 0) for s in till.heard) for k in ("in", "cached", "out", "thinking")},
        "estimated_attempts": sum(s.basis == "estimated" for s in till.heard),
        "failed_attempts": sum(bool(s.error) for s in till.heard),
    }  # fmt: skip
