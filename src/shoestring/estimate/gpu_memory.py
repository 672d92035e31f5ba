"""Bytes by part on one GPU: full fine-tuning, LoRA, QLoRA and decoding, sharded or not. Standard library only.

The parts are formulae; three constants come from litgpt's table of 28 LoRA runs (`data/memory_lora_litgpt.csv`): what a
gated layer keeps in an eager stack, what quantised layers keep beside, and what loading a sharded model takes. `total`
and `fits` say what must hold; "runtime" (context, libraries) counts for fitting and is in no table's "max allocated".
"""

from __future__ import annotations

from collections.abc import Mapping

from shoestring.estimate.adapters import adapter_parameters, nf4_bytes
from shoestring.estimate.flops import ModelShape
from shoestring.estimate.gpus import gpu
from shoestring.estimate.job import Job, dimensions
from shoestring.estimate.memory import kv_cache_bytes
from shoestring.records import UserError

METHODS = ("full", "lora", "qlora")
RUNTIME = 700 << 20  # CUDA context, cuBLAS and NCCL workspaces
USABLE = 0.98  # of the card's memory: what the allocator's gaps leave
# bytes a quantised layer's passes keep beside those of a plain one, and its workspace (litgpt's nf4 rows less the weights)
QUANTISED, WORKSPACE = 1.25, 400_000_000
LOADING = 1.09  # a sharded model is materialised whole on each GPU before it is cut (litgpt's FSDP rows)
CHUNKED_LOGITS, WHOLE_LOGITS = 4, 10  # bytes: bf16 and its gradient; fp32, its gradient and the bf16 copy
STATE = {"adamw": 8.0, "adamw8bit": 2.03, "sgd": 4.0}  # bytes a trained weight that the optimiser keeps (fp32 moments)


def layer_bytes(shape: ModelShape, recompute: str = "none", gated: bool = True) -> int:
    """Bytes that one layer keeps for one token until its backward pass, bf16, eager kernels.

    none: two residual inputs and their norms, q, k, v, the attention's output twice, up, gate and their product, rotation.
    A gated layer (Llama's) keeps silu(gate) too, and its RMS norms one fp32 input. selective: without norms' outputs,
    silu and product. full: the layer's input alone.
    """
    if recompute == "full":
        return 2 * shape.hidden
    values = 4 * shape.hidden + 3 * shape.q_width + 2 * shape.kv_width + 3 * shape.intermediate + shape.head_dim
    extra = 2 * shape.intermediate + 4 * shape.hidden if gated else 0
    if recompute == "selective":
        return 2 * (values - 2 * shape.hidden - shape.intermediate)
    return 2 * values + extra


def quantised_bytes(shape: ModelShape, double: bool = True) -> int:
    """Bytes of the weights with every layer's matrices in NF4; `double`: their scales quantised too (QLoRA, section 3)."""
    matrices = shape.layers * shape.stored_layer_weights()
    rest = 2 * (shape.parameters() - matrices)
    return rest + (nf4_bytes(matrices) if double else matrices // 2 + matrices // 16)


def training(
    job: Job,
    method: str = "full",
    rank: int = 16,
    optimiser: str = "adamw",
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    gated: bool = True,
    double_quantised: bool = True,
) -> dict[str, int]:
    """Bytes on each GPU at the peak of training, by part: weights, gradients, moments, activations, logits, adapter, runtime.

    Full training in mixed precision keeps, a weight: bf16 to compute with, an fp32 master (with the moments), a gradient
    in fp32. `sharding` full divides all of it among the GPUs and gathers two layers at once; gradients and optimiser divide
    what their names say (ZeRO 3, 2, 1; Rajbhandari et al. 2020, section 3). Logits: bf16 and their gradient, a chunk in
    fp32 (torchtitan: whole in fp32). Tensor and context ranks divide the activations. UserError for an unknown method,
    optimiser or card.
    """
    if method not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if optimiser not in STATE:
        raise UserError(f"optimiser must be one of {', '.join(STATE)}, not {optimiser!r}")
    gpu(job.gpu)
    shape = job.shape or shape_of(job)
    n = shape.parameters()
    ranks = job.gpus // max(1, job.tensor * job.pipeline) or 1  # context ranks share the shards
    split = job.tensor * job.pipeline  # the model's own cut, on top of sharding
    shard = {"full": ranks, "gradients": 1, "optimiser": 1, "none": 1}.get(job.sharding, 1) * split
    state = (ranks if job.sharding in ("full", "gradients", "optimiser") else 1) * split
    tokens = job.micro_batch * job.seq_len // (job.tensor * job.context)
    layers = -(-shape.layers // job.pipeline)
    kept = tokens * layers * layer_bytes(shape, job.recompute, gated)
    if job.recompute == "full":
        kept += tokens * layer_bytes(shape, "none", gated)
    weight = 2 * n if method != "qlora" else quantised_bytes(shape, double_quantised)
    parts = {
        "weights": weight // shard,
        "gradients": 0,
        "moments": 0,
        "activations": kept,
        "logits": tokens * shape.vocab * (WHOLE_LOGITS if job.stack == "torchtitan" else CHUNKED_LOGITS),
        "adapter": 0,
        "runtime": RUNTIME,
    }
    if job.sharding == "full" and ranks > 1:
        parts["weights"] += 2 * 2 * shape.stored_layer_weights() // split
    if method == "full":
        divided = state if job.sharding in ("full", "gradients") else split
        parts["gradients"] = 4 * n // divided
        parts["moments"] = int((4 + STATE[optimiser]) * n) // state
    else:
        trained = adapter_parameters(shape, rank, targets)
        parts["adapter"] = int(trained * (2 + 4 + 4 + STATE[optimiser]))
        if method == "qlora":
            parts["activations"] = int(kept * QUANTISED) + WORKSPACE
    return parts


def loading(job: Job, method: str = "lora") -> int:
    """Bytes at the start of a sharded run that materialises the whole model on each GPU before cutting it."""
    n = (job.shape or shape_of(job)).parameters()
    return int(LOADING * 2 * (n + n / job.gpus)) if method != "qlora" else quantised_bytes(job.shape or shape_of(job))


def decoding(shape: ModelShape, card: str, sequences: int, context: int, bytes_per_weight: float = 2.0) -> dict[str, int]:
    """Bytes of decoding `sequences` at once with `context` tokens each: weights, KV cache, logits of one step, runtime."""
    gpu(card)
    return {
        "weights": int(bytes_per_weight * shape.parameters()),
        "kv cache": kv_cache_bytes(shape, sequences * context),
        "activations": 2 * sequences * (4 * shape.hidden + 3 * shape.intermediate),
        "logits": 4 * sequences * shape.vocab,
        "runtime": RUNTIME,
    }


def fits(parts: Mapping[str, int], card: str) -> bool:
    """Whether the parts fit the card."""
    return sum(parts.values()) <= USABLE * gpu(card).memory_bytes


def shape_of(job: Job) -> ModelShape:
    """A shape of the job's size where none is known: heads of 128, a gated layer of 8/3 the width."""
    layers, width, vocab = (round(v) for v in dimensions(job))
    width = max(128, width // 128 * 128)
    matrices = max(1, job.parameters - 2 * vocab * width)
    inner = max(1, round((matrices / layers - 4 * width * width) / (3 * width)))
    return ModelShape(layers, width, width // 128, width // 128, 128, inner, vocab, tied=False)
