"""Does rolling ahead beside the update pay? `grpo` with `off_policy = 1`, overlapped and not, on whatever this machine has.

    python -m benchmarks.overlap [--threads 2] [--rounds 5]

A step's rollouts (64 answers of 48 tokens) and an update of their size on SmolLM2-135M, one after the other and side by side,
in turns. A ratio below 1 pays.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time


def main() -> None:
    import torch

    from shoestring.data.packing import pack
    from shoestring.estimate.locate import locate
    from shoestring.generate.engine import Engine, Request
    from shoestring.models import device, folder
    from shoestring.records import Example
    from shoestring.stages._grpo_ahead import Snapshot
    from shoestring.train.optimiser import make
    from shoestring.train.policy import Policy
    from shoestring.train.step import accumulate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = folder.load(locate("smollm2-135m-instruct"), torch.bfloat16, device.choose())
    optimiser, copy = make("adamw", model, 1e-6), Snapshot(model)
    copy.refresh(model)
    engine, rng = Engine(copy.model, 64), random.Random(0)
    prompts = [tuple(rng.randrange(100, 40000) for _ in range(60)) for _ in range(8)]
    requests = [Request(prompts[i // 8], 48, 1.0, i) for i in range(64)]
    made = [(*r.prompt, *(rng.randrange(100, 40000) for _ in range(48))) for r in requests]
    data = [Example(t, (0.0,) * 60 + (1.0,) * 48, 60, rng.gauss(0, 1), (-10.0,) * 108) for t in made]

    def roll() -> None:
        engine.refresh()
        engine.generate(requests)

    def update() -> None:
        accumulate(model, pack(data, 2048), Policy())
        optimiser.step(1.0, 1.0)

    def both() -> None:
        beside = threading.Thread(target=roll)
        beside.start()
        update()
        beside.join()

    def seconds(*jobs: object) -> float:
        began = time.perf_counter()
        for job in jobs:
            job()  # pyright: ignore[reportCallIssue]
        return time.perf_counter() - began

    seconds(roll, update)  # warm
    rounds = [(seconds(roll), seconds(update), seconds(both)) for _ in range(args.rounds)]
    for name, values in zip(("rollout", "update", "side by side"), zip(*rounds, strict=True), strict=True):
        print(f"{name:<14}{statistics.median(values):7.2f} s  {min(values):.2f} to {max(values):.2f}")
    ratios = [b / (r + u) for r, u, b in rounds]
    print(f"side by side over one after the other: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
