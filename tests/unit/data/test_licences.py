"""Licences: what is not known is never allowed, and every entry names its document."""

from __future__ import annotations

import pytest

from shoestring.data import licences


@pytest.mark.parametrize(
    ("model", "stated", "verdict"),
    [
        ("smollm2-135m-instruct", "", "allowed"), ("HuggingFaceTB/SmolLM2-135M-Instruct", "", "allowed"),
        ("meta-llama/Llama-3.3-70B-Instruct", "", "conditions"), ("meta-llama/Meta-Llama-3-8B", "", "forbidden"),
        ("meta-llama/Meta-Llama-3.1-8B", "", "conditions"), ("Qwen/Qwen2.5-72B-Instruct", "", "conditions"),
        ("Qwen/Qwen2.5-7B", "", "allowed"), ("deepseek-ai/DeepSeek-R1", "", "allowed"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "", "conditions"), ("openai/gpt-oss-20b", "", "allowed"),
        ("openrouter/openai/gpt-4o", "", "forbidden"), ("claude-sonnet-4", "", "forbidden"), ("gemini-2.5-pro", "mit", "forbidden"),
        ("org/mine", "", "unknown"), ("org/mine", "Apache 2.0", "allowed"), ("org/mine", "my own", "unknown"),
        ("org/mine", "llama3", "forbidden"), ("/models/gemma-3-1b-it/", "", "conditions"), ("", "", "unknown"),
    ],
)  # fmt: skip
def test_verdicts(model: str, stated: str, verdict: str) -> None:
    assert licences.of_model(model, stated).output == verdict
    line = licences.remark("teacher", model, stated)
    assert "\n" not in line and (verdict == "allowed" or line)
    if line:
        assert line.startswith(f"teacher {model}") and line == licences.line("teacher", model, stated)


@pytest.mark.parametrize(
    ("model", "stated", "how"),
    [
        ("smollm2-135m-instruct", "", "read in the header"), ("Qwen/Qwen3-8B", "", "from the model's name, not checked"),
        ("Qwen/Qwen3-8B", "Apache 2.0", "its own files"), ("deepseek-ai/DeepSeek-R1", "", "read in data/recorded"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "", "not checked"), ("gpt-4o", "mit", "not checked"), ("org/mine", "mit", "its own files"),
        ("meta-llama/Llama-3.1-8B", "llama3.1", "its own files"),
    ],
)  # fmt: skip
def test_what_nobody_checked_is_said(model: str, stated: str, how: str) -> None:
    """An allowed one is silent before a run only where it was checked or the model states it itself."""
    found = licences.of_model(model, stated)
    assert how in found.basis and how in licences.line("base", model, stated)
    silent = licences.remark("base", model, stated) == ""
    assert silent == (found.output == "allowed" and "not checked" not in how)


def test_every_entry_names_its_document() -> None:
    for found in (*licences.TABLE.values(), *licences.STATED.values()):
        assert found.source.startswith("https://") and found.output != "unknown"
        assert found.output == "allowed" or found.note
    assert all(k == k.lower() and "/" not in k for k in (*licences.TABLE, *licences.CHECKED))
    assert not any(found.checked for found in licences.TABLE.values()), "a row covers many models: each is checked by its name"
