"""Small operations on bf16 rows of a CPU, compiled from the C files beside this one.

Between its matrix products a model does hundreds of small operations, and on a CPU each one of the tensor library's costs its
start, a pass over memory and fresh memory for what it makes. The machine's C compiler makes one function of each group, once
a machine (a second), kept in the cache folder. Whoever calls asks `usable` first; the plain operations beside every call are
what runs without a compiler, or with SHOESTRING_NATIVE=0, and the slow twins in the tests.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from shoestring.estimate.machine import cache_folder

HERE = Path(__file__).parent
SOURCES = ("decode.c", "train.c")
MOST = 512  # dimensions of a head, as in common.h
STRETCH = 64  # rows whose part of a weight's gradient is one sum: fixed, so that threads change nothing
PATIENCE = 60.0  # seconds that a compiler may take
FLAGS = [
    "-O3", "-fPIC", "-std=gnu11",
    # without these no sum is taken in parallel and no condition becomes a blend
    "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only", "-fassociative-math",
]  # fmt: skip
WIDE = ["-mprefer-vector-width=512"] if platform.machine().lower() in ("x86_64", "amd64") else []
# OpenMP's functions are left to be found in torch, which has brought its own: a second runtime's threads would wait beside them
ATTEMPTS = (
    ["-march=native", *WIDE, "-fopenmp"],
    ["-march=native", *WIDE, "-fopenmp-simd"],
    ["-mcpu=native", "-fopenmp-simd"],
)

ROWS = 64  # of `filled`
_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
SIGNATURES = {
    "norm": (_P, _P, _P, _P, _N, _N, _F, _N),
    "gate": (_P, _P, _N, _N, _N, _N),
    "place": (_P, _P, _P, _P, _P, _P, _P, _N, _P),
    "attend": (_P, _P, _P, _P, _P, _P, _P, _P),
    "norm_again": (_P, _P, _P, _P, _N, _N, _N),
    "norm_backward": (_P, _P, _P, _P, _P, _P, _N, _N, _N, _N),
    "gate_backward": (_P, _P, _P, _N, _N, _N),
    "rotate": (_P, _P, _P, _P, _N, _N, _N, _N, _F, _N),
    "cross_entropy": (_P, _P, _P, _P, _N, _N, _N),
    "weights": (_P, _P, _N, _N, _N, _N, _F, _N),
    "weights_backward": (_P, _P, _P, _P, _N, _N, _N, _F, _N),
    "add": (_P, _P, _P, _N, _N),
    "logprobs": (_P, _P, _F, _P, _P, _P, _N, _N, _N),
    "logprobs_backward": (_P, _P, _F, _P, _P, _N, _N, _N),
}


def _processor() -> str:
    """What a library that was compiled for this processor may not be run without."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _compile(compiler: str, flags: Sequence[str], to: Path) -> ctypes.CDLL:
    """OSError or SubprocessError where that cannot be."""
    to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        objects = [str(Path(folder) / f"{name}.o") for name in SOURCES]
        linked = str(Path(folder) / "all.so")
        commands = [[*FLAGS, *flags, "-c", str(HERE / n), "-o", o] for n, o in zip(SOURCES, objects, strict=True)]
        for command in (*commands, ["-shared", *objects, "-lm", "-o", linked]):
            subprocess.run([compiler, *command], check=True, capture_output=True, timeout=PATIENCE)
        ctypes.CDLL(linked, mode=os.RTLD_NOW)  # every function that it needs is there
        os.replace(linked, to)
    return ctypes.CDLL(str(to), mode=os.RTLD_NOW)


@functools.lru_cache(1)
def library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled functions and what made them; (None, why there are none) otherwise."""
    if os.environ.get("SHOESTRING_NATIVE") == "0":
        return None, "SHOESTRING_NATIVE=0"
    compiler = next((c for n in (os.environ.get("CC"), "cc", "gcc", "clang") if n and (c := shutil.which(n))), None)
    if compiler is None:
        return None, "no C compiler"
    said, texts = "", [p.read_text("utf-8") for p in sorted(HERE.glob("*.[ch]"))]
    for flags in ATTEMPTS:
        facts = (*texts, *FLAGS, *flags, os.path.realpath(compiler), _processor(), torch.__version__)
        to = cache_folder() / "native" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.so"
        try:
            made = ctypes.CDLL(str(to), mode=os.RTLD_NOW) if to.exists() else _compile(compiler, flags, to)
        except (OSError, subprocess.SubprocessError) as error:
            said = f"{compiler} failed: {error}"
            continue
        for name, arguments in SIGNATURES.items():
            function = getattr(made, f"ss_{name}")
            function.argtypes, function.restype = arguments, None
        return made, f"{Path(compiler).name} {flags[-1]}"
    return None, said


def functions() -> ctypes.CDLL:
    """The compiled functions. RuntimeError where there are none: ask `usable` before."""
    found, why = library()
    if found is None:
        raise RuntimeError(f"nothing is compiled: {why}")
    return found


def usable(*tensors: torch.Tensor) -> bool:
    """Whether these can be handed to a compiled function: bf16, on the CPU, without gaps."""
    fit = all(t.dtype == torch.bfloat16 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
    return fit and library()[0] is not None


def filled(x: torch.Tensor) -> torch.Tensor:
    """x [N, ...], on a CPU with zeros up to a multiple of `ROWS`: oneDNN compiles kernels for every shape of a product, and one
    over 979 rows takes up to twice one over 1,024."""
    more = -x.shape[0] % ROWS if x.device.type == "cpu" else 0
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, more)) if more else x


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm of x [N, D] → ([N, D], each row's scale [N, 1] fp32)."""
    out, scale = torch.empty_like(x), torch.empty(len(x), 1)
    functions().ss_norm(
        x.data_ptr(), weight.data_ptr(), out.data_ptr(), scale.data_ptr(), *x.shape, eps, torch.get_num_threads()
    )
    return out, scale


