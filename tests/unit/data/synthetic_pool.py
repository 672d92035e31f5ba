"""A pool of any size to measure with: prose and procedural questions, exact and near copies, leaks, faults. Run as a program
it writes a pool, or curates one and prints seconds and peak memory as JSON."""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

WORDS = [a + b + c for a in ("ba", "ko", "ri", "mu", "te", "so", "la", "ni") for b in ("ren", "tal", "vik", "dop", "sum", "gar") for c in ("", "a", "in", "os", "ed", "el")]
COMMON = ["the", "of", "and", "to", "is", "that", "what", "how", "are", "with", "which", "each", "if", "find", "there", "by", "it"]


def story(rng: random.Random) -> list[str]:
    return [rng.choice(COMMON) if rng.random() < 0.4 else rng.choice(WORDS) for _ in range(rng.randint(20, 60))]


def rows(count: int, seed: int = 0) -> Iterator[dict[str, object]]:
    """4% exact copies, 4% near copies (a word changed), 1% without an answer, a fifth procedural, 50 domains."""
    rng = random.Random(seed)
    kept: list[tuple[str, str]] = [("what is 1 + 1 ?", "2")]
    for i in range(count):
        kind = rng.random()
        number = rng.randrange(10**6)
        if kind < 0.04:
            text, answer = rng.choice(kept)
        elif kind < 0.08:
            text, answer = rng.choice(kept)
            words = text.split()
            words[rng.randrange(len(words) - 2)] = "changed"
            text = " ".join(words)
        elif kind < 0.28:
            a, b = rng.randrange(10**6), rng.randrange(10**6)
            text, answer = f"State the final answer to the following arithmetic problem: {a} + {b} =", str(a + b)
        else:
            text, answer = f"{' '.join(story(rng))} {number} ?", str(number)
        if kind >= 0.28:
            if len(kept) < 50_000:
                kept.append((text, answer))
            else:
                kept[rng.randrange(len(kept))] = (text, answer)
        yield {
            "prompt": text, "answer": "" if rng.random() < 0.01 else answer, "domain": f"d{i % 50}", "licence": "CC0-1.0",
            "solution": None, "tokens": rng.randrange(100, 9000), "pass_rate": rng.randrange(5) / 4,
        }  # fmt: skip


def write(path: Path, count: int, seed: int = 0) -> Path:
    with path.open("w", encoding="utf-8") as f:
        for row in rows(count, seed):
            f.write(json.dumps(row) + "\n")
    return path


def main(pool: str, folder: str) -> None:
    from shoestring.data.pool import Settings, curate_pool

    against = write(Path(folder).with_suffix(".eval.jsonl"), 1000, 99)
    started, cpu = time.perf_counter(), time.process_time()
    made = curate_pool([pool], [str(against)], Path(folder), Settings(light=1000))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    said = {"wall": round(wall, 1), "cpu": round(cpu, 1), "peak_gib": round(made.peak / 2**30, 3), "children_gib": children / 2**30}
    print(json.dumps({**said, "seconds": made.seconds, "funnel": made.funnel, "runner": made.runner}))


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        write(Path(sys.argv[2]), int(sys.argv[1]))
    else:
        main(sys.argv[1], sys.argv[2])
