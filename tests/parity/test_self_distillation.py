"""The quickstart's real model as its own teacher: at distance zero from itself, near itself in other precision, far when shuffled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("gguf", reason="needs the gguf package: pip install 'shoestring[train]'")

from shoestring.data.packing import pack  # noqa: E402
from shoestring.estimate.locate import locate  # noqa: E402
from shoestring.models import folder, gguf  # noqa: E402
from shoestring.models.tokenizer import Tokenizer  # noqa: E402
from shoestring.records import Example, UserError  # noqa: E402
from shoestring.stages import teachers  # noqa: E402
from shoestring.train.distillation import Divergence, Teaching  # noqa: E402
from shoestring.train.step import accumulate  # noqa: E402

TALKS = [("What is 17 + 25?", "17 + 25 = 42."), ("Name a colour.", "Blue is a colour."), ("Say hello.", "Hello! How are you?")]


@pytest.fixture(scope="module")
def converted() -> Path:
    try:
        return gguf.cached_folder(locate("smollm2-135m-instruct"))
    except UserError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def rows(converted: Path) -> list[Example]:
    tokenizer = Tokenizer(converted)
    out = []
    for question, answer in TALKS:
        prompt = tokenizer.chat([{"role": "user", "content": question}])
        said = (*tokenizer.encode(answer), tokenizer.end)
        out.append(Example(prompt + said, (0.0,) * len(prompt) + (1.0,) * len(said), len(prompt)))
    return out


def load(converted: Path, dtype: Any) -> Any:
    return folder.load(converted, dtype)


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd"])
def test_it_is_at_distance_zero_from_itself(loss: Any, converted: Path, rows: list[Example]) -> None:
    model, batches = load(converted, torch.bfloat16), pack(rows, 2048)
    teaching = Teaching(load(converted, torch.bfloat16), Divergence(loss))
    kl, agreement, tokens = teaching.closeness(model, batches)
    assert abs(kl) < 1e-6 and agreement == 1.0 and tokens == sum(sum(w > 0 for w in e.weight) for e in rows)
    result = accumulate(model, batches, teaching)
    assert abs(result.loss) < 1e-6
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) < 1e-5


def test_precision_is_a_small_distance_and_noise_a_large_one(converted: Path, rows: list[Example]) -> None:
    wide, batches = load(converted, torch.float32), pack(rows, 2048)
    teaching = Teaching(wide, Divergence())
    kl, agreement, _ = teaching.closeness(load(converted, torch.bfloat16), batches)
    assert 0 < kl < 0.01 and agreement > 0.9
    noisy = load(converted, torch.float32)
    with torch.no_grad():
        for p in noisy.blocks[0].parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.3 * p.std())
    assert teaching.closeness(noisy, batches)[0] > 20 * kl


def test_its_names_name_one_tokenizer(converted: Path) -> None:
    assert teachers.folder_of("smollm2-135m-instruct") == converted
    teachers.check(str(converted), "smollm2-135m-instruct")
