"""What a stage is handed, and the small types of the conversation between a stage and the pipeline. No torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shoestring.estimate.flops import ModelShape
from shoestring.estimate.lengths import Basis, Sizes
from shoestring.estimate.machine import Profile
from shoestring.estimate.rates import CpuRates, Rates
from shoestring.records import Artifact, Checkpoint, Intent, Quantity, StepReport, Usage

Answer = Literal["go", "stop"]
Event = Intent | StepReport | Usage | Checkpoint | Artifact
Events = Generator[Event, Answer | None, None]


class Overrun(BaseException):
    """The step ran into the ceiling (watchdog.py). A stage that has something to save without a model may catch it."""


@dataclass(frozen=True)
class Facts:
    """What `forecast` may know: the model's sizes, the machine's rates, and what earlier stages will hand over.

    problems, traces: expected counts at this point of the recipe; machine: the lease's sku; trained: whether an
    earlier stage trains (then there is a model of our own to read). sizes: expected tokens of prompts and answers;
    sampled: answers a problem that an earlier stage recorded. machines: how many are leased together; speed: what they do
    in a second (by default this machine's profile).
    """

    shape: ModelShape
    profile: Profile
    machine: str
    stage: str
    problems: int = 0
    traces: int = 0
    trained: bool = False
    sizes: Sizes = Sizes()
    sampled: int = 0
    machines: int = 1
    speed: Rates | None = None

    def rates(self) -> Rates:
        return self.speed or CpuRates(self.shape, self.profile)

    def seconds(self, amount: float) -> Usage:
        """The lease of `amount` wall seconds: of all the machines together."""
        return Usage(self.machine, max(0.0, amount) * self.machines, "second", self.stage)

    def forecast(self, seconds: Quantity, **rest: Any) -> Forecast:
        """A forecast of so many wall seconds, wider where the lengths are expectations rather than read."""
        known: Basis = self.sizes.basis if rest.pop("by_length", True) else "measured"
        low, high = (0.92, 1.1) if known == "measured" else (0.9, 1.15) if self.sizes.stated else (0.6, 1.7)
        mid = max(seconds.mid, 1e-9)
        basis = "literature" if "literature" in (known, seconds.basis) else seconds.basis
        return Forecast(
            (self.seconds(seconds.mid),), low=low * seconds.low / mid, high=high * seconds.high / mid, basis=basis,
            amounts=(low, high), counted=known, **rest,
        )  # fmt: skip


@dataclass(frozen=True)
class Forecast:
    """A stage's expected use. `usages` are the expected quantities; low and high scale the machine seconds.

    The counts and sizes are what the next stage's Facts are made of. tokens and flops are useful ones, with the interval
    that `amounts` scales and the basis `counted`; parts: FLOPs by what they are for; hardware_flops: with what is computed
    again. memory: bytes by part at the peak, of the host or of one GPU; fits: whether they fit (None: not known).
    """

    usages: tuple[Usage, ...]
    low: float = 0.7
    high: float = 1.6
    tokens: int = 0
    flops: float = 0.0
    memory_bytes: int = 0
    problems: int | None = None
    traces: int | None = None
    trains: bool = False
    essential: bool = False  # must run for the result to be usable and scored
    basis: Basis | None = None  # of the seconds; None: that of the machine's profile
    sizes: Sizes | None = None
    sampled: int | None = None
    amounts: tuple[float, float] = (1.0, 1.0)
    counted: Basis = "measured"
    parts: Mapping[str, float] = field(default_factory=dict)
    hardware_flops: float = 0.0
    memory: Mapping[str, int] = field(default_factory=dict)
    fits: bool | None = None
    notes: tuple[str, ...] = ()
    steps: int = 0  # of training; 0: not told


@dataclass
class Context:
    """The world of one stage.

    base: folder of the base model, whose tokenizer and template are used; weights: the latest trained stage's final
    checkpoint (None: the base's own weights), called `model_name` in scores; folder: this stage's own resumable files;
    checkpoints: where it keeps its checkpoints; position: its place in the
    recipe; checkpoint_seconds: replay bound; usd: dollars of machine seconds; accrued: dollars spent by the run so far.
    """

    stage: str
    seed: int
    recipe_hash: str
    run_dir: Path
    folder: Path
    checkpoints: Path
    base: Path
    weights: Path | None
    model_name: str
    machine: str
    shape: ModelShape
    profile: Profile
    inputs: Mapping[str, Path]
    usd: Callable[[float], float]
    accrued: Callable[[], float]
    clock: Callable[[], float]
    position: int = 0
    checkpoint_seconds: float = 55.0
    planned_seconds: float = math.inf  # the most that the plan gives the whole stage
    priced: Callable[[str], bool] = lambda sku: True  # whether a sku has a price of its own
    cost: Callable[[Iterable[Usage]], float] = lambda usages: 0.0  # dollars of what is not posted yet
    fits: Callable[[Intent], bool] = lambda intent: True  # whether an intent would be answered with "go" for its money
    random: bool = False  # weights drawn anew by the seed in place of the base's (sft: start = "random")
    worth: float | None = None  # US dollars that a point of accuracy is worth: training that gains less for its money stops

    def first(self, seconds: float) -> Pace:
        """The pace of a stage that has not stepped: `seconds`, or what the plan gives the whole stage if that is less."""
        return Pace(min(seconds, self.planned_seconds))

    def intent(self, step: int, seconds: float, what: str = "step") -> Intent:
        """The next step's upper bound in lease seconds."""
        return Intent(self.stage, step, (Usage(self.machine, seconds, "second", self.stage),), what)


@dataclass
class Pace:
    """An upper bound for the next step from the last ones. `first` is used before there are any."""

    first: float
    seen: list[float] = field(default_factory=list)

    def upper(self) -> float:
        return 1.5 * max(self.seen[-6:]) + 1.0 if self.seen else self.first

    def add(self, seconds: float) -> None:
        self.seen.append(seconds)


class Journal:
    """Rows of a stage's work, one JSON line each, whole or absent: a killed stage reads back what it had done.

    `append` is one write and one fsync for all the rows of a chunk, closed by a line that names the chunk; rows of a
    chunk without its closing line are dropped on reading.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chunks: dict[str, list[dict[str, Any]]] = {}
        whole = 0
        if path.exists():
            pending: list[dict[str, Any]] = []
            raw = path.read_bytes()
            at = 0
            while (end := raw.find(b"\n", at)) >= 0:
                try:
                    row = json.loads(raw[at:end])
                except ValueError:  # JSONDecodeError, or bytes that are no text
                    break
                if not isinstance(row, dict):
                    break
                at = end + 1
                if "chunk" in row and len(row) == 1:
                    self.chunks[row["chunk"]] = pending
                    pending, whole = [], at
                else:
                    pending.append(row)
            if whole < len(raw):
                with open(path, "r+b") as f:
                    f.truncate(whole)

    def append(self, chunk: str, rows: Iterable[Mapping[str, Any]]) -> None:
        listed = [dict(r) for r in rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in [*listed, {"chunk": chunk}])
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        self.chunks[chunk] = listed

    def rows(self) -> list[dict[str, Any]]:
        return [r for chunk in self.chunks.values() for r in chunk]


def write_json(path: Path, data: Any) -> Path:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Whole or not at all, and on the disk when this returns: a checkpoint that counts on it may follow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as f:
        for r in rows:
            f.write(json.dumps(r, ensure_ascii=False, default=str) + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)
    return path


def drop_torn(path: Path) -> None:
    """Cut off a last line without its end: the writer was killed."""
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        with open(path, "r+b") as f:
            f.truncate(whole)


def read_lines(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]
