"""A whole run in seconds: a tiny random Llama with SmolLM2's tokenizer, sums of one digit, and the CLI in a subprocess.

The machine costs 3600 USD an hour, so that a dollar is a second. The machine's profile is written, not measured.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 150.0  # seconds that no tiny run takes, even on a busy machine

# a run whose checkpoints come every second: a kill then falls between them, not before the first
OFTEN = """
import sys
from shoestring import cli
from shoestring.stages.context import Context
Context.__init__.__defaults__ = tuple(1.0 if d == 55.0 else d for d in Context.__init__.__defaults__)
sys.exit(cli.main())
"""

RECIPE = """
name = "tiny"
budget = "{budget}"
machine = "this"
rate = "3600 USD/hour"
base = "{base}"
seed = 7

[[stage]]
use = "evaluate"
name = "score-base"
sources = ["{problems}"]
max_new = 8
per_family = 12
shots = 1
heldout = false

[[stage]]
use = "curate"
sources = ["{problems}"]
against = ["{problems}"]
count = 24
candidates = 28
samples = 1
shots = 1
max_new = 8
too_easy = 1.0
family_high = 1.0

[[stage]]
use = "distill"
samples = 2
max_new = 8

[[stage]]
use = "sft"
epochs = {epochs}
batch = 8
lr = 1e-2

[[stage]]
use = "grpo"
steps = {steps}
prompts = 4
group = 6
max_new = 8
lr = 1e-3

[[stage]]
use = "evaluate"
name = "score-last"
sources = ["{problems}"]
max_new = 8
per_family = 12
"""


@dataclass
class Done:
    """What a command did. `folder` is the run's, where it had one."""

    code: int
    out: str
    err: str
    seconds: float

    def one_line(self) -> str:
        """The only line on stderr of a refused command: exit code 2 and no traceback."""
        lines = self.err.strip().splitlines()
        assert self.code == 2, f"exit {self.code}\n{self.out[-2000:]}\n{self.err[-4000:]}"
        assert len(lines) == 1 and lines[0].startswith("shoestring: "), self.err
        assert "Traceback" not in self.out
        return lines[0].removeprefix("shoestring: ")


@dataclass
class World:
    """A base model, problems and a cache in one folder."""

    root: Path
    base: Path
    problems: Path
    env: dict[str, str] = field(default_factory=dict)

    def recipe(self, folder: Path, text: str = RECIPE, **values: Any) -> Path:
        values = {"budget": "200 USD", "base": self.base, "problems": self.problems, "epochs": 20, "steps": 16} | values
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "tiny.toml"
        path.write_text(text.format(**values), encoding="utf-8")
        return path

    def command(self, *args: Any, often: bool = False) -> list[str]:
        return [sys.executable, *(["-c", OFTEN] if often else ["-m", "shoestring.cli"]), *map(str, args)]

    def start(self, *args: Any, often: bool = False, env: Mapping[str, str] | None = None, **rest: Any) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*args, often=often), env=self.env | dict(env or {}), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **rest,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen, began: float | None = None) -> Done:
        began = time.monotonic() if began is None else began
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"no end after {TIMEOUT:.0f} s\n{out[-3000:]}\n{err[-3000:]}") from None
        return Done(process.returncode, out, err, time.monotonic() - began)

    def run(self, *args: Any, often: bool = False, env: Mapping[str, str] | None = None, **rest: Any) -> Done:
        began = time.monotonic()
        return self.finish(self.start(*args, often=often, env=env, **rest), began)

    def ok(self, *args: Any, **rest: Any) -> Done:
        done = self.run(*args, **rest)
        assert done.code == 0, f"exit {done.code}\n{done.out[-3000:]}\n{done.err[-4000:]}"
        return done


def _problems(path: Path) -> Path:
    """All sums of two digits, order-free: 43 to learn from, 12 unseen."""
    pairs = [(a, b) for a in range(10) for b in range(a, 10)]
    random.Random(3).shuffle(pairs)
    rows = [
        {
            "prompt": f"What is {a} + {b}?", "answer": str(a + b), "solution": f"Answer: {a + b}", "domain": "sums",
            "split": "test" if i < 12 else "train", "licence": "CC0-1.0", "source": "tiny",
        }
        for i, (a, b) in enumerate(pairs)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def _base(folder: Path) -> Path:
    """Random weights under SmolLM2's tokenizer and template."""
    import torch

    from shoestring import export
    from shoestring.models import folder as folders
    from shoestring.models.config import DecoderConfig
    from shoestring.models.decoder import Decoder
    from shoestring.records import UserError

    try:
        real = export.base_folder("smollm2-135m-instruct")
    except UserError as e:
        pytest.skip(f"the tiny model borrows SmolLM2's tokenizer: {e}")
    like = folder.with_name("like")
    like.mkdir()
    for name in folders.SIDE_FILES:
        if (real / name).exists():
            shutil.copyfile(real / name, like / name)
    ids = json.loads((real / "config.json").read_text())
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": 49152,
        "max_position_embeddings": 1024, "tie_word_embeddings": True, "bos_token_id": ids["bos_token_id"],
        "eos_token_id": ids["eos_token_id"], "pad_token_id": ids["pad_token_id"], "dtype": "float32",
    }  # fmt: skip
    (like / "config.json").write_text(json.dumps(config))
    sizes = DecoderConfig(
        family="llama", layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=64, vocab=49152,
        norm_eps=1e-5, rope_theta=10000.0, tied=True, max_positions=1024,
    )  # fmt: skip
    return folders.save(Decoder(sizes).randomise(1, 0.05), folder, like, dtype=torch.float32)


