"""Everything that computes follows the model's device, shown where no GPU is: the model is on "meta", and no operation may
take tensors of two devices, as none could on a GPU. Values that Python reads back are made up, so only shapes and places
are tested here; tests/parity/test_cuda.py compares numbers where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from shoestring.data.packing import pack  # noqa: E402
from shoestring.generate.engine import Engine, Request  # noqa: E402
from shoestring.models import lora, varlen  # noqa: E402
from shoestring.models.config import DecoderConfig  # noqa: E402
from shoestring.models.decoder import Decoder  # noqa: E402
from shoestring.models.rope import Rope  # noqa: E402
from shoestring.records import Example  # noqa: E402
from shoestring.train.optimiser import NAMES, make  # noqa: E402
from shoestring.train.policy import Policy  # noqa: E402
from shoestring.train.recompute import wrapper  # noqa: E402
from shoestring.train.step import accumulate  # noqa: E402

SIZES: dict[str, Any] = dict(
    family="llama", layers=2, hidden=128, heads=6, kv_heads=2, head_dim=16, intermediate=40, vocab=61, norm_eps=1e-5,
    rope_theta=10000.0, tied=True, max_positions=512,
)  # fmt: skip
MOVES = ("aten._to_copy.default", "aten.copy_.default")


class Apart(TorchDispatchMode):
    """Fails where an operation mixes devices. A scalar on the CPU may meet anything, as on a GPU."""

    ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += 1
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.dim()]
        if len({t.device for t in given}) > 1 and str(func) not in MOVES:
            raise AssertionError(f"{func} of {[(str(t.device), tuple(t.shape)) for t in given]}")
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        return func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """`tolist` of a tensor without values; other readings go through the operation that `Apart` answers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "tolist" and args[0].is_meta:
            return [1] * args[0].shape[0]
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["varlen", "buckets"])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Apart]:
    """Both ways of attention: torch's kernel (whose shapes torch itself knows on meta), and the plan of the CPU."""
    if request.param == "varlen":
        monkeypatch.setattr(varlen, "usable", lambda like, head_dim: like.is_meta)
    with Lists(), Apart() as seen:
        yield seen
    assert seen.ops > 100


def model_of(**sizes: Any) -> Decoder:
    with torch.device("meta"):
        model = Decoder(DecoderConfig(**(SIZES | sizes)))
    return model.to(torch.bfloat16)


def batches(policy: bool = False) -> Any:
    stem = tuple(range(2, 42))
    examples = []
    for k in range(5):
        n = 20 + k % 2 * 20
        tokens = (*stem[:n], *(20 + k for _ in range(3 + 70 * k)))
        extra = dict(advantage=0.5 - k, logprob=(-1.0,) * len(tokens)) if policy else {}
        examples.append(Example(tokens, (0.0,) * n + (1.0,) * (len(tokens) - n), n, **extra))
    made = pack(examples, 400)
    assert any(d.branches for b in made for d in b.documents), "a beginning is shared"
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step(name: Any, watched: Apart) -> None:
    model = model_of(windows=(0, 24))
    optimiser = make(name, model, 1e-3)
    for _ in range(2):
        result = accumulate(model, batches())
        assert result.predictions > 300 and set(optimiser.grads) == set(optimiser.masters)
        optimiser.step(1.0, 1.0)
    placed = {t.device.type for t in optimiser.tensors().values() if t.dim()}
    assert placed == {"meta"}, "state beside the weights"


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_a_policy_step_with_adapters_and_recomputation(policy: Any, watched: Apart) -> None:
    model = model_of(qk_norm=True, qkv_bias=True)
    lora.attach(model, lora.LoraConfig(rank=2), seed=0)
    model.wrap = wrapper(policy)
    optimiser = make("adamw", model, 1e-3)
    accumulate(model, batches(policy=True), Policy())
    assert set(optimiser.grads) == set(optimiser.masters)
    optimiser.step(1.0, 1.0)


@pytest.mark.parametrize("sizes", [{}, {"windows": (7, 0), "embedding_scale": 3.0, "ropes": (Rope(1e4), Rope(5e2)), "rope_of": (1, 0)}])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_engine(sizes: dict[str, Any], temperature: float, watched: Apart) -> None:
    engine = Engine(model_of(**sizes), 4)
    shared = tuple(range(1, 61))
    requests = [Request(p, 9, temperature, seed=k) for k, p in enumerate([shared, shared, (5, 6), (*shared, 9), (7,)])]
    done = engine.generate(requests)
    assert [len(c.tokens) for c in done] == [9] * 5 and engine.counters.steps > 9


def test_a_mixture_is_seen() -> None:
    with Apart(), pytest.raises(AssertionError, match="aten.add"):
        torch.zeros(3) + torch.zeros(3, device="meta")
    with Apart():
        torch.zeros(3, device="meta") + torch.tensor(1.0)
