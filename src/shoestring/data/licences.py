"""Whether one may train on what a model writes: a small table by model, and the words of common licences.

No legal advice: the table says where to read, and documents change. What is not in it is unknown, never allowed. Most rows
go by a model's name alone; nobody has looked at that model's own page for them, and what is printed says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

Verdict = Literal["allowed", "conditions", "forbidden", "unknown"]


@dataclass(frozen=True)
class Licence:
    """output: may a model be trained on its output? source: the document that says so. note: the condition, in words.
    checked: what was read to know that the model in question has this licence; "": nothing, it is the model's name."""

    name: str
    output: Verdict
    source: str = ""
    note: str = ""
    checked: str = ""

    @property
    def basis(self) -> str:
        return self.checked or "from the model's name, not checked"


APACHE = Licence("apache-2.0", "allowed", "https://www.apache.org/licenses/LICENSE-2.0")
MIT = Licence("mit", "allowed", "https://opensource.org/license/mit")
LLAMA = Licence(
    "llama community licence", "conditions", "https://www.llama.com/llama3_1/license/ (1.b.i)",
    'the trained model\'s name begins with "Llama", and "Built with Llama" is shown',
)  # fmt: skip
OLD_LLAMA = Licence(
    "llama 2 or 3 community licence", "forbidden", "https://www.llama.com/llama3/license/ (1.b.v)",
    "its output may improve no other model than Llama and its derivatives",
)  # fmt: skip
GEMMA = Licence(
    "gemma terms of use", "conditions", "https://ai.google.dev/gemma/terms",
    "a model trained to behave like it is a derivative, under the same terms",
)  # fmt: skip
QWEN = Licence(
    "qwen licence", "conditions", "https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
    '"Built with Qwen" or "Improved using Qwen" is shown',
)  # fmt: skip
QWEN_RESEARCH = Licence(
    "qwen research licence", "conditions", "https://huggingface.co/Qwen/Qwen2.5-3B/blob/main/LICENSE", "no commercial use"
)  # fmt: skip
OPENAI = Licence("OpenAI terms", "forbidden", "https://openai.com/policies/services-agreement/", "no competing models")
ANTHROPIC = Licence(
    "Anthropic commercial terms", "forbidden", "https://www.anthropic.com/legal/commercial-terms", "no competing models"
)  # fmt: skip
GEMINI = Licence("Gemini API terms", "forbidden", "https://ai.google.dev/gemini-api/terms", "no competing models")
XAI = Licence("xAI terms", "forbidden", "https://x.ai/legal/terms-of-service-enterprise", "no competing models")
DEEPSEEK_API = Licence(
    "DeepSeek terms of use", "allowed", "https://cdn.deepseek.com/policies/en-US/deepseek-terms-of-use.html",
    "distillation is named as allowed",
)  # fmt: skip
UNKNOWN = Licence("", "unknown")

# beginnings of a model's id in lower case, without the owner; the longest that fits is taken
TABLE: dict[str, Licence] = {
    "smollm": APACHE, "qwen2.5-": APACHE, "qwen2.5-3b": QWEN_RESEARCH, "qwen2.5-72b": QWEN, "qwen2.5-math-72b": QWEN,
    "qwen3-": APACHE, "qwq-32b": APACHE, "deepseek-r1": MIT, "deepseek-r1-distill-llama": LLAMA, "deepseek-v3-0324": MIT,
    "deepseek-v3.": MIT, "deepseek-reasoner": DEEPSEEK_API, "deepseek-chat": DEEPSEEK_API, "llama-2": OLD_LLAMA,
    "meta-llama-3-": OLD_LLAMA, "llama-3-": OLD_LLAMA, "meta-llama-3.1": LLAMA, "llama-3.": LLAMA, "llama-4": LLAMA,
    "gemma-": GEMMA, "gemma-2": GEMMA, "gemma-3": GEMMA, "mistral-7b": APACHE, "mixtral-": APACHE, "mistral-small-3": APACHE,
    "mistral-small-24b": APACHE, "mistral-nemo": APACHE, "phi-3": MIT, "phi-4": MIT, "olmo": APACHE, "gpt-oss": APACHE,
    "gpt-3": OPENAI, "gpt-4": OPENAI, "gpt-5": OPENAI, "o1": OPENAI, "o3": OPENAI, "o4-mini": OPENAI, "claude": ANTHROPIC,
    "gemini": GEMINI, "grok-3": XAI, "grok-4": XAI,
}  # fmt: skip
STATED: dict[str, Licence] = {
    **{k: Licence(k, "allowed", "https://spdx.org/licenses/") for k in (
        "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "isc", "unlicense",
    )},
    **{k: Licence(k, "conditions", "https://creativecommons.org/licenses/", note) for k, note in (
        ("cc-by-sa-4.0", "share alike"), ("cc-by-nc-4.0", "no commercial use"), ("cc-by-nc-sa-4.0", "no commercial use"),
    )},
    "llama2": OLD_LLAMA, "llama3": OLD_LLAMA, "llama3.1": LLAMA, "llama3.2": LLAMA, "llama3.3": LLAMA, "llama4": LLAMA,
    "gemma": GEMMA, "qwen": QWEN, "qwen-research": QWEN_RESEARCH,
}  # fmt: skip


# models whose licence was read, and where; every other row of TABLE is from the name
CHECKED: dict[str, str] = {
    "smollm2-135m-instruct": "read in the header of the packaged GGUF",
    **dict.fromkeys(
        ("mistral-small-3.1-24b", "mistral-small-3.1-24b-instruct", "deepseek-r1", "qwq-32b"), "read in data/recorded/README.md"
    ),
}
OWN = "as its own files or rows state"


def of_model(model: str, stated: str = "") -> Licence:
    """The licence of a model by its id ("owner/name", "catalogue/owner/name" or a folder), else by the licence that it states.

    An id of the table counts for more than a stated licence: who calls a copy of Llama "mit" changes nothing.
    """
    name = re.split(r"[/:]", model.strip().rstrip("/").lower())[-1]
    own = of_name(stated)
    fits = [k for k in TABLE if name.startswith(k)]
    if not fits:
        return replace(own, checked=OWN) if stated else own
    found = TABLE[max(fits, key=len)]
    if own.name.lower() == found.name.lower():
        return replace(found, checked=OWN)
    return replace(found, checked=CHECKED.get(name, ""))


def of_name(licence: str) -> Licence:
    """A licence by its name as records and model cards state it; one that is not known keeps its name."""
    plain = re.sub(r"[\s_]+", "-", licence.strip().lower())
    return STATED.get(plain) or Licence(licence.strip(), "unknown")


def remark(role: str, model: str, stated: str = "") -> str:
    """One line where training on the model's output is forbidden, bound to conditions, not known, or allowed as far as the
    model's name tells; "" where it is allowed and that was checked.

    role: "base" or "teacher".
    """
    found = of_model(model, stated)
    return "" if found.output == "allowed" and found.checked else line(role, model, stated)


def line(role: str, model: str, stated: str = "") -> str:
    """The licence of a model, whether one may train on its output, and how that is known."""
    found = of_model(model, stated)
    if found.output == "allowed":
        return f"{role} {model} ({found.name}): training on its output is allowed ({found.source}; {found.basis})"
    if found.output == "unknown":
        said = f"its licence ({found.name})" if found.name else "its licence"
        return f"{role} {model}: {said} is not known here: read whether it allows training on its output"
    how = "is forbidden" if found.output == "forbidden" else "has conditions"
    return f"{role} {model} ({found.name}): training on its output {how}: {found.note} ({found.source}; {found.basis})"
