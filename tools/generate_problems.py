"""Generate the problem files that ship in src/shoestring/data/problems. Run: python tools/generate_problems.py

Needs reasoning-gym 0.1.25 (`pip install reasoning-gym==0.1.25`). Running it again gives the same bytes. Train and test
share no `operand_key`: keys are split first, problems follow their key, and the test holds one problem a key.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from shoestring.answers import numbers, operand_key
from shoestring.data.solvers import solve

GENERATOR, VERSION, SEED = "reasoning-gym", "0.1.25", 20250
LICENCE = "Apache-2.0"
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "src/shoestring/data/problems"


@dataclass(frozen=True)
class Family:
    """`test` and `share` go by stratum (the digits of the operands; 0 where a family has one stratum only).

    test: the most test problems; share: which share of the keys may become test keys; variants: the most training
    problems a key (3 + 5 and 5 - 3 have one key) by stratum.
    """

    name: str
    config: Mapping[str, Any]
    draws: int
    train: int
    test: Mapping[int, int]
    share: Mapping[int, float]
    variants: Mapping[int, int] = field(default_factory=dict)
    use: str = "training"
    generator: str = ""  # the generator's own name of the family, where ours differs


_TWO_TERMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
_THREE_DIGITS = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
_FEW_DIGITS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}
_TWO_NUMBERS = {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 20}
FAMILIES = (
    Family("chain_sum", _TWO_TERMS, 8000, 2000, {1: 15, 2: 105}, {1: 0.4, 2: 0.1}, {1: 8}),
    Family("chain_sum_three", _THREE_DIGITS, 6000, 2000, {0: 80}, {0: 0.4}, {0: 12}, generator="chain_sum"),
    Family("products", _FEW_DIGITS, 6000, 1200, {0: 80}, {0: 0.35}, {0: 6}),
    Family("basic_arithmetic", _FEW_DIGITS, 6000, 2000, {0: 80}, {0: 0.2}, {0: 3}),
    Family("lcm", _TWO_NUMBERS, 4000, 2000, {0: 70}, {0: 0.4}, {0: 2}),
    Family("number_format", {"max_num_candidates": 2, "min_n": 1, "max_n": 100}, 3000, 2000, {0: 120}, {0: 0.1}),
    Family(
        "number_sequence",
        {"min_terms": 4, "max_terms": 6, "min_value": 0, "max_value": 20, "max_complexity": 1},
        6000,
        2000,
        {0: 120},
        {0: 0.3},
        {0: 2},
    ),
    Family("gcd", _TWO_NUMBERS, 4000, 120, {0: 60}, {0: 0.5}, use="forgetting check, trap"),
    Family("letter_counting", {"min_words": 1, "max_words": 2}, 1000, 120, {0: 60}, {0: 0.5}, use="trap"),
    Family("syllogism", {}, 1000, 120, {0: 60}, {0: 0.5}, use="trap"),
)


def _stratum(family: Family, prompt: str) -> int:
    if 0 in family.test:
        return 0
    return max(len(n.lstrip("-")) for n in numbers(prompt))


def _is_artefact(name: str, prompt: str, answer: str) -> bool:
    """number_format adds binary floats: 52.278999999999996 is noise of the generator, not a problem."""
    if name != "number_format":
        return False
    shown = [Decimal(n) for n in numbers(prompt)] + [Decimal(answer)]
    return any(-Decimal(n).normalize().as_tuple().exponent > 3 for n in shown)  # type: ignore[operator]


def _fraction(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def build(family: Family) -> tuple[list[dict[str, str | None]], Counter[str]]:
    """The rows of one family, train first, in the generator's order, and how many drawn problems were left out why."""
    import reasoning_gym  # pyright: ignore[reportMissingImports]

    data = reasoning_gym.create_dataset(family.generator or family.name, seed=SEED, size=family.draws, **family.config)
    config = json.dumps(dict(family.config), sort_keys=True)
    source = f"{GENERATOR} {VERSION} {family.generator or family.name} {config} seed={SEED}"
    home: dict[str, str] = {}
    rows: dict[str, list[dict[str, str | None]]] = {"train": [], "test": []}
    tests: Counter[int] = Counter()
    in_train: Counter[str] = Counter()
    seen: set[str] = set()
    left_out: Counter[str] = Counter()
    for index in range(family.draws):
        entry = data[index]
        prompt, answer = entry["question"].strip(), entry["answer"].strip()
        if prompt in seen:
            left_out["repeated"] += 1
            continue
        seen.add(prompt)
        if _is_artefact(family.name, prompt, answer):
            left_out["binary-float noise in a number"] += 1
            continue
        key, stratum = operand_key(prompt, family.name), _stratum(family, prompt)
        if key not in home:
            room = tests[stratum] < family.test[stratum]
            home[key] = "test" if room and _fraction(key) < family.share[stratum] else "train"
            tests[stratum] += home[key] == "test"
            new = True
        else:
            new = False
        split = home[key]
        if split == "test" and not new or in_train[key] >= family.variants.get(stratum, 1):
            left_out["another problem with the same operands"] += 1
            continue
        if split == "train" and len(rows["train"]) >= family.train:
            left_out["enough"] += 1
            continue
        in_train[key] += split == "train"
        rows[split].append(
            {
                "prompt": prompt,
                "answer": answer,
                "solution": solve(family.name, prompt, answer),
                "domain": family.name,
                "source": source,
                "licence": LICENCE,
                "split": split,
            }
        )
    return rows["train"] + rows["test"], left_out


