"""Tool calls as a tokenizer's own chat template writes them: JSON between <tool_call> tags (Hermes, Qwen)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoestring.stages._grpo_tools import _ABOUT, OUTPUT_TOKENS, Call

if TYPE_CHECKING:
    from shoestring.models.tokenizer import Tokenizer

_MARK = "\u2042\u2042\u2042"  # stands for what the model wrote
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>\s*\Z", re.DOTALL)
_ARGUMENT = {"calculator": "expression", "python": "code"}


def writes_tools(tokenizer: Any) -> bool:
    template = getattr(getattr(tokenizer, "inner", None), "chat_template", None)
    return isinstance(template, str) and "tools" in template and "<tool_call>" in template and "tool_response" in template


def schemas(tools: tuple[str, ...]) -> list[dict[str, Any]]:
    """What the template is told of the tools."""
    return [
        {
            "type": "function",
            "function": {
                "name": t, "description": _ABOUT[t],
                "parameters": {
                    "type": "object", "properties": {_ARGUMENT[t]: {"type": "string"}}, "required": [_ARGUMENT[t]],
                },
            },
        }
        for t in tools
    ]  # fmt: skip


@dataclass(frozen=True)
class Template:
    """A call ends the turn; its output is a message of the role "tool"."""

    tools: tuple[str, ...]
    stops: tuple[str, ...] = ()

    def prompt(self, tokenizer: Tokenizer, messages: list[dict[str, str]]) -> tuple[int, ...]:
        out = tokenizer.inner.apply_chat_template(
            messages, tools=schemas(self.tools), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return tuple(out["input_ids"])

    def call(self, turn: str) -> Call | None:
        found = _CALL.search(turn)
        try:
            made = json.loads(found[1]) if found else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(made, dict) or made.get("name") not in self.tools or not isinstance(made.get("arguments"), dict):
            return None
        text = made["arguments"].get(_ARGUMENT[made["name"]])
        return Call(made["name"], text) if isinstance(text, str) else None

    def answer(self, tokenizer: Tokenizer, messages: list[dict[str, str]], call: Call, output: str) -> tuple[int, ...]:
        """What the template writes between the model's turn, whose end it has sampled, and its next one."""
        ids = tokenizer.encode(output)
        if len(ids) > OUTPUT_TOKENS:
            output = tokenizer.decode(ids[:OUTPUT_TOKENS])
        said = [{"role": "assistant", "content": _MARK}, {"role": "tool", "name": call.tool, "content": output}]
        text = str(
            tokenizer.inner.apply_chat_template(
                [*messages, *said], tools=schemas(self.tools), add_generation_prompt=True, tokenize=False
            )
        )
        tail = text[text.rindex(_MARK) + len(_MARK) :]
        return tokenizer.encode(tail.removeprefix(str(tokenizer.inner.decode([tokenizer.end]))))
