"""Bytes by part, for training and for decoding, and what of it fits this machine. Standard library only.

The parts are formulae; what the runtime itself holds is one measured figure (`RUNTIME`). Measured peaks of SmolLM2-135M
stood within 5% of the sums; `MARGIN` allows for that and for the allocator's gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shoestring.estimate.flops import ModelShape

POLICIES = ("none", "selective", "full")  # of activation recomputation, in the order of what they cost (train.recompute)
RUNTIME = 820 << 20  # measured: what peaks held beside the parts (Python, torch, a tokenizer, freed memory that is kept)
MARGIN = 0.9  # the share of the available memory that a forecast may fill
CHUNK, PANEL = 256, 1024  # rows of fp32 logits alive at once, and of their bf16 gradients (train.losses)


@dataclass(frozen=True)
class MemoryForecast:
    """The policy chosen, the bytes by part under it, and the bytes that were there to choose by (None: not known)."""

    recompute: str
    parts: Mapping[str, int]
    available: int | None

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.available is None or self.total <= MARGIN * self.available


def training_bytes(
    shape: ModelShape,
    rows: int,
    recompute: str = "none",
    optimiser: str = "adamw",
    micro_batches: int = 2,
    adapter: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Bytes of full fine-tuning at its peak: fp32 masters, the optimiser's state, gradients, bf16 weights and activations.

    rows: packed rows of a micro-batch, all of them trained (the most logits there can be). A weight costs 4 (master) + 8,
    2.03 or 4 to 8 (state of adamw, adamw8bit, muon) + 2 (bf16 copy) + 4 (sum of gradients, fp32; 2 where one micro-batch
    makes the step, because its gradients stay in bf16). Logits: a chunk in fp32 twice, a panel of gradients in bf16, the
    head's gradient in bf16 and its fp32 sum where there are several panels.
    adapter: the weight-bound parts where an adapter trains in their place (adapters.adapter_training_bytes). A frozen head
    has no gradient and its panel is a chunk; at the end the merged weights (fp32) stand where the activations were.
    """
    n = shape.parameters()
    head = shape.vocab * shape.hidden
    panels = -(-rows // PANEL)
    parts = {
        "master weights": 4 * n,
        "moments": state_bytes(shape, optimiser),
        "gradients": (2 if micro_batches == 1 else 4) * n,
        "compute copy": 2 * n,
        "activations": rows * kept_bytes(shape, recompute),
        "recomputed layer": rows * activation_bytes(shape) if recompute == "full" else 0,
        "logits": shape.vocab * (8 * min(CHUNK, rows) + 2 * min(PANEL, rows)) + head * (2 if panels == 1 else 6),
    }
    if adapter is not None:
        parts |= {**adapter, "logits": shape.vocab * 10 * min(CHUNK, rows)}
        freed = parts["activations"] + parts["recomputed layer"] + parts["logits"]
        parts["merged weights"] = max(0, 4 * n - freed)
    return parts


def state_bytes(shape: ModelShape, optimiser: str = "adamw") -> int:
    """Bytes that the optimiser keeps beside the masters (train.optimiser)."""
    n = shape.parameters()
    if optimiser == "adamw8bit":
        return 2 * n + 8 * -(-n // 256)
    if optimiser == "muon":
        return 8 * n - 4 * shape.layers * shape.layer_weights()
    return 8 * n


def activation_bytes(shape: ModelShape, recompute: str = "none") -> int:
    """Bytes of activations that one layer keeps for one row, in bf16 unless said.

    none: two residual inputs and their norms (4 · hidden) with two fp32 scales, q, k and v as attention reads them and its
    output twice, by item and by row (3 · q + 2 · kv), its log-sum-exp (fp32, a head), gate and up and what they make
    (3 · intermediate), the rotation's cos and sin (head_dim). Scores that short items keep come on top: up to 224 a head.
    selective: without the norms' outputs and what gate and up make. full: the layer's input alone.
    """
    if recompute == "full":
        return 2 * shape.hidden
    values = 4 * shape.hidden + 3 * shape.q_width + 2 * shape.kv_width + 3 * shape.intermediate + shape.head_dim
    if recompute == "selective":
        values -= 2 * shape.hidden + shape.intermediate
    return 2 * values + 4 * shape.heads + 8


def kept_bytes(shape: ModelShape, recompute: str = "none") -> int:
    """Bytes of activations that all layers keep for one row."""
    return shape.layers * activation_bytes(shape, recompute)


def kv_cache_bytes(shape: ModelShape, tokens: int, bytes_per_value: int = 2) -> int:
    """Bytes of the keys and values of `tokens` cached tokens, over all layers (bf16 unless told)."""
    return 2 * shape.layers * shape.kv_width * bytes_per_value * tokens


def decoding_bytes(shape: ModelShape, sequences: int, context: int, bytes_per_weight: int = 2) -> dict[str, int]:
    """Bytes of decoding `sequences` at once with `context` tokens each: weights, cache, one row of fp32 logits each."""
    return {
        "weights": bytes_per_weight * shape.parameters(),
        "kv cache": kv_cache_bytes(shape, sequences * context),
        "logits": 4 * sequences * shape.vocab,
    }


def rollout_bytes(shape: ModelShape, sequences: int, context: int) -> dict[str, int]:
    """What an engine adds to a trainer in the same process (GRPO): its prepacked copy of the weights, and the cache."""
    return {"prepacked weights": 2 * shape.parameters(), "kv cache": kv_cache_bytes(shape, sequences * context)}


def choose_recompute(
    shape: ModelShape,
    rows: int,
    recompute: str = "auto",
    optimiser: str = "adamw",
    memory_gib: float = 0.0,
    beside: Mapping[str, int] | None = None,
    available: int | None = None,
    adapter: Mapping[str, int] | None = None,
) -> MemoryForecast:
    """The stated policy, or for "auto" the cheapest that fits; where none does, "full", and `fits` says no.

    memory_gib, where not 0, stands for what the machine has; else `available` bytes, or what the machine says now.
    beside: bytes of other things in the process, such as `rollout_bytes`. adapter: as in `training_bytes`.
    """
    if memory_gib:
        available = int(memory_gib * 2**30)
    elif available is None:
        available = available_bytes()
    forecast = None
    for policy in POLICIES if recompute == "auto" else (recompute,):
        parts = training_bytes(shape, rows, policy, optimiser, adapter=adapter) | dict(beside or {}) | {"runtime": RUNTIME}
        forecast = MemoryForecast(policy, parts, available)
        if forecast.fits:
            break
    assert forecast is not None
    return forecast


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a new process may take: what the system has to give, or less where a control group allows less.

    None where the system does not say (there is no /proc outside Linux).
    """
    found: list[int] = []
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    try:
        groups = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        groups = []
    for fields in groups:
        if len(fields) != 3:
            continue
        _, controllers, path = fields
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        inside = [p for p in path.split("/") if p]
        for depth in range(len(inside) + 1):  # a limit of any group above holds too
            room = _room(root.joinpath(*inside[:depth]), *names)
            if room is not None:
                found.append(room)
    return min(found) if found else None


def _room(group: Path, limit_name: str, usage_name: str) -> int | None:
    """A group's limit less its use; pages of files that the kernel would drop do not count as used."""
    try:
        limit, usage = int((group / limit_name).read_text()), int((group / usage_name).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    try:
        stat = dict(line.split(None, 1) for line in (group / "memory.stat").read_text().splitlines())
        usage -= int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
    except (OSError, ValueError):
        pass
    return max(0, limit - max(0, usage))
