"""The compiled operations against the plain ones, forward and backward; and what happens without a compiler."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")

import torch.nn.functional as F  # noqa: E402

from shoestring import native  # noqa: E402
from shoestring.models import attention, kernels  # noqa: E402
from shoestring.records import Document  # noqa: E402
from shoestring.train import losses  # noqa: E402

needs_compiler = pytest.mark.skipif(native.library()[0] is None, reason=f"nothing is compiled here: {native.library()[1]}")
ROWS = [1, 7, 64, 200]  # within, at and beyond the stretch of rows that one sum is taken of


def some(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def error(a: Any, b: Any) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def gradients(call: Any, *inputs: Any, grad: Any) -> tuple[Any, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = call(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


def both(monkeypatch: pytest.MonkeyPatch, call: Any) -> tuple[Any, Any]:
    """What `call` gives compiled, and plainly."""
    compiled = call()
    with monkeypatch.context() as m:
        m.setattr(native, "usable", lambda *tensors: False)
        return compiled, call()


@needs_compiler
@pytest.mark.parametrize("rows", ROWS)
class TestAgainstTheTwins:
    """Forward to the bit or within a few roundings; backward nearer to fp32 than the plain operations, which round more often."""

    def check(self, m: pytest.MonkeyPatch, call: Any, exact: Any, *inputs: Any, grad: Any) -> None:
        ours, plain = both(m, lambda: gradients(call, *inputs, grad=grad))
        wanted = gradients(exact, *(x.float() for x in inputs), grad=grad.float())
        assert error(ours[0], plain[0]) < 1e-3
        for a, b, c in zip(ours, plain, wanted, strict=True):
            assert a.dtype == b.dtype and error(a, c) < max(1.05 * error(b, c), 2e-3)

    def test_norm(self, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        x, weight, grad = some(rows, 48), 1 + 0.2 * some(48, seed=1), some(rows, 48, seed=2)
        exact = lambda x, w: F.rms_norm(x, (48,), w, 1e-5)  # noqa: E731
        self.check(monkeypatch, lambda x, w: kernels.rms_norm(x, w, 1e-5), exact, x, weight, grad=grad)
        out, scale = native.norm(x, weight, 1e-5)
        assert torch.equal(native.norm_again(x, weight, scale), out)

    @pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
    def test_gate(self, rows: int, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def exact(x: Any) -> Any:
            a, b = x.chunk(2, -1)
            return (F.silu(a) if activation == "silu" else F.gelu(a, approximate="tanh")) * b

        self.check(monkeypatch, lambda x: kernels.gate(x, activation), exact, 2 * some(rows, 80), grad=some(rows, 40, seed=1))

    def test_rotation(self, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        angle = torch.arange(rows)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])
        cos, sin, x, grad = angle.cos(), angle.sin(), some(rows, 5 * 8), some(rows, 5 * 8, seed=1)
        ours, plain = both(monkeypatch, lambda: gradients(lambda x: kernels.rotate(x, cos, sin, 3, 2), x, grad=grad))
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))

    def test_cross_entropy(self, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        hidden, weight = some(rows, 32), some(300, 32, seed=1)
        target = torch.randint(0, 300, (rows,), generator=torch.Generator().manual_seed(2))
        coefficient = torch.rand(rows, generator=torch.Generator().manual_seed(3)) / rows

        def call(h: Any, w: Any) -> Any:
            return losses.linear_cross_entropy(h, w, target, coefficient)

        def exact(h: Any, w: Any) -> Any:
            return (F.cross_entropy(h @ w.t(), target, reduction="none") * coefficient).sum()

        self.check(monkeypatch, call, exact, hidden, weight, grad=torch.ones(()))

    @pytest.mark.parametrize("window", [0, 5])
    def test_attention(self, rows: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a pack with a shared trunk: padded slots, and keys that are hidden."""
        documents = [Document(0, rows), Document(rows, rows + 20, 9, ((rows + 9, rows + 13), (rows + 13, rows + 20)))]
        plan = attention.plan_attention(documents, rows + 20, (0, window))

        def call(x: Any) -> Any:
            return attention.attend(x, plan, 6, 2, 8, window=window)

        self.check(monkeypatch, call, call, some(rows + 20, 80), grad=some(rows + 20, 48, seed=1))

    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_logprobs(self, rows: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
        hidden, weight = some(rows, 32), some(300, 32, seed=1)
        target = torch.randint(0, 300, (rows,), generator=torch.Generator().manual_seed(2))

        def call(h: Any, w: Any) -> Any:
            return losses.linear_logprobs(h, w, target, temperature)[0]

        def exact(h: Any, w: Any) -> Any:
            return torch.log_softmax(h @ w.t() / temperature, -1).gather(1, target[:, None])[:, 0]

        self.check(monkeypatch, call, exact, hidden, weight, grad=torch.randn(rows, generator=torch.Generator().manual_seed(4)))
        ours, plain = both(monkeypatch, lambda: losses.linear_logprobs(hidden, weight, target, temperature)[1])
        assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_gradients_add_up_to_the_bit() -> None:
    a, b, c = (some(300, 200, seed=i) for i in range(3))
    held = native.add(a, b)
    assert torch.equal(held, a.float().add_(b)) and torch.equal(a, some(300, 200))
    wanted = held.clone().add_(c)
    assert native.add(held, c) is held and torch.equal(held, wanted)


@needs_compiler
def test_threads_change_nothing() -> None:
    x, weight, grad = some(500, 640), 1 + 0.2 * some(640, seed=1), some(500, 640, seed=2)
    gate, of_gate = some(500, 1280, seed=3), some(500, 640, seed=4)
    target, coefficient = torch.arange(500) % 640, torch.rand(500)
    before, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out, scale = native.norm(x, weight, 1e-5)
            logits = x.clone()
            loss = native.cross_entropy(logits, target, coefficient)
            backward = native.norm_backward(x, weight, scale, grad)
            made.append([out, scale, *backward, native.gate_backward(gate, of_gate), logits, loss])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


@needs_compiler
def test_a_nan_is_not_lost() -> None:
    """A model that has come apart is seen to: the trainer looks at the loss and at the gradient's norm."""
    x, weight = some(4, 32), some(50, 32, seed=1)
    x[2, 3] = float("nan")
    leaf = x.clone().requires_grad_()
    loss = losses.linear_cross_entropy(leaf, weight, torch.zeros(4, dtype=torch.long), torch.ones(4))
    assert loss.isnan()
    out, scale = native.norm(x, 1 + some(32, seed=2), 1e-5)
    assert out[2].isnan().any() and not out[1].isnan().any()
    of_x, of_weight = native.norm_backward(x, 1 + some(32, seed=2), scale, some(4, 32, seed=3))
    assert of_x[2].isnan().any() and of_weight.isnan().any()


@needs_compiler
def test_extremes_of_the_gate() -> None:
    gate = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30, float("nan")]]).bfloat16()
    out = native.gate(torch.cat((gate, torch.ones_like(gate)), -1), "silu")
    assert out[0, 0].abs() < 1e-6 and out[0, 1:3].abs().max() < 1e-30 and out[0, 3] == 0
    assert torch.equal(out[0, 4:7], gate[0, 4:7]) and out[0, 7].isnan()


