"""The real model of the quickstart: GGUF in, exact against transformers; greedy, chat template and tokens identical."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
pytest.importorskip("gguf", reason="needs the gguf package: pip install 'shoestring[train]'")

from shoestring.estimate.locate import locate  # noqa: E402
from shoestring.generate.engine import Engine, Request  # noqa: E402
from shoestring.models import folder, gguf  # noqa: E402
from shoestring.models.tokenizer import Tokenizer  # noqa: E402
from shoestring.records import Document, UserError  # noqa: E402
from shoestring.stages import sft  # noqa: E402

QUESTIONS = [
    "What is 17 + 25?",
    "Name three colours of the rainbow.",
    "Write the number 1204 in words.",
    "What comes next: 2, 4, 8, 16?",
    "Why is the sky blue?",
    "Translate 'good morning' into French.",
    "What is 9 times 7?",
    "Who wrote Hamlet?",
    "Give me a short poem about rain.",
    "Find the least common multiple of 4 and 6.",
    "Is 91 a prime number? Explain.",
    "List the planets from the sun outwards.",
    "How many minutes are in three hours?",
    "What is the capital of Japan?",
    "Sort these numbers: 7, 3, 9, 1.",
    "A pen costs 2 dollars. What do 11 pens cost?",
    "Explain photosynthesis to a child.",
    "What is the opposite of 'ancient'?",
    "Compute 144 / 12 and show the steps.",
    "Say hello in four languages.",
]


@pytest.fixture(scope="module")
def gguf_file() -> Path:
    try:
        return locate("smollm2-135m-instruct")
    except UserError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def converted(gguf_file: Path) -> Path:
    return gguf.cached_folder(gguf_file)


@pytest.fixture(scope="module")
def ours(converted: Path) -> Any:
    return folder.load(converted)


def plain_copy(converted: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(converted), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def theirs(gguf_file: Path, converted: Path) -> Any:
    """transformers reads the GGUF by itself, so that our conversion is under test too; it needs accelerate for that.

    Without it the reference reads our converted folder (a warning says so), and the test of the conversion skips.
    """
    if find_spec("accelerate") is None:
        warnings.warn("accelerate is not installed: the reference reads our converted folder, not the GGUF", stacklevel=1)
        return plain_copy(converted)
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent), gguf_file=gguf_file.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def tokenizer(converted: Path) -> Tokenizer:
    return Tokenizer(converted)


def prompts(tokenizer: Tokenizer, count: int) -> list[tuple[int, ...]]:
    return [tokenizer.chat([{"role": "user", "content": q}]) for q in QUESTIONS[:count]]


def test_logits_agree_with_transformers_reading_the_gguf(ours: Any, theirs: Any, tokenizer: Tokenizer, relative: Any) -> None:
    pytest.importorskip("accelerate", reason="transformers needs accelerate to read GGUF (pip install accelerate)")
    ids = torch.tensor(prompts(tokenizer, 1)[0] + tokenizer.encode(" The sum of the two numbers is forty-two." * 12))
    with torch.no_grad():
        a = ours.logits(ids, torch.arange(len(ids)), [Document(0, len(ids))])
        b = theirs(ids[None]).logits[0]
    assert relative(a, b) <= 1e-5


def test_logits_agree_with_transformers_reading_the_converted_folder(
    ours: Any, converted: Path, tokenizer: Tokenizer, relative: Any
) -> None:
    model = plain_copy(converted)
    ids = torch.tensor(prompts(tokenizer, 2)[1])
    with torch.no_grad():
        a = ours.logits(ids, torch.arange(len(ids)), [Document(0, len(ids))])
        b = model(ids[None]).logits[0]
    assert relative(a, b) <= 1e-5


def greedy_agrees(ours: Any, theirs: Any, tokenizer: Tokenizer, count: int, new: int) -> None:
    asked = prompts(tokenizer, count)
    stop = frozenset([tokenizer.end])
    done = Engine(ours, slots=8).generate([Request(p, new, stop=stop) for p in asked])
    for question, prompt, answer in zip(QUESTIONS, asked, done, strict=False):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=new,
                do_sample=False, eos_token_id=tokenizer.end, pad_token_id=tokenizer.end,
            )  # fmt: skip
        assert list(answer.tokens) == out[0, len(prompt) :].tolist(), question


def test_greedy_is_identical_on_four_prompts(ours: Any, theirs: Any, tokenizer: Tokenizer) -> None:
    greedy_agrees(ours, theirs, tokenizer, 4, 24)


@pytest.mark.slow
def test_greedy_64_tokens_are_identical_on_20_prompts(ours: Any, theirs: Any, tokenizer: Tokenizer) -> None:
    greedy_agrees(ours, theirs, tokenizer, 20, 64)


def test_chat_template_and_tokens_are_the_tokenizers_own(converted: Path, tokenizer: Tokenizer) -> None:
    own = transformers.AutoTokenizer.from_pretrained(str(converted))
    talk = [
        {"role": "user", "content": "Was ist 2+2? 你好 🎈\n\n  two  spaces"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "and <|im_end|> 3+3?"},
    ]
    for messages in (talk[:1], talk, [{"role": "system", "content": "Be brief."}, *talk]):
        text = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert list(tokenizer.chat(messages)) == own(text, add_special_tokens=False)["input_ids"]
        assert own.decode(tokenizer.chat(messages)) == text
    assert tokenizer.end == own.eos_token_id == own.convert_tokens_to_ids("<|im_end|>")


def test_the_template_is_that_of_the_gguf(gguf_file: Path, tokenizer: Tokenizer) -> None:
    from gguf import GGUFReader

    field = GGUFReader(str(gguf_file)).get_field("tokenizer.chat_template")
    assert field is not None and field.contents() == tokenizer.inner.chat_template


def test_trained_sequences_are_the_template_of_the_whole_conversation(tokenizer: Tokenizer) -> None:
    """What SFT trains is what the template writes: prompt, answer, end of turn; the loss is on the last two."""
    for question, answer in zip(QUESTIONS, ["17 + 25 = 42\nAnswer: 42", "Red.", " spaced", "é"], strict=False):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        (example,) = sft.examples([{"messages": messages, "problem_id": "p"}], tokenizer)
        text = tokenizer.inner.apply_chat_template(messages, tokenize=False)
        whole = tokenizer.inner(text, add_special_tokens=False)["input_ids"]
        assert list(example.tokens) == whole[: len(example.tokens)]
        assert tokenizer.inner.decode(whole[len(example.tokens) :]).strip() == ""
        assert example.tokens[-1] == tokenizer.end and example.weight[-1] == 1.0
        assert sum(example.weight) == len(example.tokens) - example.prompt_length
        assert tokenizer.decode(example.tokens[example.prompt_length :]) == answer


def test_conversion_is_done_once_and_a_damaged_file_is_one_clear_line(converted: Path, gguf_file: Path, tmp_path: Path) -> None:
    stamp = (converted / "model.safetensors").stat().st_mtime_ns
    assert gguf.cached_folder(gguf_file) == converted
    assert (converted / "model.safetensors").stat().st_mtime_ns == stamp
    broken = tmp_path / "broken.gguf"
    for raw in (b"", b"not a GGUF file at all, only text", gguf_file.read_bytes()[:20000]):
        broken.write_bytes(raw)
        with pytest.raises(UserError) as e:
            gguf.convert(broken, tmp_path / "out")
        assert "\n" not in str(e.value) and not (tmp_path / "out").exists()
