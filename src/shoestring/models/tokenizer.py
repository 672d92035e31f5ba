"""The tokenizer and chat template of a model folder: transformers' own, behind the few calls that the stages need."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from shoestring.records import UserError


class Tokenizer:
    """Text ↔ ids of one model folder. Ids are derived from the files, never typed.

    end: what the template writes after an answer. ends: all that a model may end its answer with: that, the
    end-of-sequence token, and those of generation_config.json.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        try:
            self.inner = AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError) as e:
            raise UserError(f"{folder}: no usable tokenizer ({str(e).splitlines()[0]})") from None
        if self.inner.chat_template is None:
            raise UserError(f"{folder}: the tokenizer has no chat template; give an instruct model")
        if self.inner.eos_token_id is None:
            raise UserError(f"{folder}: the tokenizer names no end-of-sequence token")
        self.end = self._turn_end()
        self.ends = frozenset({self.end, int(self.inner.eos_token_id), *_generation_ends(folder)})

    def _turn_end(self) -> int:
        """The special token that the template writes after an answer; the end-of-sequence token where it writes none.

        They are one in most families. Gemma's turns end in <end_of_turn> and its sequences in <eos>.
        """
        from jinja2 import TemplateError

        word = "answer"
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": word}]
        try:
            text = str(self.inner.apply_chat_template(messages, tokenize=False))
        except TemplateError:  # a template for one kind of talk
            text = ""
        tail = text[text.rfind(word) + len(word) :] if word in text else ""
        special = {i for i, t in self.inner.added_tokens_decoder.items() if t.special}
        return next((i for i in self.encode(tail) if i in special), int(self.inner.eos_token_id))

    def chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Ids of the messages plus the opening of the assistant's turn, exactly as the template writes them."""
        out = self.inner.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True, return_dict=True)
        return tuple(out["input_ids"])

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.inner.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=True)


def _generation_ends(folder: Path) -> list[int]:
    """The end-of-sequence tokens by which transformers' `generate` would stop; one id or several, if there is the file."""
    ids = None
    with contextlib.suppress(OSError, ValueError):
        said = json.loads((folder / "generation_config.json").read_text("utf-8"))
        ids = said.get("eos_token_id") if isinstance(said, dict) else None
    return [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int and i >= 0]
