"""Budget forcing in words, over a server that is a script: what a request's own stop string ends, and what is handed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shoestring.generate import endpoint_forcing
from shoestring.generate.endpoint_wire import Answer, Attempt, Delta, TextRequest
from shoestring.generate.thinking import FINAL, TextThinking

MARKER = "</think>"


class Server:
    """One token a character. says: what it goes on with, whatever the prompt; one text a round."""

    def __init__(self, *says: str) -> None:
        self.says, self.asked = list(says), []

    async def __call__(self, request: Any) -> Answer:
        self.asked.append(request)
        text = self.says[len(self.asked) - 1]
        ends = [at for s in request.stop_strings if (at := text.find(s)) >= 0]
        said, reason = (text[: min(ends)], "stop") if ends else (text, "stop")
        if len(said) >= request.max_new:
            said, reason = said[: request.max_new], "length"
        attempt = Attempt(0, 0, 0.0, 1.0, completion_tokens=len(said), basis="reported", sent=True)
        return Answer((), (), reason, "", said, attempts=(attempt,))  # pyright: ignore[reportArgumentType]


def force(server: Callable[..., Any], thinking: TextThinking, *stops: str) -> tuple[Answer, list[str]]:
    pieces: list[Delta] = []
    request = TextRequest("ask:", 0, stop_strings=stops, thinking=thinking)
    answer = asyncio.run(endpoint_forcing.run(request, server, pieces.append))
    assert "".join(p.text for p in pieces) == answer.text, "pieces are never taken back"
    return answer, [p.text for p in pieces]


def test_a_stop_string_in_the_thinking_ends_the_answer() -> None:
    """As in our engine: no answer is asked for, and no end is taken back."""
    for marker in (MARKER, ""):
        server = Server(f"one STOP two{MARKER}", "never asked")
        answer, _ = force(server, TextThinking(99, marker, waits=2), "STOP")
        assert (answer.text, answer.reason, answer.waits, len(server.asked)) == ("one ", "stop", 0, 1)
        assert 0 < answer.thinking <= 99


def test_the_marker_ends_the_thinking_beside_a_stop_string() -> None:
    server = Server(f"one{MARKER}", "two STOP three")
    answer, _ = force(server, TextThinking(99, MARKER), "STOP")
    assert (answer.text, answer.reason) == (f"one{MARKER}two ", "stop")
    assert server.asked[0].stop_strings == (MARKER,) and server.asked[1].stop_strings == ("STOP",)


def test_what_the_marker_comes_before_is_the_answer_s() -> None:
    """The server, which knows the marker, never writes past it."""
    server = Server(f"one{MARKER} STOP", "two")
    answer, _ = force(server, TextThinking(99, MARKER), "STOP")
    assert answer.text == f"one{MARKER}two"


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        ("it, b", "aWa"),  # begins in the forced word and ends in what the model says after it
        ("aW", ""),  # begins in what the model said
        ("ait", "aW"),  # all of it is forced
        ("\n\nFinal", f"aWait, bcdef{MARKER}"),
        (": y", f"aWait, bcdef{MARKER}\n\nFinal Answer"),
    ],
)
def test_a_stop_string_across_forced_words(stop: str, kept: str) -> None:
    server = Server(f"a{MARKER}", ", bcdef", " yes")
    answer, pieces = force(server, TextThinking(9, MARKER, waits=1), stop)
    assert (answer.text, answer.reason) == (kept, "stop"), pieces


def test_without_one_it_goes_on_to_the_answer() -> None:
    server = Server(f"a{MARKER}", ", bcdef", " yes")
    answer, pieces = force(server, TextThinking(9, MARKER, waits=1), "no such")
    assert answer.text == f"aWait, bcdef{MARKER}{FINAL} yes" and answer.waits == 1 and len(pieces) > 3


def test_a_wait_leaves_room_for_a_token() -> None:
    """As in our engine: the word and one token more must fit in the budget."""
    for budget, waits in ((5, 0), (6, 1)):
        answer, _ = force(Server(f"abcd{MARKER}", "e", " yes"), TextThinking(budget, MARKER, waits=1))
        assert answer.waits == waits and answer.thinking <= budget


def test_a_budget_of_nothing() -> None:
    answer, _ = force(Server("yes STOP"), TextThinking(0, MARKER), "STOP")
    assert answer.text == f"{MARKER}{FINAL}yes " and answer.thinking == 0
