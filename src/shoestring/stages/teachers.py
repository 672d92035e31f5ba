"""A local model as the teacher of another: where it is, how large, whether its tokens mean the same. Torch only inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shoestring.estimate.flops import ModelShape
from shoestring.estimate.headers import model_shape
from shoestring.estimate.locate import locate
from shoestring.estimate.memory import CHUNK, PANEL, activation_bytes
from shoestring.records import Example, StepReport, UserError
from shoestring.stages.context import Context, write_json

if TYPE_CHECKING:
    from shoestring.estimate.rates import Rates
    from shoestring.models.decoder import Decoder
    from shoestring.stages.trainer import Trainer
    from shoestring.train.distillation import Teaching


def place(teacher: str) -> Path:
    """The teacher's folder or .gguf on this machine. UserError that says "teacher" where there is none."""
    try:
        return locate(teacher)
    except UserError as e:
        raise UserError(_said(e)) from None


def _said(e: UserError) -> str:
    return "teacher" + str(e).removeprefix("base") if str(e).startswith("base ") else str(e)


def shape_of(teacher: str) -> ModelShape:
    """Its sizes by its headers, or by its name where nothing of it is here yet. UserError where neither tells."""
    try:
        return model_shape(teacher)
    except UserError as e:
        from shoestring.estimate.known_shapes import known_shape

        if Path(teacher).expanduser().exists() or (found := known_shape(teacher)) is None:
            raise UserError(_said(e)) from None
        return found


def folder_of(teacher: str) -> Path:
    """A model folder; a .gguf is converted once into the cache."""
    path = place(teacher)
    if path.is_file():
        from shoestring.models.gguf import cached_folder

        return cached_folder(path)
    return path


def check(teacher: str, base: str) -> None:
    """UserError before anything is spent: the teacher is not here, or its tokenizer is not the base's.

    A base that is yet to be downloaded is compared when the stage begins.
    """
    place(teacher)
    try:
        locate(base)
    except UserError:
        return
    refuse_another_tokenizer(folder_of(base), folder_of(teacher))


def refuse_another_tokenizer(student: Path, teacher: Path) -> None:
    """UserError that names both and what differs, where an id does not mean one string on both sides."""
    from shoestring.models import same_tokenizer

    if student.resolve() == teacher.resolve():
        return
    if differs := same_tokenizer.difference(student, teacher):
        raise UserError(
            f"teacher {teacher} and student {student} have different tokenizers, in their {differs}; logits can be compared "
            'within one tokenizer only: take a teacher of the student\'s family, or distil from its text (use = "distill")'
        )
    sizes = [shape_of(str(m)).vocab for m in (student, teacher)]
    last = same_tokenizer.largest_id(student)
    if last is not None and last >= min(sizes):
        raise UserError(
            f"teacher {teacher} ({sizes[1]:,} logits) and student {student} ({sizes[0]:,} logits): their tokenizer gives out "
            f"id {last:,}, which one of them cannot say; take another teacher"
        )


def open_teacher(folder: Path, longest: int) -> Decoder:
    """The decoder in bf16, frozen. UserError where its window is shorter than the longest row, in tokens."""
    import torch

    from shoestring.models import device
    from shoestring.models.folder import load

    model = load(folder, torch.bfloat16, device.choose())
    if longest > model.config.max_positions:
        raise UserError(
            f"teacher {folder}: its window is {model.config.max_positions} tokens and the longest row can have {longest}; "
            "leave longer rows out, lower max_new or take another teacher"
        )
    return model.requires_grad_(False)


def training_bytes(teacher: ModelShape, student: ModelShape, rows: int, cuda: bool) -> dict[str, int]:
    """What a teacher adds to a trainer: its weights in bf16, one layer's activations and the residual stream of a forward
    pass, and beside the student's chunk of fp32 logits its own, with a few rows of what they are compared by
    (train.distillation)."""
    chunk, block = (PANEL, 128) if cuda else (CHUNK, 4)
    return {
        "teacher weights": 2 * teacher.parameters(),
        "teacher activations": rows * (activation_bytes(teacher) + 4 * teacher.hidden),
        "teacher logits": 4 * (min(chunk, rows) + 8 * block) * min(teacher.vocab, student.vocab),
    }


def rates_of(rates: Rates, shape: ModelShape) -> Any:
    """The same machine's rates for another model."""
    return replace(rates, shape=shape)  # pyright: ignore[reportArgumentType]


class Closeness:
    """How far the student is from its teacher, on rows that stay the same; kept in a file, so that a resumed stage knows
    where it began. first: seconds that the first comparison is sure to be done in."""

    def __init__(self, context: Context, teaching: Teaching, first: float) -> None:
        self.context, self.teaching, self.path = context, teaching, context.folder / "closeness.json"
        self.pace = context.first(first)

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def found(self) -> dict[str, Any]:
        """What was measured: before and after, each {step, kl (nats a token), agreement, tokens}."""
        return {k: v for k, v in self._read().items() if k != "rows"}

    def look(
        self, when: Literal["before", "after"], trainer: Trainer, choose: Callable[[], list[Example]] | None = None
    ) -> Generator[Any, Any, bool]:
        """Measure unless that is done; False where the money is out. choose: the rows, asked for the first time alone."""
        from shoestring.data import packing

        kept, context = self._read(), self.context
        if when in kept:
            return True
        if (yield context.intent(trainer.step + 1, self.pace.upper(), "comparison with the teacher")) == "stop":
            return False
        began = context.clock()
        if "rows" in kept:
            rows = [Example(tuple(t), (0.0,) * n + (1.0,) * (len(t) - n), n) for t, n in kept["rows"]]
        else:
            assert choose is not None
            rows = choose()
        kl, agreement, tokens = self.teaching.closeness(trainer.model, packing.pack(rows, trainer.rows))
        kept["rows"] = [[list(e.tokens), e.prompt_length] for e in rows]
        kept[when] = {"step": trainer.step, "kl": kl, "agreement": agreement, "tokens": tokens}
        write_json(self.path, kept)
        seconds = context.clock() - began
        self.pace.add(seconds)
        said = f"KL from the teacher {kl:.4f} nats a token, first choices alike in {agreement:.1%} of {tokens} tokens"
        if when == "after":
            said += f" (before: {kept['before']['kl']:.4f}, {kept['before']['agreement']:.1%})"
        yield StepReport(
            f"{context.stage}.closeness", 1 + (when == "after"), 2, seconds, tokens, tokens,
            extra={"at_step": trainer.step, "kl": kl, "agreement": agreement, "notice": f"{context.stage}: {said}"},
        )  # fmt: skip
        return True
