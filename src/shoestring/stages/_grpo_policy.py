"""The keys of GRPO's update: which loss, what it is held to, how often a rollout is used, and how old it may be. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from shoestring.tables import nearest
from shoestring.train.variants import ESTIMATORS, IMPORTANCE, VARIANTS, Variant

CRITIC = ("critic_lr", "gamma", "gae_lambda", "value_clip")


@dataclass(frozen=True)
class PolicyConfig:
    """Keys of the update, part of the stage's `Config`; docs/grpo.md explains each.

    variant: the loss by name (`train.variants`). scale, clip_low, clip_high, resample and overlong are the variant's own
    unless given. scale: "std" divides advantages by the group's deviation, "none" does not. clip_low, clip_high: the ratio
    is held in [1 - clip_low, 1 + clip_high]. resample: draws, at most, that replace groups without variance. overlong: the
    last tokens before max_new, over which an answer loses up to one point; 0: none.
    kl: weight of the KL to a reference policy (0: there is none), by `kl_estimator`; reference_every: steps after which the
    policy becomes the reference anew (0: never).
    updates: passes over a step's rollouts; minibatches: optimiser steps a pass. old: whose log-probabilities the ratio is
    made over, the "engine"'s, or the "trainer"'s, computed again before the first update. importance: weighs tokens by
    trainer over engine, "truncated" at importance_cap or "masked" beyond it.
    off_policy: steps by which the rollouts' weights may lag behind, so that rollouts and update can overlap; overlap: they do.
    critic_lr, gamma, gae_lambda, value_clip: PPO's alone.
    """

    variant: str = "bnpo"
    scale: Literal["std", "none"] | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    resample: int | None = None
    overlong: int | None = None
    kl: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    reference_every: int = 0
    updates: int = 1
    minibatches: int = 1
    old: Literal["engine", "trainer"] = "engine"
    importance: Literal["none", "truncated", "masked"] = "none"
    importance_cap: float = 2.0
    off_policy: int = 0
    overlap: bool = True
    critic_lr: float = 1e-5
    gamma: float = 1.0
    gae_lambda: float = 0.95
    value_clip: float = 0.2

    def of(self) -> Variant:
        return VARIANTS[self.variant]

    def scaling(self) -> str:
        return self.scale or self.of().scale

    def bounds(self) -> tuple[float, float]:
        """(low, high) of the gate; of one that reads none, what changes nothing."""
        v = self.of()
        low = v.low if self.clip_low is None else self.clip_low
        high = v.high if self.clip_high is None else self.clip_high
        return (1.0 if low is None else low), (math.inf if high is None else high)

    def draws(self) -> int:
        """How often a step's groups without variance are replaced, at most."""
        return self.of().resample if self.resample is None else self.resample

    def overlong_tokens(self, max_new: int) -> int:
        """Over how many of the last tokens a long answer pays."""
        return round(self.of().overlong * max_new) if self.overlong is None else self.overlong

    def _plain(self, key: str) -> bool:
        return getattr(self, key) == next(f.default for f in fields(PolicyConfig) if f.name == key)

    def check_policy(self, group_keys: tuple[int, int, int]) -> None:
        """ValueError that names the key. group_keys: prompts, max_new and the rank of the adapter (0: none)."""
        prompts, max_new, rank = group_keys
        if self.variant not in VARIANTS:
            raise ValueError(
                f"variant = {self.variant!r} must be one of {', '.join(VARIANTS)}{nearest(self.variant, VARIANTS)}"
            )
        choices = {"scale": (None, "std", "none"), "kl_estimator": ESTIMATORS, "old": ("engine", "trainer"),
                   "importance": IMPORTANCE}  # fmt: skip
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} = {getattr(self, key)!r} must be one of {', '.join(a for a in allowed if a)}")
        least = {"resample": 0, "overlong": 0, "reference_every": 0, "off_policy": 0, "updates": 1, "minibatches": 1}
        for key, low in least.items():
            if (value := getattr(self, key)) is not None and value < low:
                raise ValueError(f"{key} = {value} must be a whole number from {low}")
        for key in ("clip_low", "clip_high", "kl"):
            if (value := getattr(self, key)) is not None and not 0 <= value < math.inf:
                raise ValueError(f"{key} = {value} must be 0 or more")
        if self.clip_low is not None and self.clip_low > 1:
            raise ValueError(f"clip_low = {self.clip_low} must be at most 1: a ratio is never below 0")
        if self.importance_cap <= 1 or not math.isfinite(self.importance_cap):
            raise ValueError(f"importance_cap = {self.importance_cap} must be above 1")
        if self.overlong is not None and self.overlong > max_new:
            raise ValueError(f"overlong = {self.overlong} is a number of the last tokens of max_new = {max_new}")
        if self.minibatches > prompts:
            raise ValueError(f"minibatches = {self.minibatches}: a group is never cut, and a step has prompts = {prompts}")
        self._check_together(rank)

    def _check_together(self, rank: int) -> None:
        """ValueError for a key that nothing would read in this company."""
        v = self.of()
        for key, bound in (("clip_low", v.low), ("clip_high", v.high)):
            if bound is None and getattr(self, key) is not None:
                raise ValueError(f"{key} means nothing to variant = {self.variant!r}, which does not bound the ratio there")
        needs = {
            "kl_estimator": (self.kl > 0, "kl above 0"), "reference_every": (self.kl > 0, "kl above 0"),
            "importance": (self.old == "trainer", 'old = "trainer"'),
            "importance_cap": (self.importance != "none", "importance"), "overlap": (self.off_policy > 0, "off_policy"),
            **{key: (v.critic, 'variant = "ppo"') for key in CRITIC},
        }  # fmt: skip
        for key, (there, what) in needs.items():
            if not there and not self._plain(key):
                raise ValueError(f"{key} = {getattr(self, key)!r} needs {what}: nothing reads it without")
        if not v.critic:
            return
        for key in ("scale", "resample"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} belongs to groups; variant = 'ppo' has its advantages from a critic; leave it out")
        if rank:
            raise ValueError("lora with variant = 'ppo': the critic is a whole model that trains; leave one of the two out")
        if not 0 < self.critic_lr < math.inf or not 0 < self.value_clip < math.inf:
            raise ValueError(f"critic_lr = {self.critic_lr} and value_clip = {self.value_clip} must be above zero")
        for key in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} = {getattr(self, key)} must be from 0 to 1")
