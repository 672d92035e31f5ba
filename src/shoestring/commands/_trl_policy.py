"""What TRL says of GRPO's loss in other words than the stage does: bounds, level of the ratio, reference, correction."""

from __future__ import annotations

import argparse
from typing import Any

from shoestring.records import UserError

SYNC = 512  # TRL's --ref_model_sync_steps
MODES = {"token_truncate": "truncated", "token_mask": "masked"}
SCALES = {"group": "std", "true": "std", "none": "none", "false": "none"}


def add_keys(args: argparse.Namespace, table: dict[str, Any], places: dict[tuple[str | int, ...], str], at: int) -> None:
    """Put the keys that the flags stand for into the stage's table. Nothing for other commands than grpo."""
    if args.command != "grpo":
        return

    def put(key: str, value: Any, flag: str) -> None:
        table[key], places["stage", at, key] = value, f"--{flag}"

    _level(args, table, put)
    cispo = table.get("variant") == "cispo"
    if args.epsilon is not None:
        put("clip_low", args.epsilon, "epsilon")
    if args.epsilon_high is not None:
        put("clip_high", args.epsilon_high - 1 if cispo else args.epsilon_high, "epsilon_high")
    elif args.epsilon is not None and not cispo:
        put("clip_high", args.epsilon, "epsilon")  # TRL's default for the upper bound is the lower one
    if args.scale_rewards is not None:
        if (said := args.scale_rewards.lower()) not in SCALES:
            raise UserError(f"--scale_rewards {args.scale_rewards}: group or none; a deviation over the batch is not offered")
        put("scale", SCALES[said], "scale_rewards")
    if args.sync_ref_model:
        put("reference_every", args.ref_model_sync_steps or SYNC, "sync_ref_model")
    elif args.ref_model_sync_steps is not None:
        raise UserError("--ref_model_sync_steps belongs to --sync_ref_model")
    mode = args.vllm_importance_sampling_mode
    if args.vllm_importance_sampling_correction:
        if (mode or "token_truncate") not in MODES:
            raise UserError(f"--vllm_importance_sampling_mode {mode}: one of {', '.join(MODES)}")
        put("old", "trainer", "vllm_importance_sampling_correction")
        put("importance", MODES[mode or "token_truncate"], "vllm_importance_sampling_correction")
    elif mode is not None:
        raise UserError("--vllm_importance_sampling_mode belongs to --vllm_importance_sampling_correction")


def _level(args: argparse.Namespace, table: dict[str, Any], put: Any) -> None:
    level, kind = args.importance_sampling_level, table.get("variant", "grpo")
    if level in (None, "token") and kind not in ("gspo", "luspo"):
        return
    if level not in (None, "token", "sequence"):
        raise UserError(f"--importance_sampling_level {level}: token or sequence")
    if level == "token" or (level == "sequence" and kind not in ("grpo", "gspo", "luspo")):
        raise UserError(f"--importance_sampling_level {level} with --loss_type {kind}: there is no such loss")
    if kind == "grpo":
        put("variant", "gspo", "importance_sampling_level")
