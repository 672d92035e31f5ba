"""Token counts without a tokenizer, beside SmolLM2's own counts; what lengths a forecast expects."""

from __future__ import annotations

import random

import pytest

from shoestring.estimate import lengths
from shoestring.estimate.lengths import Sizes, grown, slowest, slowest_share, spread_of, tokens, written

# mean tokens of the first 200 rows (heldout: of the whole text) by SmolLM2's own tokenizer, without the chat template
COUNTED = {
    "State the final answer to the following arithmetic problem: 46 - 83 =": 18,
    "Find the Least Common Multiple (LCM) of these numbers: 6, 4": 19,
    "19.134 25.196: 19<25, smallest 19.134\nAnswer: 19.134": 39,
}


@pytest.mark.parametrize("text", COUNTED)
def test_near_a_tokenizers_count(text: str) -> None:
    assert tokens(text) == pytest.approx(COUNTED[text], rel=0.2)


def test_near_a_tokenizers_count_on_the_sets_that_ship() -> None:
    """Means of whole sets, by the tokenizer itself where it is there."""
    export = pytest.importorskip("shoestring.export", reason="needs torch: pip install 'shoestring[train]'")
    from shoestring.data import sources
    from shoestring.data.sources.bundled import heldout_text
    from shoestring.records import UserError

    try:
        from shoestring.models.tokenizer import Tokenizer

        tokenizer = Tokenizer(export.base_folder("smollm2-135m-instruct"))
    except (ImportError, UserError) as e:
        pytest.skip(str(e))
    for name in ("chain_sum", "products", "lcm", "number_format"):
        rows = sources.load(f"bundled:{name}", "train")[:100]
        for texts in ([p.prompt for p in rows], [p.solution or "" for p in rows]):
            real = sum(len(tokenizer.encode(t)) for t in texts)
            assert sum(map(tokens, texts)) == pytest.approx(real, rel=0.12), name
    assert tokens(heldout_text()) == pytest.approx(len(tokenizer.encode(heldout_text())), rel=0.1)
    chat = len(tokenizer.chat([{"role": "user", "content": "X"}])) - 1
    assert chat == lengths.BEFORE + lengths.AFTER


def test_nothing_and_one_word() -> None:
    assert tokens("") == 0 and tokens("one") == pytest.approx(lengths.MENDED)
    assert tokens("a" * 30) > 3


def test_what_a_model_writes() -> None:
    known = Sizes(answer=30, basis="measured")
    assert written(known, 64, trained=True) == 30 and written(known, 20, trained=True) == 20
    assert 30 < written(known, 64, trained=False) < 48 and written(known, 10, trained=False) < 10
    # the quickstart's base model wrote 35.7 tokens of at most 64 and 29.9 of at most 40 (three runs)
    assert written(Sizes(answer=28.2), 64, False) == pytest.approx(35.7, rel=0.1)
    assert written(Sizes(answer=28.2), 40, False) == pytest.approx(29.9, rel=0.15)
    assert written(Sizes(), 32768, False) == pytest.approx(lengths.UNTRAINED)


def test_answers_grow_up_to_their_bound() -> None:
    assert grown(30, 18, 48) == pytest.approx(30, rel=0.02)
    assert grown(700, 8000, 32768) > 3000 and grown(700, 8000, 1024) == 1024


def test_the_slowest_of_many_rows() -> None:
    """Blom's formula beside drawing."""
    assert slowest_share(1, 0.5) == slowest_share(16, 0.0) == 1.0
    import math

    sigma = math.sqrt(math.log(1 + 0.4**2))
    rng = random.Random(1)
    drawn = [max(rng.lognormvariate(-sigma * sigma / 2, sigma) for _ in range(16)) for _ in range(4000)]
    assert slowest_share(16, 0.4) == pytest.approx(sum(drawn) / len(drawn), rel=0.05)
    assert slowest(Sizes(prompt=100, answer=900, spread=0.9, longest=1500), 16) == pytest.approx(1.5)
    assert slowest(Sizes(spread=0.4), 16, each=64) < 1.1


def test_spread() -> None:
    assert spread_of([1, 2]) == lengths.SPREAD and spread_of([5.0] * 9) == 0
    assert spread_of([1, 3, 1, 3]) == pytest.approx(0.577, abs=0.01)
