"""Agreement with lm-evaluation-harness: the same GSM8K problems, prompts and greedy settings, verdict by verdict.

The harness is installed into a virtual environment of its own (or taken from SHOESTRING_LM_EVAL, the folder of one). Both ask
one server. Verdicts that differ are listed with their reason, and a difference without one fails the test.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from shoestring.data import benchmarks

DATA = tiny_run.ROOT.parent / "shared" / "data" / "gsm8k" / "test_dev1000.jsonl.gz"
TASK = """
task: slice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 0
generation_kwargs:
  until: ["<|im_end|>"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: {most}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
filter_list:
  - name: strict
    filter:
      - function: regex
        regex_pattern: "(?i:answer)\\\\**\\\\s*:\\\\**\\\\s*\\\\$?(-?[0-9][0-9.,]*)"
        group_select: -1
      - function: take_first
  - name: lenient
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"
      - function: take_first
"""  # metrics, and the lenient filter, as the harness's own gsm8k task has them; the strict one reads our template's mark

REASONS = {  # a difference that is meant: its pattern in the answer → why the verdicts differ
    r"\.0+\b": "18.00 is 18 to us; the harness compares digits as text",
    r"\\boxed\{": "a box is a mark to us; the harness's pattern knows only 'Answer:'",
    r"Answer: \d[\d,]* [a-z]": "'18 dollars' is not the number alone that the prompt asks for; the harness reads its digits",
}


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a virtual environment that has lm_eval."""
    given = os.environ.get("SHOESTRING_LM_EVAL")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("lm-eval")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "-q", "lm_eval[api]", "-c", str(tiny_run.ROOT / "constraints.txt")]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"lm_eval cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def slice_of(folder: Path, n: int) -> tuple[Path, Path]:
    """(the first n problems as their authors write them, the same with our prompt, for the harness)."""
    if not DATA.exists():
        pytest.skip("the GSM8K data that is shared between projects is not on this machine")
    with gzip.open(DATA, "rt", encoding="utf-8") as f:
        raw = [json.loads(x) for x in itertools.islice(f, n)]
    ours = folder / "ours.jsonl"
    ours.write_text("".join(json.dumps(r) + "\n" for r in raw))
    found = benchmarks.load(benchmarks.get("gsm8k"), str(ours)).problems
    theirs = folder / "theirs.jsonl"
    rows = [{"id": p.id, "prompt": p.prompt, "answer": p.answer} for p in found]
    theirs.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return ours, theirs


def judged(harness: Path, folder: Path, theirs: Path, url: str, model: str, most: int) -> dict[str, dict[str, Any]]:
    """Problem → {"text", "strict", "lenient"} by the harness."""
    (folder / "slice.yaml").write_text(TASK.format(file=theirs, most=most))
    where = f"model={model},base_url={url}/chat/completions,num_concurrent=1,max_retries=1,tokenized_requests=False,timeout=300"
    command = [
        str(harness / "bin" / "lm_eval"), "run", "--model", "local-chat-completions", "--model_args", where, "--tasks", "slice",
        "--include_path", str(folder), "--apply_chat_template", "--log_samples", "--output_path", str(folder / "out"),
    ]  # fmt: skip
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    out: dict[str, dict[str, Any]] = {}
    for path in (folder / "out").rglob("samples_slice_*.jsonl"):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            one = out.setdefault(row["doc"]["id"], {"text": row["resps"][0][0]})
            one[row["filter"]] = int(row["exact_match"])
    return out


def ours_of(world: tiny_run.World, folder: Path, data: Path, base: str, url: str, model: str, most: int) -> list[dict[str, Any]]:
    world.ok(
        "eval", base, "--endpoint", url, "--endpoint_model", model, "--benchmark", "gsm8k", "--data", data, "--max_new", most,
        "--concurrency", 1, "--budget", "100 USD", "--rate", "0.10 USD/hour", "--output_dir", folder / "run",
    )  # fmt: skip
    rows = [json.loads(x) for p in (folder / "run" / "evaluations").glob("*.jsonl") for x in p.read_text().splitlines()]
    return [r for r in rows if "problem_id" in r]