def pack(rows: list[dict[str, str | None]]) -> tuple[bytes, bytes]:
    """(the JSON lines, the same gzipped without a time stamp or a name)."""
    content = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as f:
        f.write(content)
    return content, buffer.getvalue()


README = """# The problems that ship with shoestring

Generated by `tools/generate_problems.py` with {generator} {version}, seed {seed}. Licence of the generator and of these
files: {licence}. Running the tool again gives the same bytes.

One JSON object a line: `prompt`, `answer`, `solution` (a worked derivation computed from the question by
`shoestring.data.solvers`, null where the family has no solver), `domain` (the family), `source` (generator, version,
configuration, seed), `licence`, `split` (`train` or `test`).

Train and test share no operands: problems are split by `shoestring.answers.operand_key` (3 + 5, 5 + 3 and 3 - 5 have
one key; a number sequence is known by its first four terms), and the test holds one problem a key. Where operands are
few (`lcm`, `products`, the sums of one digit) a training key keeps more than one problem: other order, other operator.
In `chain_sum` both terms have one digit or both have two; `chain_sum_three` is the same generator with three terms.

The generator's quirks, kept or left out: `number_sequence` ignores its own `min_value` and `max_value` (terms may be
negative); `number_format` adds binary floats, so about a tenth of its problems show or ask for numbers such as
52.278999999999996: these are left out; in `letter_counting` and `syllogism` one answer is right more often than not,
and in `gcd` nearly so (the answer 1): they ship to check forgetting and to show what a trap looks like.
The generator's answers to `syllogism` are not sound either: it counts "all A are B, some B are C, so some A are C" as
valid. Never train on it. Rows stand in the generator's order, in which problems of few digits come early: sample, do
not take the first n.

| file | use | configuration | train | test | with solution | bytes | sha256 of the file | sha256 of the lines |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{table}

## stories.jsonl.gz

Arithmetic told as short stories of one or two steps, in the manner of GSM8K (Cobbe et al. 2021): 16 templates and all
words of our own, {licence}. Generated by `tools/generate_stories.py`, seed 20251; 2,000 train, 120 test, every one with
its solution, split by `operand_key` like the others.
sha256 of the file `70bb365d1fdb7ec96f5437230bfab5976cf410d1e0228e78c46ce49b9e440c28`,
of the lines `00573d15513a0a8dd41d59abc5023d3025aa2c03038587e6bc3f6ac23e0f51c3`.

## ../heldout.txt

About 1,200 words of plain English prose about ordinary subjects, written for this project and first published with it
(Apache-2.0). It measures the language-model loss before and after training. sha256 `{heldout}`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out: Path = parser.parse_args().out
    from importlib.metadata import version

    if version("reasoning_gym") != VERSION:
        raise SystemExit(f"need reasoning-gym {VERSION}, found {version('reasoning_gym')}")
    out.mkdir(parents=True, exist_ok=True)
    table = []
    for family in FAMILIES:
        rows, left_out = build(family)
        content, packed = pack(rows)
        (out / f"{family.name}.jsonl.gz").write_bytes(packed)
        split = Counter(r["split"] for r in rows)
        solved = sum(r["solution"] is not None for r in rows)
        print(f"{family.name}: {dict(split)}, {solved} solved, {len(packed)} bytes; left out {dict(left_out)}")
        table.append(
            f"| {family.name}.jsonl.gz | {family.use} | `{json.dumps(dict(family.config), sort_keys=True)}` "
            f"| {split['train']} | {split['test']} | {solved} | {len(packed)} "
            f"| `{hashlib.sha256(packed).hexdigest()}` | `{hashlib.sha256(content).hexdigest()}` |"
        )
    heldout = out.parent / "heldout.txt"
    digest = hashlib.sha256(heldout.read_bytes()).hexdigest() if heldout.exists() else "(missing)"
    text = README.format(
        generator=GENERATOR, version=VERSION, seed=SEED, licence=LICENCE, table="\n".join(table), heldout=digest
    )
    (out / "README.md").write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
