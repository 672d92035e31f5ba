"""Make the recorded teacher that ships: the right, visibly derived completions of Reasoning Gym's published traces.

    python tools/trim_recorded.py FOLDER    # with pool.jsonl.gz and questions.jsonl.gz (see data/recorded/README.md)

Two files: the completions (rg_traces.jsonl.gz, a recorded teacher) and their questions as problems
(rg_questions.jsonl.gz, a source for curate). The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shoestring import rewards
from shoestring.estimate import lengths
from shoestring.records import Problem

OUT = Path(__file__).resolve().parents[1] / "src" / "shoestring" / "data" / "recorded"
SOURCE = "reasoning-gym-eval"
LICENCES = {"deepseek-r1": "MIT", "qwq-32b": "Apache-2.0", "mistral-small-3.1-24b": "Apache-2.0"}
LEFT_OUT = {"gsm_symbolic"}  # templates of a hundred GSM8K test problems
VISIBLE, LONGEST = 200, 8000  # characters of a completion that shows how, and that a small context holds
QUESTION = 2500  # characters


def read(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as f:
        yield from map(json.loads, f)


def write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Bytes written; no time in the header, so that they depend on the rows alone."""
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=9, mtime=0) as f:
        for row in rows:
            f.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    return path.write_bytes(raw.getvalue())


def problem(row: dict[str, Any]) -> Problem | None:
    """The row's question, or None where its answer cannot be compared as text."""
    made = Problem.make(
        row["question"].strip(), row["answer"].strip(), domain=row["family"], licence="Apache-2.0", source=SOURCE
    )
    try:
        rewards.get(made.grader).check(made)
    except ValueError:
        return None
    return made


def main(folder: Path) -> None:
    facts = {r["id"]: r for r in read(folder / "questions.jsonl.gz")}
    lost: Counter[str] = Counter()
    traces: list[dict[str, Any]] = []
    problems: dict[str, dict[str, Any]] = {}
    for row in read(folder / "pool.jsonl.gz"):
        said = row["response"].strip()
        why = (
            "model" if row["model"] not in LICENCES
            else "family left out" if row["family"] in LEFT_OUT
            else "wrong" if row["score"] != 1.0
            else "no visible derivation" if len(said) < VISIBLE
            else "too long" if len(said) > LONGEST or len(row["question"]) > QUESTION
            else ""
        )  # fmt: skip
        made = problem(row) if not why else None
        if not why and (made is None or rewards.get(made.grader).grade(said, made) != 1.0):
            why = "right to the family's own verifier only"
        if why or made is None:
            lost[why] += 1
            continue
        rate = facts.get(row["question_id"], {}).get("pass_rate")
        tokens = round(lengths.tokens(said))
        traces.append(
            {
                "problem_id": made.id, "question_id": row["question_id"], "question": made.prompt, "answer": made.answer,
                "model": row["model"], "response": said, "score": row["score"], "family": row["family"],
                "licence": LICENCES[row["model"]], "source": SOURCE,
            }
        )  # fmt: skip
        known = problems.setdefault(
            made.prompt,
            {
                "prompt": made.prompt, "answer": made.answer, "domain": made.domain, "source": SOURCE,
                "licence": "Apache-2.0", "pass_rate": rate, "tokens": tokens,
            },
        )  # fmt: skip
        known["tokens"] = min(known["tokens"], tokens)
    rows = [{k: v for k, v in r.items() if v is not None} for r in problems.values()]
    sizes = [write(OUT / "rg_traces.jsonl.gz", traces), write(OUT / "rg_questions.jsonl.gz", rows)]
    print(f"{len(traces)} completions, {sizes[0]} bytes: {dict(Counter(t['model'] for t in traces))}")
    print(f"{len(rows)} questions, {sizes[1]} bytes: {len({r['domain'] for r in rows})} families")
    print(f"left out: {dict(lost.most_common())}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