def norm_again(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`norm`'s output from the scale, bit for bit."""
    out = torch.empty_like(x)
    functions().ss_norm_again(
        x.data_ptr(), weight.data_ptr(), scale.data_ptr(), out.data_ptr(), *x.shape, torch.get_num_threads()
    )
    return out


def norm_backward(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x [N, D] and of weight [D] (fp32)."""
    of_x, sums = torch.empty_like(x), torch.empty(-(-len(x) // STRETCH), x.shape[1])
    functions().ss_norm_backward(
        x.data_ptr(), weight.data_ptr(), scale.data_ptr(), grad.data_ptr(), of_x.data_ptr(), sums.data_ptr(), *x.shape, STRETCH,
        torch.get_num_threads(),
    )  # fmt: skip
    return of_x, sums.sum(0)


def gate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """act(gate) * up: x [N, 2 * size], gate first → [N, size]. activation: "silu" or "gelu_tanh"."""
    rows, size = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, size)
    functions().ss_gate(x.data_ptr(), out.data_ptr(), rows, size, activation == "gelu_tanh", torch.get_num_threads())
    return out


def gate_backward(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient of x [N, 2 * size] from that of silu(gate) * up [N, size]."""
    out = torch.empty_like(x)
    functions().ss_gate_backward(x.data_ptr(), grad.data_ptr(), out.data_ptr(), *grad.shape, torch.get_num_threads())
    return out


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, straight: int, back: bool = False
) -> torch.Tensor:  # fmt: skip
    """The first `turned` heads of x [N, heads * head_dim] rotated by cos, sin [N, head_dim / 2], or turned back."""
    out, half = torch.empty_like(x), cos.shape[-1]
    functions().ss_rotate(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), x.shape[0], turned, straight, half, -1.0 if back else 1.0,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def _check(logits: torch.Tensor, target: torch.Tensor, *numbers: torch.Tensor) -> None:
    """C reads what it is pointed at. IndexError for a target that is no row's, as torch would raise."""
    assert target.dtype == torch.int64 and all(x.dtype == torch.float32 for x in numbers)
    assert all(x.is_contiguous() and x.shape == logits.shape[:1] for x in (target, *numbers))
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < logits.shape[1]:
        raise IndexError(f"a target is not among the {logits.shape[1]} tokens of the vocabulary")


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, coefficient: torch.Tensor) -> torch.Tensor:
    """logits [M, V] become, in place, the gradient of the sum of coefficient[i] * -log softmax(logits[i])[target[i]], whose
    terms [M] fp32 are returned. coefficient [M] fp32, target [M] int64."""
    _check(logits, target, coefficient)
    loss = torch.empty(len(logits))
    functions().ss_cross_entropy(
        logits.data_ptr(), target.data_ptr(), coefficient.data_ptr(), loss.data_ptr(), *logits.shape, torch.get_num_threads()
    )
    return loss


def logprobs(
    logits: torch.Tensor, target: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of logits [M, V] over a temperature: (log softmax at target, log of the sum of exponentials, entropy), each [M] fp32."""
    _check(logits, target)
    out, log_sum, entropy = torch.empty(3, len(logits))
    functions().ss_logprobs(
        logits.data_ptr(), target.data_ptr(), 1.0 / temperature, out.data_ptr(), log_sum.data_ptr(), entropy.data_ptr(),
        *logits.shape, torch.get_num_threads(),
    )  # fmt: skip
    return out, log_sum, entropy


def logprobs_backward(
    logits: torch.Tensor, target: torch.Tensor, temperature: float, log_sum: torch.Tensor, scale: torch.Tensor
) -> None:
    """logits [M, V] become, in place, the gradient by them of the sum of temperature * scale[i] * logprob[i]."""
    _check(logits, target, log_sum, scale)
    functions().ss_logprobs_backward(
        logits.data_ptr(), target.data_ptr(), 1.0 / temperature, log_sum.data_ptr(), scale.data_ptr(), *logits.shape,
        torch.get_num_threads(),
    )  # fmt: skip


def add(held: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """held + x in fp32: in `held` where that is fp32 already, else (bf16) in a tensor of its own. x is bf16."""
    wide = held.dtype == torch.float32
    out = held if wide else torch.empty(held.shape)
    first = None if wide else held.data_ptr()
    functions().ss_add(out.data_ptr(), first, x.data_ptr(), x.numel(), torch.get_num_threads())
    return out


def weights(scores: torch.Tensor, bias: torch.Tensor, scale: float) -> None:
    """Scores [B, H, Lq, Lk] become softmax(scale * score + bias) in place; bias [B, 1, Lq, Lk] fp32, 0 or -inf."""
    assert bias.dtype == torch.float32 and bias.is_contiguous() and bias.shape == (len(scores), 1, *scores.shape[2:])
    functions().ss_weights(scores.data_ptr(), bias.data_ptr(), *scores.shape, scale, torch.get_num_threads())


def weights_backward(
    of_weights: torch.Tensor, held: torch.Tensor, grad: torch.Tensor, out: torch.Tensor, scale: float
) -> None:
    """The gradient of attention's weights [..., Lk] becomes that of its unscaled scores in place. held: the weights; grad, out
    [..., d]: of attention's answers."""
    rows, lk, d = held.numel() // held.shape[-1], held.shape[-1], out.shape[-1]
    functions().ss_weights_backward(
        of_weights.data_ptr(), held.data_ptr(), grad.data_ptr(), out.data_ptr(), rows, lk, d, scale, torch.get_num_threads()
    )
