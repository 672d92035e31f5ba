"""Who is asked in a distill stage: the `teacher` table of a recipe, checked, opened, and what the plan takes it to use."""

from __future__ import annotations

import difflib
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.estimate.rates import added
from shoestring.records import Quantity, Usage, UserError
from shoestring.stages import forecasts
from shoestring.stages.context import Context, Facts

if TYPE_CHECKING:
    from shoestring.generate.teacher import Spent, Teacher
    from shoestring.models.tokenizer import Tokenizer
    from shoestring.stages._distill_ask import Till

KEYS = {
    "url": ("url", "model", "key_env", "price", "retries", "silence_seconds"),
    "recorded": ("recorded", "model"),
    "model": ("model",),
}
LOCAL = {"localhost", "127.0.0.1", "::1"}
MACHINE = "machine"  # a price: the server's tokens are paid by this machine's seconds
# Of the plan only. A reasoning model's answer takes half of what it may write, within a factor of two (s1K's traces: a mean of
# about a third of the longest); one stream writes 50 tokens a second (public dashboards of hosted models: 20 to 150).
SHARE, STREAM = (0.2, 0.5, 1.0), (20.0, 50.0, 150.0)
AMOUNTS = (SHARE[0] / SHARE[1], SHARE[2] / SHARE[1])  # the interval of the tokens, over their middle


@dataclass(frozen=True)
class TeacherTable:
    """kind: "url", "model" (on our engine) or "recorded". price: a catalogue's name and model, or "machine"."""

    kind: str
    model: str
    url: str = ""
    key_env: str = ""
    price: str = ""
    recorded: str = ""
    retries: int = 4
    silence_seconds: float = 120.0

    @property
    def sku(self) -> str:
        """Of its tokens, without /in, /out or /cached; "" where they are not paid by the token."""
        return f"teacher:{self.price}" if self.kind == "url" and self.price != MACHINE else ""


