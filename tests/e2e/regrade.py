"""Answer a finished run's unseen problems again from model/ with transformers alone, and grade them again.

As a script: python tests/e2e/regrade.py runs/quickstart
"""

import json
import sys
from pathlib import Path


def regrade(run_dir: Path, limit: int = 0, batch: int = 32) -> dict[str, float]:
    """Shares of identical texts and identical verdicts, and both accuracies, over the last model's unseen problems."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from shoestring import rewards
    from shoestring.records import Problem

    verdicts = [json.loads(line) for line in sorted((run_dir / "verdicts").glob("*.jsonl"))[-1].read_text().splitlines()]
    rows = [r for r in verdicts if r.get("benchmark") == "unseen" and r["prompting"] == "zero-shot"]
    rows = rows[:: max(1, len(rows) // limit)] if limit else rows
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(run_dir / "model", dtype=torch.bfloat16).eval()
    longest = max(r["tokens"] for r in rows)
    texts: list[str] = []
    for i in range(0, len(rows), batch):
        chats = [[{"role": "user", "content": r["prompt"]}] for r in rows[i : i + batch]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        texts += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    exact = rewards.get("exact")
    ours = [r["strict"] for r in rows]
    theirs = [int(exact.grade(t, Problem.make(r["prompt"], r["answer"])) == 1.0) for t, r in zip(texts, rows, strict=True)]
    n = len(rows)
    return {
        "n": n,
        "same_text": sum(t.strip() == r["text"].strip() for t, r in zip(texts, rows, strict=True)) / n,
        "same_verdict": sum(a == b for a, b in zip(ours, theirs, strict=True)) / n,
        "ours": sum(ours) / n,
        "transformers": sum(theirs) / n,
    }


if __name__ == "__main__":
    print(json.dumps(regrade(Path(sys.argv[1]))))