def compared(ours: list[dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> tuple[int, list[str], list[str]]:
    """(problems whose texts are the same, differences with their reason, differences without one); printed."""
    same, explained, unexplained = 0, [], []
    for r in ours:
        other = theirs[r["problem_id"]]
        same += r["text"].strip() == other["text"].strip()
        for reading in ("strict", "lenient"):
            if r[reading] != other[reading]:
                why = next((w for pattern, w in REASONS.items() if re.search(pattern, r["text"])), "")
                line = f"{r['problem_id']} {reading}: ours {r[reading]}, harness {other[reading]}: {why or r['text'][-60:]!r}"
                (explained if why else unexplained).append(line)
    counts = {k: (sum(r[k] for r in ours), sum(t[k] for t in theirs.values())) for k in ("strict", "lenient")}
    print(f"\n{len(ours)} problems, {same} texts alike; right (ours, harness): {counts}")
    print("\n".join([*explained, *unexplained]) or "no verdict differs")
    return same, explained, unexplained


FORMS = (
    "Answer: {0}", "Answer: ${0}.", "**Answer:** {0}", "Answer: {0}.00", "so the answer is {0}", "Answer: {1}", "Answer: {0:,}",
    "It is \\boxed{{{0}}}.", "Answer: {0} dollars", "I do not know.",
)  # fmt: skip


class Scripted(BaseHTTPRequestHandler):
    """Each problem's worked solution, then its answer in one of FORMS; some are wrong."""

    replies: dict[str, str] = {}

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = self.replies[body["messages"][-1]["content"]]
        usage = {"prompt_tokens": 200, "completion_tokens": max(1, len(said) // 4), "total_tokens": 200 + len(said) // 4}
        if body.get("stream"):
            chunk = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": said}, "finish_reason": "stop"}]}
            last = {"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": usage}
            raw = "".join(f"data: {json.dumps(c)}\n\n" for c in (chunk, last)) + "data: [DONE]\n\n"
            kind = "text/event-stream"
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            raw, kind = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}), "application/json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw.encode())))
        self.end_headers()
        self.wfile.write(raw.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.slow
def test_verdicts_of_the_same_texts(harness: Path, tmp_path: Path) -> None:
    """200 answers in ten forms: one text, two graders."""
    world = tiny_run.make_world()
    ours, theirs = slice_of(tmp_path, 200)
    rows = [json.loads(x) for x in theirs.read_text().splitlines()]
    raw = [json.loads(x) for x in ours.read_text().splitlines()]
    Scripted.replies = {
        r["prompt"]: source["solution"].rpartition("####")[0] + FORMS[i % len(FORMS)].format(int(r["answer"]), int(r["answer"]) + 1)
        for i, (r, source) in enumerate(zip(rows, raw, strict=True))
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        made = ours_of(world, tmp_path, ours, str(world.base), url, "scripted", 512)
        same, explained, unexplained = compared(made, judged(harness, tmp_path, theirs, url, "scripted", 512))
    finally:
        server.shutdown()
    assert same == 200 and not unexplained, unexplained
    assert sum(r["strict"] for r in made) == 120, "six forms of ten are right and marked by a number alone or a box"
    assert {w for w in REASONS.values() if any(w in line for line in explained)} == set(REASONS.values()), "no reason is idle"


@pytest.mark.slow
def test_a_real_model(harness: Path, tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct behind our server, one request at a time: the same greedy texts, and so the same verdicts."""
    world = tiny_run.make_world()
    n = int(os.environ.get("SHOESTRING_LM_EVAL_N", "12"))
    ours, theirs = slice_of(tmp_path, n)
    served = world.start("serve", "smollm2-135m-instruct", "--port", "0", bufsize=1)
    try:
        assert served.stdout is not None
        line = next(x for x in served.stdout if "http://" in x)
        url = re.search(r"http://\S+/v1", line)
        assert url, line
        made = ours_of(world, tmp_path, ours, "smollm2-135m-instruct", url[0], "smollm2-135m-instruct", 128)
        same, _, unexplained = compared(made, judged(harness, tmp_path, theirs, url[0], "smollm2-135m-instruct", 128))
    finally:
        served.terminate()
        served.communicate(timeout=30)
    assert same == n and not unexplained, unexplained