@needs_compiler
@pytest.mark.parametrize("wrong", [-1, 50])
def test_a_target_beyond_the_vocabulary_is_an_error(wrong: int) -> None:
    hidden, weight = some(4, 32), some(50, 32, seed=1)
    target = torch.tensor([0, 1, wrong, 3])
    for call in (
        lambda: losses.linear_cross_entropy(hidden, weight, target, torch.ones(4)),
        lambda: losses.linear_logprobs(hidden, weight, target),
    ):
        with pytest.raises(IndexError, match="not among the 50 tokens"):
            call()


@needs_compiler
def test_what_is_not_fit_runs_plainly() -> None:
    x = some(6, 8)
    assert native.usable(x) and not native.usable(x.float()) and not native.usable(x.t()) and not native.usable(x, x[:, :4])
    weight = torch.ones(8)
    assert kernels.rms_norm(x.float(), weight, 1e-5).dtype == torch.float32


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SHOESTRING_NATIVE", raising=False)
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.mark.usefixtures("anew")
class TestCompiling:
    def test_without_a_compiler_the_plain_steps_run(self, monkeypatch: pytest.MonkeyPatch, tiny_decoder: Any) -> None:
        from shoestring.generate.engine import Engine, Request

        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.delenv("CC", raising=False)
        assert native.library() == (None, "no C compiler") and not native.usable(torch.zeros(2, dtype=torch.bfloat16))
        with pytest.raises(RuntimeError, match="no C compiler"):
            native.functions()
        engine = Engine(tiny_decoder().to(torch.bfloat16), 4)
        assert len(engine.generate([Request((1, 2, 3), 5)])) == 1
        assert engine.counters.steps and not engine.counters.native_steps

    def test_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHOESTRING_NATIVE", "0")
        assert native.library() == (None, "SHOESTRING_NATIVE=0")

    @pytest.mark.parametrize("script", ["exit 1", "sleep 9", 'touch "${@: -1}"'], ids=["fails", "hangs", "makes rubbish"])
    def test_a_compiler_that_cannot(self, script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "cc").write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "cc").chmod(0o755)
        monkeypatch.setenv("CC", str(tmp_path / "cc"))
        monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(native, "PATIENCE", 0.5)
        found, said = native.library()
        assert found is None and said.startswith(f"{tmp_path / 'cc'} failed: ")
        assert not list((tmp_path / "cache").rglob("*.so"))

    @needs_compiler
    def test_once_a_machine(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
        assert native.library()[0] is not None
        native.library.cache_clear()

        def refused(*args: Any, **rest: Any) -> Any:
            raise AssertionError("compiled again")

        monkeypatch.setattr(subprocess, "run", refused)
        assert native.library()[0] is not None

    @needs_compiler
    def test_a_cache_that_cannot_be_written(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "file"))
        assert native.library()[0] is None
