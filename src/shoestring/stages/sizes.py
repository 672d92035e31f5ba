"""The lengths of a recipe's own problems, sampled when the plan is made: a few rows of each source, no torch, milliseconds.

What cannot be read now (a hub id that is not downloaded, problems that are generated) gives None: the plan then takes
expectations and says so. Bad rows are not this module's business: `check_inputs` finds them.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from shoestring.estimate import lengths
from shoestring.estimate.lengths import Sizes
from shoestring.trees import share_beginnings, tree_rows

ROWS = 32  # read of each source
LINES = 4000  # looked through for rows of the split


@lru_cache(maxsize=64)
def sample(source: str, split: str) -> tuple[tuple[str, str], ...]:
    """(prompt, worked solution or "") of the first rows of a source, () where it cannot be read cheaply."""
    try:
        path, columns = _file(source)
        return tuple(islice(_rows(path, columns, split), ROWS)) if path else ()
    except (OSError, ValueError, EOFError):
        return ()


def _file(source: str) -> tuple[Path | None, dict[str, str]]:
    prefix, colon, rest = source.partition(":")
    if colon and prefix == "bundled":
        from shoestring.data.sources import bundled

        return bundled.pools().get(rest, bundled.folder() / f"{rest}.jsonl.gz"), {}
    name, _, query = source.partition("?")
    path = Path(name).expanduser()
    if not name.endswith((".jsonl", ".jsonl.gz", ".json.gz")) or not path.is_file():
        return None, {}
    return path, dict(parse_qsl(query))


def _rows(path: Path, columns: dict[str, str], split: str) -> Iterable[tuple[str, str]]:
    for row in _parsed(path, split, LINES):
        if row is not None:
            prompt, solution = (row.get(columns.get(k, k)) for k in ("prompt", "solution"))
            if isinstance(prompt, str):
                yield prompt, solution if isinstance(solution, str) else ""


def _parsed(path: Path, split: str, most: int) -> Iterable[dict[str, Any] | None]:
    """The rows of the first `most` lines; None for a line that is no row of the split."""
    for line in _lines(path, split, most):
        row = json.loads(line) if line else None
        yield row if isinstance(row, dict) and row.get("split") in (None, "", split) else None


def _lines(path: Path, split: str, most: int) -> Iterable[str]:
    """The first `most` lines; "" for one that is empty or says that it is of the other split."""
    other = f'"split": "{"test" if split == "train" else "train"}"'
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as f:
        for line in islice(f, most):
            yield "" if other in line or not line.strip() else line  # most lines of the other split are passed over unread


@lru_cache(maxsize=64)
def domains(source: str, split: str) -> dict[str, int] | None:
    """Rows of a source's split by domain; None where they cannot be counted cheaply: no file that is here, or a long one."""
    found: dict[str, int] = {}
    lines = 0
    try:
        path, columns = _file(source)
        if path is None:
            return None
        name = columns.get("domain", "domain")
        plain = re.compile(rf'"{re.escape(name)}": "([^"\\]*)".*"split": "{split}"')  # as shipped: nine thousand rows unparsed
        for line in _lines(path, split, LINES + 1):
            lines += 1
            if not line:
                continue
            if line.count(f'"{name}":') == 1 and line.count('"split":') == 1 and (seen := plain.search(line)):
                key = seen[1]
            else:
                row = json.loads(line)
                if not isinstance(row, dict) or row.get("split") not in (None, "", split):
                    continue
                domain = row.get(name)
                key = domain if isinstance(domain, str) else ""
            found[key] = found.get(key, 0) + 1
    except (OSError, ValueError, EOFError):
        return None
    return None if lines > LINES else found


def drawn(sources: Sequence[str], split: str, each: int) -> tuple[int, int]:
    """(questions, domains) where at most `each` (0: all) of every domain are asked, as `workbench.spread` draws them.

    A source that cannot be counted is taken as one family that has enough."""
    rows: dict[str, int] = {}
    others = 0
    for source in sources:
        counted = domains(source, split)
        others += counted is None
        for domain, n in (counted or {}).items():
            rows[domain] = rows.get(domain, 0) + n
    return sum(min(each, n) if each else n for n in rows.values()) + others * each, len(rows) + others


@lru_cache(maxsize=64)
def of_sources(sources: tuple[str, ...], split: str, batch: int = 32) -> Sizes | None:
    """Sizes over the rows of all sources alike; None where none of them could be read."""
    return of_pairs([pair for s in sources for pair in sample(s, split)], batch)


def of_pairs(pairs: Sequence[tuple[str, str]], batch: int = 32) -> Sizes | None:
    """Sizes of (prompt, answer) texts, each prompt under a chat template. `batch`: rows packed together."""
    if not pairs:
        return None
    prompts = [lengths.tokens(p) for p, _ in pairs]
    answers = [1 + lengths.tokens(a) for _, a in pairs if a]
    whole = len(answers) == len(pairs)
    longest = lengths.BEFORE + lengths.AFTER + max(map(sum, zip(prompts, answers, strict=True))) if whole else 0.0
    shared = lengths.BEFORE + _shared([p for p, _ in pairs], batch) if len(pairs) > 1 and batch > 1 else 0.0
    return Sizes(
        prompt=lengths.BEFORE + sum(prompts) / len(prompts) + lengths.AFTER,
        answer=sum(answers) / len(answers) if answers else 0.0,
        shared=shared * (batch - 1) / batch,
        spread=lengths.spread_of(answers),
        basis="measured",
        longest=longest,
    )


def _shared(prompts: Sequence[str], batch: int) -> float:
    """Tokens a prompt whose rows are computed with a neighbour's, beside the template, in packs of `batch` prompts."""
    step = max(1, len(prompts) // batch)
    codes: dict[str, int] = {}
    rows = [tuple(codes.setdefault(x, len(codes)) for x in lengths.pieces(p)) for p in sorted(prompts[::step])]
    plain = sum(len(r) for r in rows)
    trees = share_beginnings(rows, [max(0, len(r) - 1) for r in rows], range(len(rows)), 1 << 30)
    packed = sum(tree_rows(rows, t) for t in trees)
    return lengths.MENDED * (plain - packed) / len(rows)
