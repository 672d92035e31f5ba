"""Shapes of well-known models: the weights come out as published."""

from __future__ import annotations

import pytest

from shoestring.estimate.known_shapes import known_shape

# parameters as the model cards or the safetensors indices give them
COUNTS = [
    ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768), ("Qwen/Qwen2.5-1.5B", 1_543_714_304), ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
    ("Qwen/Qwen2.5-32B-Instruct", 32_763_876_352), ("Qwen/Qwen2.5-72B", 72_706_203_648), ("Qwen/Qwen3-0.6B", 596_049_920),
    ("Qwen/Qwen3-8B", 8_190_735_360), ("meta-llama/Llama-3.2-1B", 1_235_814_400), ("llama3.1-8b", 8_030_261_248),
    ("meta-llama/Meta-Llama-3-70B", 70_553_706_496), ("llama3.1-405b", 405_853_388_800), ("Llama 2 7B", 6_738_415_616),
    ("Llama 2 13B", 13_015_864_320), ("HuggingFaceTB/SmolLM2-135M", 134_515_008), ("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120),
    ("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384), ("mistralai/Mistral-7B-v0.3", 7_248_023_552),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000), ("simplescaling/s1-32B", 32_763_876_352),
]  # fmt: skip


@pytest.mark.parametrize("name, parameters", COUNTS)
def test_parameters(name: str, parameters: int) -> None:
    shape = known_shape(name)
    assert shape is not None and shape.parameters() == parameters


@pytest.mark.parametrize("name", ["gpt2", "", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen2.5-VL-7B", "Qwen3.5-9B", "my-model", "LLaMA-13B"])
def test_others_are_not_guessed(name: str) -> None:
    assert known_shape(name) is None
