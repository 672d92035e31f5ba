"""An Ollama Modelfile for a GGUF file: FROM, TEMPLATE, SYSTEM, stop parameters, licence.

Ollama's templates are Go's, the models' are Jinja's. No program translates one into the other in general; templates that
wrap each message between fixed texts (ChatML and its like) can be measured instead: what stands before and after a
message is found by rendering, and the result is believed only where it writes the same conversations as the original.
Source: Ollama's documentation, modelfile and template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from shoestring.models import gguf_vocab

ROLES = ("system", "user", "assistant")
MARK = "\x01{}\x02"


@dataclass(frozen=True)
class Wrapped:
    """A template of fixed texts: (before, after) of each role, the answer's opening, and the system message that it writes
    where a conversation brings none ("" for none). A role that the model does not take is not in `around`. start: what stands
    before all of it."""

    around: dict[str, tuple[str, str]]
    opening: str
    default_system: str
    start: str = ""

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """What Ollama writes."""
        if self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        text = self.start + "".join(self.around[m["role"]][0] + m["content"] + self.around[m["role"]][1] for m in messages)
        return text + self.opening


def wrapped(tokenizer: Any) -> tuple[Wrapped | None, str]:
    """(the template as fixed texts, "") or (None, why it is none). tokenizer: a `models.tokenizer.Tokenizer`.

    A beginning-of-sequence token that the template writes first is tried as a part of the messages (ChatML's opens each of
    them) and as a beginning of its own, which is left to Ollama where the file says that its loader sets it.
    """
    bos = tokenizer.inner.bos_token or ""
    why = ""
    for start in ("", bos) if bos else ("",):
        made, why = _wrapped(tokenizer, start)
        if made is not None:
            return (replace(made, start="") if start and gguf_vocab.adds_bos(tokenizer) else made), ""
    return None, why


def _wrapped(tokenizer: Any, start: str) -> tuple[Wrapped | None, str]:
    def render(*roles: str, contents: Sequence[str] = (), ask: bool = True) -> str:
        said = contents or [MARK.format(i) for i in range(len(roles))]
        messages = [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
        return tokenizer.inner.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False).removeprefix(start)

    try:
        made = _measure(render)
        if made is None:
            return None, "what it writes around a message is not one fixed text"
        for roles in (("user",), ("user", "assistant", "user"), ("system", "user"), ("system", "user", "assistant", "user")):
            if "system" in roles and "system" not in made.around:
                continue
            contents = [f"Message {i}:\nwith two lines, {{braces}} and \"quotes\"." for i in range(len(roles))]
            said = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
            if made.render(said) != render(*roles, contents=contents):
                return None, f"its rendering of {', '.join(roles)} is not made of fixed texts"
    except Exception as e:  # a template refuses in its own words (jinja2.TemplateError, ValueError)
        return None, f"it refuses a plain conversation ({type(e).__name__})"
    return replace(made, start=start), ""


def _measure(render: Any) -> Wrapped | None:
    first, second = MARK.format(0), MARK.format(1)
    talk = render("user", "assistant", "user")
    third = MARK.format(2)
    if not all(talk.count(m) == 1 for m in (first, second, third)):
        return None
    head, rest = talk.split(first)
    between, rest = rest.split(second)
    back, tail = rest.split(third)
    closed = render("user", "assistant", "user", ask=False)
    opening = talk.removeprefix(closed)
    after_user = tail.removesuffix(opening)
    before_answer = between.removeprefix(after_user)
    if not talk.startswith(closed) or not tail.endswith(opening) or not between.startswith(after_user):
        return None
    around: dict[str, tuple[str, str]] = {}
    default = ""
    try:
        system = render("system", "user")
    except Exception:  # a model without a system role says so in its template
        before_user = head
    else:
        before, _, rest = system.partition(first)
        inner, _, _ = rest.partition(second)
        before_user = _before_user(render, after_user, inner, head, back)
        after_system = inner.removesuffix(before_user)
        around["system"] = (before, after_system)
        extra = head.removesuffix(before_user)
        if not before_user or not head.endswith(before_user) or not inner.endswith(before_user):
            return None
        if extra:
            if not (extra.startswith(before) and extra.endswith(after_system) and len(extra) > len(before + after_system)):
                return None
            default = extra[len(before) : len(extra) - len(after_system)]
    after_answer = back.removesuffix(before_user)
    around |= {"user": (before_user, after_user), "assistant": (before_answer, after_answer)}
    return Wrapped(around, opening, default)


def _before_user(render: Any, after_user: str, inner: str, head: str, back: str) -> str:
    """What stands before a user's message: two of them in a row show it; where a template forbids that, the longest ending
    that a user's message has after a system message, after an answer and at the beginning."""
    try:
        two = render("user", "user")
        return two.partition(MARK.format(0))[2].partition(MARK.format(1))[0].removeprefix(after_user)
    except Exception:
        return next(inner[k:] for k in range(len(inner) + 1) if head.endswith(inner[k:]) and back.endswith(inner[k:]))


