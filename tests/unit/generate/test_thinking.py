"""The ids of budget forcing from tokenizers with a marker as a token, with one in their template, and with none."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")

from shoestring.generate.thinking import FINAL, split, thinking_of
from shoestring.records import UserError


@pytest.fixture(scope="module")
def plain(world: Any) -> Any:
    """SmolLM2's tokenizer: no thinking tokens, and none in its template."""
    from shoestring.models.tokenizer import Tokenizer

    return Tokenizer(world.base)


@pytest.fixture
def fresh(world: Any) -> Any:
    from shoestring.models.tokenizer import Tokenizer

    return Tokenizer(world.base)


def test_a_marker_that_is_a_token(fresh: Any) -> None:
    fresh.inner.add_tokens(["<think>", "</think>"])
    (marker,) = fresh.encode("</think>")
    t = thinking_of(fresh, 64, 2, answer=30)
    assert t.ends == ((marker,), (fresh.end,)) and t.close == (marker, *fresh.encode(FINAL)) and t.opens == ()
    assert (t.budget, t.waits, t.wait, t.answer) == (64, 2, fresh.encode("Wait"), 30)


def test_a_marker_in_the_chat_template(fresh: Any) -> None:
    fresh.inner.chat_template += "{# a thought ends in </think> #}"
    t = thinking_of(fresh, 64)
    assert fresh.decode(t.close) == "</think>" + FINAL and t.opens == () and (fresh.end,) in t.ends


def test_a_model_with_none(plain: Any) -> None:
    """It thinks until its turn ends; a marker of text counts if the model opens one by itself."""
    t = thinking_of(plain, 64, wait="Hmm")
    assert t.close == plain.encode(FINAL) and (plain.end,) in t.ends
    assert plain.decode(t.tagged) == "</think>" + FINAL and plain.encode("<think>") in t.opens
    assert any(t.tagged[: len(e)] == e for e in t.ends), "so that a turn that ends inside is closed first"


def test_markers_given_by_hand(plain: Any) -> None:
    """s1's own: <|im_start|>think and <|im_start|>answer."""
    t = thinking_of(plain, 64, marker=("<|im_start|>think", "<|im_start|>answer"))
    assert plain.encode("<|im_start|>answer") in t.ends and t.close == plain.encode("<|im_start|>answer" + FINAL)


def test_a_marker_of_text_is_found_between_any_neighbours(plain: Any) -> None:
    """Tokenizers join a marker's ends with what stands beside them: some window of ids must match everywhere."""
    t = thinking_of(plain, 64)
    rng = random.Random(0)
    pieces = [
        "so 3 + 4 = 7",
        "(x)",
        "done.",
        "yes!",
        "2^2",
        '"a"',
        "], [",
        "\\boxed{7}",
        "$7$",
        "…",
        "so\n",
        "a\n\n",
        "b\t",
        "**",
        "好",
    ]
    for _ in range(300):
        before = "".join(rng.choices(pieces, k=3)) + rng.choice(["", " ", "\n", "\n\n"])
        after = rng.choice(["", "\n", "\n\n"]) + rng.choice(["Answer: 7", "The", "7", "$7$", ""])
        ids = plain.encode(before + "</think>" + after)
        hits = [n for n in range(len(ids)) if any(ids[n - len(e) : n] == e for e in t.ends if n >= len(e))]
        if not hits:
            hits = [len(ids)] if any(ids[-len(e) :] == e for e in t.ends) else []
        assert hits, (before, after, [plain.decode([i]) for i in ids])
        assert "</think>" in plain.decode(ids[: hits[0]]) and before.rstrip()[:-1] in plain.decode(ids[: hits[0]])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"budget": -1}, "0 or more"), ({"waits": -1}, "0 or more"), ({"answer": 3}, "give more"), ({"wait": ""}, "word")],
)
def test_settings_that_cannot_be_met_are_one_line(wrong: dict[str, Any], says: str, plain: Any) -> None:
    with pytest.raises(UserError, match=says) as e:
        settings: dict[str, Any] = {"budget": 9, "waits": 1} | wrong
        thinking_of(plain, **settings)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\nso 7\n</think>\n\nAnswer: 7", ("so 7", "Answer: 7")),
        ("so 7</think>7", ("so 7", "7")),
        ("so 7\n\nFinal Answer: 7", ("so 7", "Final Answer: 7")),
        ("<think>so\n\nFinal Answer: 7", ("so", "Final Answer: 7")),
        ("<think>never closed", ("never closed", "")),
        ("Answer: 7", ("", "Answer: 7")),
        ("a</think>b</think>c", ("a", "b</think>c")),
        ("[THINK]a[/THINK]b", ("a", "b")),
        ("", ("", "")),
    ],
)
def test_split(text: str, parts: tuple[str, str]) -> None:
    assert split(text) == parts
