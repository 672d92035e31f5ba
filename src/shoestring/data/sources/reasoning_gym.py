"""Problems generated on the spot by Reasoning Gym (optional extra: it pins exact versions of what it needs)."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from shoestring import answers
from shoestring.data.solvers import solve
from shoestring.records import Problem, UserError

PREFIX = "gym"
TEST_SHARE = 0.1  # of the operand keys
# Families with more right answers than their gold: of recorded answers that their own verifier pays in full, `exact` refuses 4%
# (shortest_path) to all (group_anagrams); see docs/grading.md. Each accepts 40 golds of 40, metadata read back from JSON.
SCORED = frozenset(
    """advanced_geometry codeio complex_arithmetic countdown cryptarithm decimal_arithmetic fraction_simplification game_of_life
    game_of_life_halting group_anagrams intermediate_integration jugs knights_knaves n_queens number_sorting
    palindrome_generation palindrome_partitioning polynomial_equations polynomial_multiplication pool_matrix power_function
    puzzle24 quantum_lock shortest_path simple_integration sokoban time_intervals tower_of_hanoi word_ladder
    word_sorting""".split()  # noqa: SIM905
)
_DEFAULTS = {"size": 500, "seed": 0}
NONE = "\x00"  # stands for an answer that the generator does not state; it leaves this module in no problem


def _module() -> Any:
    try:
        importlib.import_module("reasoning_gym")
        return importlib.import_module("reasoning_gym.factory")
    except ImportError as error:
        raise UserError(
            f"gym: problems need Reasoning Gym ({error}): pip install 'shoestring[gym]', or use bundled: families"
        ) from None


def _config(query: str) -> dict[str, Any]:
    """The values of `a=1&b=x&c=[1,2]`, read as JSON where they are JSON, else as text."""
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise UserError(f"gym: the configuration {query!r} must read name=value&name=value") from None
    config: dict[str, Any] = {}
    for name, value in pairs:
        try:
            config[name] = json.loads(value)
        except json.JSONDecodeError:
            config[name] = value
    return config


def split_of(key: str) -> str:
    """Name of a key's split: test for a tenth of the keys, whatever the seed and the configuration."""
    fraction = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
    return "test" if fraction < TEST_SHARE else "train"


def load(rest: str, split: str | None = None, check: Callable[[Problem], None] | None = None) -> list[Problem]:
    """The problems of `made`, those that cannot be graded left out."""
    return [p for p in made(rest, split, check) if isinstance(p, Problem)]


def made(
    rest: str, split: str | None = None, check: Callable[[Problem], None] | None = None
) -> Iterator[Problem | str]:
    """The problems of "NAME?config": distinct questions in the generator's order, or why one cannot be graded: a generator
    now and then states a gold that nothing can be compared with, and that says nothing of the others.

    config: Reasoning Gym's own keys for the family, with size (default 500, before splitting and dropping repeats) and
    seed (default 0).
    Families of `SCORED` are graded by their own verifier ("gym"), the others by "exact".
    Train and test share no operands (`answers.operand_key`). Raises UserError if Reasoning Gym is
    missing, the family is unknown, the configuration is refused, or not one of the answers can be graded.
    """
    name, _, query = rest.partition("?")
    factory = _module()
    if name not in factory.DATASETS:
        near = difflib.get_close_matches(name, factory.DATASETS, n=1, cutoff=0.4)
        raise UserError(f"gym: no family {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    config = {**_DEFAULTS, **_config(query)}
    try:
        data = factory.create_dataset(name, **config)
        entries = [data[i] for i in range(int(config["size"]))]
    except (TypeError, ValueError, AssertionError, AttributeError) as error:
        raise UserError(f"gym: {name} refuses its configuration: {' '.join(str(error).split())}") from None
    problems = [p for p in _distinct(name, config, entries) if split in (None, split_of(_key(p)))]
    if not problems:
        raise UserError(f"gym: {name} with {query or 'its defaults'} leaves no problem in the split {split!r}")
    found = [_checked(name, p, check or _gradable) for p in problems]
    if all(isinstance(f, str) for f in found):
        raise UserError(f"gym: {name}: none of its {len(found)} answers can be graded; of the first: {found[0]}")
    yield from found


def _checked(name: str, problem: Problem, check: Callable[[Problem], None]) -> Problem | str:
    if problem.answer == NONE:
        return f"gym: {name}: the answer of {problem.prompt[:60]!r} cannot be graded: the family states none"
    try:
        check(problem)
    except ValueError as error:
        return f"gym: {name}: the answer of {problem.prompt[:60]!r} cannot be graded: {error}"
    return problem


def _key(problem: Problem) -> str:
    return answers.operand_key(problem.prompt, problem.domain)


def _gradable(problem: Problem) -> None:
    answers.equal(None, problem.answer)


def _distinct(name: str, config: Mapping[str, Any], entries: list[Any]) -> list[Problem]:
    shown = {k: v for k, v in config.items() if k != "seed"}
    from importlib.metadata import version  # 10 ms of every command that lists its sources

    source = f"reasoning-gym {version('reasoning_gym')} {name} {json.dumps(shown, sort_keys=True)} seed={config['seed']}"
    seen: dict[str, Problem] = {}
    for entry in entries:
        prompt, answer = entry["question"].strip(), NONE if entry["answer"] is None else str(entry["answer"]).strip()
        if prompt not in seen:
            graded: dict[str, Any] = {}
            if name in SCORED:  # its verifier reads the metadata, as JSON since that is how problems travel
                graded = {"grader": "gym", "grader_args": {"metadata": json.loads(json.dumps(entry["metadata"]))}}
            solution = solve(name, prompt, answer) if answer != NONE and answers.normalise(answer) else None
            seen[prompt] = Problem.make(
                prompt, answer, solution=solution, source=source, licence="Apache-2.0", domain=name, **graded
            )
    return list(seen.values())
