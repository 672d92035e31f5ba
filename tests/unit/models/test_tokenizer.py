"""What ends an answer, from the files of a model alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")

from shoestring.models.tokenizer import Tokenizer
from shoestring.serve.schema import Limits, read

TURN = "<repo_name>"  # a special token of SmolLM2's that no template of its own writes


@pytest.fixture
def like_gemma(world: Any, tmp_path: Path) -> Path:
    """A tokenizer whose turns end in another token than its sequences."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (world.base / name).exists():
            shutil.copyfile(world.base / name, tmp_path / name)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("chat_template", None)
    file.write_text(json.dumps(config))
    written = "{% for m in messages %}" + TURN + "{{ m.role }}\n{{ m.content }}" + TURN + "\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(written)
    return tmp_path


def test_a_turn_and_a_sequence_end_an_answer(like_gemma: Path) -> None:
    t = Tokenizer(like_gemma)
    (turn,) = t.encode(TURN)
    assert t.end == turn != t.inner.eos_token_id and t.ends == {turn, t.inner.eos_token_id}
    assert t.decode([*t.encode("so"), turn, t.inner.eos_token_id]) == "so"


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ('{"eos_token_id": [0, 3]}', {0, 3}),
        ('{"eos_token_id": 5}', {5}),
        ("{}", set()),
        ("[", set()),
        ('{"eos_token_id": "x"}', set()),
    ],
)
def test_what_generation_stops_at(like_gemma: Path, text: str, more: set[int]) -> None:
    plain = Tokenizer(like_gemma).ends
    (like_gemma / "generation_config.json").write_text(text)
    assert Tokenizer(like_gemma).ends == plain | more


def test_a_server_stops_at_each_of_them(like_gemma: Path) -> None:
    t = Tokenizer(like_gemma)
    for chat, asked in ((True, {"messages": [{"role": "user", "content": "hi"}]}), (False, {"prompt": "hi"})):
        for more, stop in (({}, t.ends), ({"stop_token_ids": [9]}, t.ends | {9}), ({"ignore_eos": True}, frozenset())):
            (request,) = read(asked | more, chat, t, "m", Limits(100, 50, 8), 49152).requests
            assert request.stop == stop
