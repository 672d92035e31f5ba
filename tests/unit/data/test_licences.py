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
    assert (line == "") == (verdict == "allowed") and "\n" not in line
    if line:
        assert line.startswith(f"teacher {model}")


def test_every_entry_names_its_document() -> None:
    for found in (*licences.TABLE.values(), *licences.STATED.values()):
        assert found.source.startswith("https://") and found.output != "unknown"
        assert found.output == "allowed" or found.note
    assert all(k == k.lower() and "/" not in k for k in licences.TABLE)
