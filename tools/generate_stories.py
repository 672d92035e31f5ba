"""Generate stories.jsonl.gz beside the other problems: arithmetic told as short stories. Run: python tools/generate_stories.py

Our own templates (Apache-2.0), in the manner of GSM8K (Cobbe et al. 2021): one or two steps over small whole numbers. Running
it again gives the same bytes. Train and test share no `operand_key`, and the test holds one problem a key.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from generate_problems import DEFAULT_OUT, LICENCE, pack

from shoestring.answers import operand_key

SEED, DRAWS, TRAIN, TEST, SHARE, VARIANTS = 20251, 12000, 2000, 120, 0.1, 4
NAMES = (
    "Ada", "Ben", "Chen", "Dara", "Emil", "Femi", "Gita", "Hugo",
    "Ines", "Jon", "Kira", "Leo", "Mina", "Noor", "Omar", "Petra",
)  # fmt: skip
THINGS = ("apples", "books", "shells", "coins", "stamps", "cards", "pencils", "marbles", "plums", "buttons")
# text, steps: each step is an operator and the number it takes, from left to right, beginning with a
STORIES = (
    ("{n} has {a} {t} and finds {b} more. How many {t} does {n} have now?", "a+b"),
    ("{n} has {a} {t} and gives {b} of them to {m}. How many {t} does {n} have left?", "a-b"),
    ("{n} packs {t} into {a} boxes, {b} in each box. How many {t} does {n} pack?", "a*b"),
    ("{n} shares {a} {t} equally among {b} friends. How many {t} does each friend get?", "a/b"),
    ("There are {a} {t} on the table. {n} takes {b} and {m} takes {c}. How many {t} are still on the table?", "a-b-c"),
    ("{n} has {a} {t}, buys {b} more and then loses {c}. How many {t} does {n} have?", "a+b-c"),
    ("{n} buys {a} bags with {b} {t} in each and already had {c} {t}. How many {t} does {n} have in all?", "a*b+c"),
    (
        "A ticket costs {b} dollars. {n} buys {a} tickets and pays {c} dollars for a drink. How many dollars does {n} spend?",
        "a*b+c",
    ),
    ("{n} makes {a} rows of {b} {t} and then removes {c} {t}. How many {t} remain?", "a*b-c"),
    ("{n} is {a} years old and {m} is {b} years older. How old is {m}?", "a+b"),
    ("A train has {a} passengers. At a stop {b} get off and {c} get on. How many passengers are on the train?", "a-b+c"),
    ("{n} reads {b} pages a day for {a} days. How many pages does {n} read?", "a*b"),
    ("A rope of {a} metres is cut into pieces of {b} metres. How many pieces are there?", "a/b"),
    (
        "{n} saves {a} dollars in May and {b} dollars in June, and spends {c} dollars in July. How many dollars are left?",
        "a+b-c",
    ),
    ("{n} has {a} {t}. {m} has {b} fewer. How many {t} does {m} have?", "a-b"),
    ("A bus makes {a} trips with {b} people on each. How many people does it carry?", "a*b"),
)


def worked(steps: str, numbers: dict[str, int]) -> tuple[list[str], int] | None:
    """(the steps with their results, the last result); None where one is not a whole number above zero."""
    value, lines = numbers[steps[0]], []
    for sign, name in zip(steps[1::2], steps[2::2], strict=True):
        other = numbers[name]
        if sign == "/":
            if value % other:
                return None
            made = value // other
        else:
            made = {"+": value + other, "-": value - other, "*": value * other}[sign]
        if made < 1:
            return None
        lines.append(f"{value}{sign}{other}={made}")
        value = made
    return lines, value


def numbers_for(steps: str, rng: random.Random) -> dict[str, int]:
    """Numbers that suit the first operator: factors are small, what is divided is a multiple."""
    if steps[1] == "*":
        return {"a": rng.randint(2, 9), "b": rng.randint(2, 9), "c": rng.randint(2, 15)}
    if steps[1] == "/":
        b = rng.randint(2, 9)
        return {"a": b * rng.randint(2, 9), "b": b, "c": 0}
    return {"a": rng.randint(5, 40), "b": rng.randint(2, 20), "c": rng.randint(2, 20)}


def build() -> list[dict[str, str | None]]:
    """The rows, train first, in the order of drawing."""
    rng = random.Random(SEED)
    source = f"shoestring tools/generate_stories.py seed={SEED}"
    rows: dict[str, list[dict[str, str | None]]] = {"train": [], "test": []}
    used: Counter[str] = Counter()
    seen: set[str] = set()
    for _ in range(DRAWS):
        text, steps = rng.choice(STORIES)
        numbers = numbers_for(steps, rng)
        n, m = rng.sample(NAMES, 2)
        prompt = text.format(n=n, m=m, t=rng.choice(THINGS), **numbers)
        made = worked(steps, numbers)
        if made is None or prompt in seen:
            continue
        seen.add(prompt)
        key = operand_key(prompt, "stories")
        held = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48 < SHARE
        split = "test" if held else "train"
        if used[key] >= (1 if held else VARIANTS) or len(rows[split]) >= (TEST if held else TRAIN):
            continue
        used[key] += 1
        lines, answer = made
        rows[split].append(
            {
                "prompt": prompt, "answer": str(answer), "solution": f"{', '.join(lines)}\nAnswer: {answer}",
                "domain": "stories", "source": source, "licence": LICENCE, "split": split,
            }
        )  # fmt: skip
    return rows["train"] + rows["test"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out: Path = parser.parse_args().out
    rows = build()
    content, packed = pack(rows)
    (out / "stories.jsonl.gz").write_bytes(packed)
    counts = Counter(r["split"] for r in rows)
    digests = " | ".join(f"`{hashlib.sha256(x).hexdigest()}`" for x in (packed, content))
    print(f"| stories.jsonl.gz | {counts['train']} | {counts['test']} | {len(rows)} | {len(packed)} | {digests} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