def _profile(path: Path, parameters: int) -> None:
    from shoestring.estimate.machine import Profile, profile_key, save_profile
    from shoestring.records import Quantity

    def rate(x: float) -> Quantity:
        return Quantity(0.8 * x, x, 1.2 * x, "measured")

    profile = Profile(
        train_flops=rate(2e10), decode_tokens=rate(2000.0), prefill_tokens=rate(8000.0), load_seconds=rate(2.0),
        disk_bytes_per_second=rate(3e8), basis="measured", parameters=parameters,
    )  # fmt: skip
    assert save_profile(profile_key(version("torch"), count=1), profile, path)


@functools.cache
def make_world() -> World:
    """Made once a session, shared by e2e and faults."""
    pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
    from shoestring.estimate.headers import model_shape

    root = Path(tempfile.mkdtemp(prefix="shoestring-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    base = _base(root / "base")
    cache = root / "cache"
    _profile(cache / "profile.json", model_shape(str(base)).parameters())
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SHOESTRING", "OMP", "COVERAGE"))}
    env |= {
        "SHOESTRING_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "PYTHONDONTWRITEBYTECODE": "",
    }  # fmt: skip
    return World(root, base, _problems(root / "sums.jsonl"), env)


@functools.cache
def reference() -> Path:
    """The folder of one uninterrupted run: what every stopped and killed run must end in."""
    world = make_world()
    recipe = world.recipe(world.root / "reference")
    world.ok("run", recipe, "--runs", world.root / "reference")
    return world.root / "reference" / "tiny"


def beside(file: str, name: str) -> Any:
    """The module `name` that lies beside the test `file`: tests are imported by path, so their folders are not on it."""
    spec = importlib.util.spec_from_file_location(f"_{name}", Path(file).with_name(name + ".py"))
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


# reading a run


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(run: Path) -> dict[str, str]:
    """Hashes of the result and of every stage's final checkpoint."""
    found = sorted(run.glob("checkpoints/*/step-*/state.safetensors"))
    return {str(p.relative_to(run)): digest(p) for p in [run / "model" / "model.safetensors", *found]}


def scores(run: Path) -> list[dict[str, Any]]:
    """The scores, without what they had cost by then."""
    rows = json.loads((run / "scores.json").read_text())
    return [{k: v for k, v in r.items() if k != "usd"} for r in rows]


def entries(run: Path) -> list[dict[str, Any]]:
    """The whole lines of the ledger."""
    path = run / "ledger.jsonl"
    raw = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]


@dataclass
class Attempt:
    """One process's lease: what was posted for it, and when it began and ended."""

    begun: float
    ended: float
    reason: str
    seconds: dict[str, float]

    @property
    def posted(self) -> float:
        return sum(self.seconds.values())


def attempts(run: Path) -> dict[str, Attempt]:
    made: dict[str, Attempt] = {}
    for e in entries(run):
        p = e["payload"]
        if e["kind"] == "attempt":
            made[p["attempt"]] = Attempt(p["lease_start"], 0.0, "", {})
        elif e["kind"] == "end":
            made[p["attempt"]].ended, made[p["attempt"]].reason = e["time"], p["reason"]
        for u in p.get("usages", []) if e["kind"] == "release" else [p] if e["kind"] == "usage" else []:
            by = made[u["attempt"]].seconds
            by[u["outcome"]] = by.get(u["outcome"], 0.0) + u["quantity"]
    return made


def total(run: Path) -> float:
    return float(json.loads((run / "bill.json").read_text())["marginal"]["total"])


def metrics(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    raw = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = TIMEOUT) -> None:
    """Until the condition holds. An error if the process ends before."""
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"exit {process.returncode} before what was waited for\n{out[-2000:]}\n{err[-3000:]}")
        time.sleep(0.01)


def steps_done(run: Path, stage: str) -> int:
    return max((r["step"] for r in metrics(run) if r["stage"] == stage), default=0)


def interrupt(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)


def same_end(run: Path, finished: Path) -> None:
    """Everything that the result consists of equals the uninterrupted run's."""
    assert weights(run) == weights(finished)
    assert scores(run) == scores(finished)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    for name in ("problems.jsonl", "traces/distill.jsonl", "funnel.json", "samples.json"):
        assert (run / name).read_text() == (finished / name).read_text(), name
    from shoestring.cost.ledger import Ledger

    with Ledger.open(run / "ledger.jsonl") as ledger:
        assert ledger.verify() == len(entries(run))
        assert not ledger.open_reservations()
    assert total(run) < 200
