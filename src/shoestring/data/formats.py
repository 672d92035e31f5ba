"""Rows of the usual training formats as conversations. One complaint a row: its class, what is wrong, what to do.

| format | columns | becomes |
|---|---|---|
| messages | messages: [{role, content}] | the conversation as it stands, written by the model's chat template |
| prompt_completion | prompt, completion: text | plain text without a chat template, as in TRL's standard format |
| prompt_completion | prompt, completion: [{role, content}] | a conversation, as in TRL's conversational format |
| alpaca | instruction, input, output | one turn; the input follows the instruction after an empty line |
| sharegpt | conversations: [{from, value}] | a conversation; human and gpt are user and assistant |
| problems | prompt, answer | a question whose answer can be checked; see data.sources |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMATS = ("messages", "prompt_completion", "alpaca", "sharegpt", "problems")
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "problems": ("prompt", "answer"),
}
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
            "bot": "assistant", "chatgpt": "assistant", "system": "system", "tool": "tool"}  # fmt: skip
Message = dict[str, str]


class BadRow(ValueError):
    """A row that cannot be learnt from: `kind` is its class, the message what is wrong and what to do."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Chat:
    """A conversation that ends in an assistant's turn. plain: two turns of bare text, to be joined without a template."""

    messages: tuple[Message, ...]
    plain: bool = False


def detect(row: Mapping[str, Any]) -> str:
    """The format whose columns the row has. Raises BadRow where it has none's."""
    for name, columns in COLUMNS.items():
        if all(c in row for c in columns):
            return name
    if "chosen" in row and "rejected" in row:
        said = "chosen and rejected are preferences, which no stage learns from: keep `chosen` under the name `messages`"
    elif "text" in row:
        said = "a text column says not what is asked and what is answered: split it into prompt and completion"
    else:
        said = "name the columns " + " or ".join("+".join(c) for c in COLUMNS.values())
    raise BadRow("missing-column", f"no known format in the columns {', '.join(map(str, row)) or '(none)'}; {said}")


def read(row: Mapping[str, Any], format: str) -> Chat:
    """The row as a conversation. `format` is one of FORMATS but problems. Raises BadRow."""
    for column in COLUMNS[format]:
        if column not in row:
            near = ", ".join(map(str, row)) or "(none)"
            raise BadRow("missing-column", f"no column {column!r} (columns: {near}); rename the right one")
    if format == "messages":
        return _turns(row["messages"], "messages", "role", "content", {r: r for r in ROLES})
    if format == "sharegpt":
        return _turns(row["conversations"], "conversations", "from", "value", SHAREGPT)
    if format == "alpaca":
        asked, more = _text(row["instruction"], "instruction"), row.get("input")
        if more is not None and not isinstance(more, str):
            raise BadRow("wrong-type", f"input must be text, not {type(more).__name__}; leave it empty where there is none")
        question = f"{asked}\n\n{more}" if more and more.strip() else asked
        return Chat((_message("user", question), _message("assistant", _text(row["output"], "output"))))
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _turns([*prompt, *completion], "prompt and completion", "role", "content", {r: r for r in ROLES})
    if isinstance(prompt, list) or isinstance(completion, list):
        raise BadRow("wrong-type", "prompt and completion must both be text, or both lists of messages")
    return Chat((_message("user", _text(prompt, "prompt")), _message("assistant", _text(completion, "completion"))), True)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong-type", f"{what} must be text, not {type(value).__name__}; write it as a string")
    if not value.strip():
        raise BadRow("empty-content", f"{what} is empty; fill it or remove the row")
    return value


def _turns(value: Any, column: str, role_key: str, text_key: str, roles: Mapping[str, str]) -> Chat:
    """Checked turns: system only first, then user and assistant in turns (tools after an assistant), assistant last."""
    if not isinstance(value, list):
        raise BadRow("wrong-type", f"{column} must be a list of {{{role_key}, {text_key}}}, not {type(value).__name__}")
    if not value:
        raise BadRow("empty-content", f"{column} is an empty list; remove the row")
    out: list[Message] = []
    for i, turn in enumerate(value):
        at = f"{column}[{i}]"
        if not isinstance(turn, Mapping):
            raise BadRow("wrong-type", f"{at} must be an object with {role_key} and {text_key}, not {type(turn).__name__}")
        for key in (role_key, text_key):
            if key not in turn:
                raise BadRow("missing-column", f"{at} lacks {key!r} (it has {', '.join(map(str, turn)) or 'nothing'})")
        said = turn[role_key]
        if not isinstance(said, str) or said not in roles:
            raise BadRow("unknown-role", f"{at} has the {role_key} {said!r}; known: {', '.join(roles)}")
        content = _text(turn[text_key], f"{at}.{text_key}")
        _follows(out[-1]["role"] if out else "", roles[said], at)
        out.append(_message(roles[said], content))
    if out[-1]["role"] != "assistant":
        last = out[-1]["role"]
        raise BadRow("no-answer", f"{column} ends with {last}: there is nothing to learn; end with an assistant's turn")
    return Chat(tuple(out))


AFTER = {"": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"),
         "tool": ("assistant", "tool")}  # fmt: skip


def _follows(last: str, role: str, at: str) -> None:
    if role not in AFTER[last]:
        after = f"after {last}" if last else "first"
        raise BadRow("roles", f"{at}: {role} stands {after}, where {' or '.join(AFTER[last])} must; merge or reorder the turns")