def go_template(w: Wrapped) -> str:
    """The same as a Go template over Ollama's .Messages."""
    branches = []
    for role in (r for r in ROLES if r in w.around):
        before, after = w.around[role]
        word = "if" if not branches else "else if"
        branches.append(f'{{{{- {word} eq .Role "{role}" }}}}{_text(before)}{{{{ .Content }}}}{_text(after)}')
    return _text(w.start) + "{{- range .Messages }}" + "".join(branches) + "{{- end }}{{- end }}" + _text(w.opening)


def _text(text: str) -> str:
    """Literal text of a Go template, whitespace kept: `{{-` beside it would eat line breaks, a quoted string does not."""
    if not text:
        return ""
    shown = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'{{{{ "{shown}" }}}}'


def modelfile(file_name: str, tokenizer: Any, licence: str) -> tuple[str, str]:
    """(the Modelfile's text, "" or why it has no TEMPLATE)."""
    made, why = wrapped(tokenizer)
    if made is not None and '"""' in made.default_system + "".join(sum(made.around.values(), ())):
        made, why = None, "it writes three quotes, which end a text in a Modelfile"
    lines = [f"# {file_name}, written by shoestring export", f"FROM ./{file_name}", ""]
    if made is None:
        lines += [
            f"# No TEMPLATE: the model's chat template could not be converted, because {why}.",
            "# Ollama then uses a template of its own where it recognises the one in the file, and the bare prompt otherwise:",
            "# compare its prompts with the model's before trusting answers.", "",
        ]  # fmt: skip
    else:
        if _drops_thinking(tokenizer):
            lines += ["# The model's own template leaves out the thinking of earlier answers; this one keeps what it is given."]
        lines += [f'TEMPLATE """{go_template(made)}"""', ""]
        if made.default_system:
            lines += [f'SYSTEM """{made.default_system}"""', ""]
    for stop in stops(tokenizer):
        lines.append(f'PARAMETER stop "{stop}"')
    said = licence.replace('"""', "") or "not stated by the model's files; ask its makers before you pass it on"
    return "\n".join([*lines, "", f'LICENSE """{said}"""', ""]), why


def stops(tokenizer: Any) -> list[str]:
    """The texts that end an answer: the turn's end, and the sequence's where it is another."""
    inner = tokenizer.inner
    return list(dict.fromkeys(inner.convert_ids_to_tokens([tokenizer.end, inner.eos_token_id])))


def _drops_thinking(tokenizer: Any) -> bool:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nb\n</think>\n\nc"},
            {"role": "user", "content": "d"}]  # fmt: skip
    text = tokenizer.inner.apply_chat_template(talk, tokenize=False)
    return re.search(r"<think>\s*b\s*</think>", text) is None