def parse(table: Mapping[str, Any]) -> TeacherTable:
    """ValueError in one line that names `teacher`."""
    kinds = [k for k in ("url", "recorded", "model") if k in table]
    if not kinds or {"url", "recorded"} <= set(table):
        raise ValueError('teacher needs one of url, recorded and model: { url = "https://…/v1", model = "…", price = "…" }')
    kind = kinds[0]
    for key, value in table.items():
        if key not in KEYS[kind]:
            near = difflib.get_close_matches(key, KEYS[kind], n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else f"with {kind} there are {', '.join(KEYS[kind])}"
            raise ValueError(f'teacher: unknown key "{key}"; {hint}')
        number = {"retries": int, "silence_seconds": (int, float)}.get(key, str)
        if isinstance(value, bool) or not isinstance(value, number) or value == "":
            raise ValueError(f"teacher.{key} cannot be {value!r}")
    given: dict[str, Any] = {"model": ""} | dict(table)
    made = TeacherTable(kind, **given)
    if made.retries < 0 or made.silence_seconds <= 0:
        raise ValueError("teacher.retries must be at least 0, teacher.silence_seconds above 0")
    if kind == "url":
        _check_server(made)
    return made


def _check_server(table: TeacherTable) -> None:
    if not table.model:
        raise ValueError(f'teacher lacks model: one of GET {table.url}/models')
    try:
        host = urllib.parse.urlsplit(table.url).hostname
    except ValueError:
        host = None
    if not table.price:
        raise ValueError(
            'teacher lacks price: name a catalogue and a model, as in price = "litellm/deepseek-reasoner" '
            "(`shoestring prices` lists them; your own book may give one)"
        )
    if table.price == MACHINE and host not in LOCAL:
        raise ValueError('teacher.price = "machine" is for a server on this machine, whose seconds are paid; name a catalogue')
    if table.price != MACHINE and "/" not in table.price:
        raise ValueError(f'teacher.price {table.price!r} must be "catalogue/model"')


def check(table: TeacherTable, count: Callable[[str], int] = len) -> None:
    """UserError for a teacher that could not be asked: a key that is not set, a file that is not there. Asks nobody."""
    if table.kind == "url":
        from shoestring.generate import endpoint

        endpoint.client_library()
        _server(table, 1).key()
    elif table.kind == "recorded":
        from shoestring.generate.recorded import RecordedTeacher

        RecordedTeacher(Path(table.recorded).expanduser(), table.model, count)
    else:
        model_path(table.model)


def model_path(model: str) -> Path:
    from shoestring.estimate.locate import locate

    try:
        return locate(model)
    except UserError as e:
        raise UserError(f"teacher: {e}") from None


def _server(table: TeacherTable, concurrency: int) -> Any:
    from shoestring.generate.endpoint import Server

    return Server(
        table.url, table.model, table.key_env, concurrency, table.retries, chunk_seconds=float(table.silence_seconds)
    )  # fmt: skip


def open_teacher(
    table: TeacherTable | None, concurrency: int, context: Context, tokenizer: Tokenizer, spent: Callable[[Spent], None]
) -> Teacher:
    """None: the run's own model, with its newest weights."""
    from shoestring.generate.teacher import LiveTeacher, LocalTeacher

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    if table is not None and table.kind == "url":
        return LiveTeacher(_server(table, concurrency), count, spent)
    if table is not None and table.kind == "recorded":
        from shoestring.generate.recorded import RecordedTeacher

        return RecordedTeacher(Path(table.recorded).expanduser(), table.model, count, spent)
    from shoestring.generate.engine import Engine
    from shoestring.stages.workbench import open_model

    if table is None:
        model, _ = open_model(context)
        return LocalTeacher(Engine(model, 96), tokenizer, context.model_name)
    import torch

    from shoestring.models import device, folder
    from shoestring.models.tokenizer import Tokenizer as Reader

    path = model_path(table.model)
    if path.is_file():
        from shoestring.models.gguf import cached_folder

        path = cached_folder(path)
    return LocalTeacher(Engine(folder.load(path, torch.bfloat16, device.choose()), 96), Reader(path), table.model)


@dataclass(frozen=True)
class Asked:
    """What the plan takes asking to use. tokens: read and written by the teacher."""

    seconds: Quantity
    usages: tuple[Usage, ...] = ()
    tokens: float = 0.0
    flops: float = 0.0
    note: str = ""


def forecast(table: TeacherTable, facts: Facts, attempts: float, max_new: int, concurrency: int) -> Asked:
    """Of `attempts` answers. Literature: how much a teacher writes and how fast is not known before it is asked."""
    prompt = facts.sizes.prompt
    new = tuple(s * max_new for s in SHARE)
    tokens = attempts * (prompt + new[1])
    if table.kind == "recorded":
        read = attempts / 5000.0 + 1.0
        return Asked(Quantity(0.3 * read, read, 4 * read, "literature"), (), tokens, 0.0, "recorded answers cost nothing")
    if table.kind == "model":
        from shoestring.estimate.headers import model_shape

        shape = model_shape(str(model_path(table.model)))
        scale = shape.active_parameters() / max(1, facts.shape.active_parameters())
        own = replace(facts, sizes=replace(facts.sizes, answer=new[1]))
        seconds, flops, _, _ = forecasts.answering(own, attempts, new[1], attempts * prompt, max_new)
        mid = scale * seconds.mid
        around = Quantity(0.4 * mid, mid, 2.5 * mid, "literature")
        note = f"the teacher has {scale:.3g} times the base's weights"
        return Asked(added(around, own.rates().load()), (), tokens, scale * flops, note)
    at_once = max(1.0, min(concurrency, attempts))
    low, mid, high = (attempts * n / rate / at_once for n, rate in zip(new, reversed(STREAM), strict=True))
    usages = ()
    if table.sku:
        usages = (
            Usage(f"{table.sku}/in", attempts * prompt, "token", facts.stage),
            Usage(f"{table.sku}/out", attempts * new[1], "token", facts.stage),
        )
    note = f"{new[1]:.0f} tokens an answer of the teacher are an expectation (half of max_new)"
    return Asked(Quantity(low, mid, high, "literature"), usages, tokens, 0.0, note)


def same_tokens(teacher: Teacher, tokenizer: Tokenizer) -> bool:
    """Whether the teacher's ids are the student's."""
    own = getattr(getattr(teacher, "tokenizer", None), "inner", None)
    return own is not None and own.get_vocab() == tokenizer.inner.get_vocab()


def told(table: TeacherTable | None, teacher: Teacher, till: Till, attempts: Mapping[str, Any]) -> dict[str, Any]:
    """What the artifact says of the teacher: its tokens by kind, how many were estimated, and who pays for them."""
    tokens = {k: sum(s.counts.get(k, 0) for s in till.heard) for k in ("in", "cached", "out", "thinking")}
    paid = till.sku.removeprefix("teacher:") or "this machine's seconds"
    if table is not None and table.kind == "recorded":
        paid = "0 (recorded)"
    out: dict[str, Any] = {
        "teacher": teacher.model, "teacher_kind": table.kind if table else "self", "teacher_price": paid,
        "teacher_tokens": tokens, "teacher_attempts": len(till.heard),
        "estimated_attempts": sum(s.basis == "estimated" for s in till.heard),
        "failed_attempts": sum(bool(s.error) for s in till.heard),
    }  # fmt: skip
    if missing := sum(r.get("unanswered", False) for rows in attempts.values() for r in rows):
        out["unrecorded"] = missing
    return out
