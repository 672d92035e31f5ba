"""What both sides work on, from one seed: chats to learn, prompts to continue, sums to be rewarded for."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Messages = list[dict[str, str]]

# What both sides are told. rows of one packed micro-batch and activation recomputation: ours only.
OURS: dict[str, Any] = {"rows": 2048, "recompute": "selective"}
SFT: dict[str, Any] = OURS | {"batch": 8, "lr": 1e-4, "betas": [0.9, 0.999]}
GRPO: dict[str, Any] = OURS | {"prompts": 4, "group": 8, "new": 64, "lr": 1e-5, "betas": [0.9, 0.999]}
NEW = 64  # tokens decoded for each prompt

SYSTEM = "Work it out step by step."
PEOPLE = ("Ada", "Bilal", "Chen", "Dunja", "Emeka", "Farah", "Goran", "Hana", "Ines", "Jonas", "Kavya", "Luis")
GOODS = ("beads", "bricks", "candles", "chairs", "eggs", "lamps", "lemons", "plates", "ropes", "seeds", "tiles")
PLACES = ("the depot", "the ferry", "the fair", "the mill", "the office", "the orchard", "the shed", "the workshop")


def _event(rng: random.Random, who: str, goods: str, have: int) -> tuple[str, str, int]:
    """(sentence of the question, line of the solution, what is left) of one event."""
    place, k = rng.choice(PLACES), rng.randint(2, 15)
    kind = rng.choice(("gain", "lose", "boxes", "share"))
    if kind == "lose" and have > k:
        return (
            f"At {place} {who} sells {k} of the {goods}.",
            f"{k} are sold, so {have} - {k} = {have - k} {goods} stay.",
            have - k,
        )
    if kind == "share" and have % 2 == 0 and have > 40:
        return (
            f"Half of the {goods} are left behind at {place}.",
            f"Half of {have} is {have} / 2 = {have // 2}, so {who} keeps {have // 2} {goods}.",
            have // 2,
        )
    if kind == "boxes":
        each = rng.randint(2, 9)
        return (
            f"{who} finds {k} boxes with {each} {goods} each at {place}.",
            f"The boxes hold {k} * {each} = {k * each}, which makes {have} + {k * each} = {have + k * each}.",
            have + k * each,
        )
    return (
        f"From {place} {who} brings {k} more {goods}.",
        f"With {k} more there are {have} + {k} = {have + k} {goods}.",
        have + k,
    )


def story(rng: random.Random, events: int) -> tuple[str, str]:
    """A question and its worked answer with this many events."""
    who, goods, have = rng.choice(PEOPLE), rng.choice(GOODS), rng.randint(10, 80)
    asked, solved = [f"{who} has {have} {goods}."], [f"{who} begins with {have} {goods}."]
    for _ in range(events):
        sentence, line, have = _event(rng, who, goods, have)
        asked.append(sentence)
        solved.append(line)
    asked.append(f"How many {goods} does {who} have in the end?")
    return " ".join(asked), "\n".join([*solved, f"The answer is {have}."])


def chats(n: int, length: Callable[[Messages], int], seed: int = 0, low: int = 40, high: int = 600) -> Iterator[Messages]:
    """`n` chats whose lengths in tokens are spread evenly over low..high, as far as whole events allow."""
    rng = random.Random(seed)
    for _ in range(n):
        want, inner = rng.randint(low, high), rng.getrandbits(32)
        found: tuple[int, Messages] | None = None
        for events in range(60):
            question, answer = story(random.Random(inner), events)  # the same beginning, one event more
            messages = [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            tokens = length(messages)
            if found is None or abs(tokens - want) < abs(found[0] - want):
                found = tokens, messages
            if tokens > want:
                break
        assert found is not None
        yield found[1]


def questions(n: int, seed: int = 1) -> list[Messages]:
    """Short questions of unequal length, to be continued."""
    rng = random.Random(seed)
    out = []
    for _ in range(n):
        terms = " + ".join(str(rng.randint(2, 99)) for _ in range(rng.randint(2, 7)))
        out.append([{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"How much is {terms}?"}])
    return out


def sums(n: int, seed: int = 2) -> list[tuple[Messages, str]]:
    """Sums with their answers, for rewards."""
    rng = random.Random(seed)
    pairs = [(rng.randint(1, 50), rng.randint(1, 50)) for _ in range(n)]
    return [([{"role": "user", "content": f"What is {a} + {b}? Answer with the number."}], str(a + b)) for a, b in pairs]


def reward(text: str, answer: str) -> float:
    """1 when the last number of the text is the answer."""
    found = re.findall(r"-?\d+", text)
    return float(bool(found) and found[-1] == answer)


def batch(items: Sequence[Any], step: int, size: int) -> list[Any]:
    """The `size` items of step `step`, in the order of the list, around and around."""
    return [items[i % len(items)] for i in range(step * size, (step + 1) * size)]
