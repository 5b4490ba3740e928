"""AdamW: which parameters form a group, and the learning rate of each step as a pure function of the step.

Learning rate of group g at step k:  learning_rate · factor(k) · multiplier(g).

    factor  1 ┤      ╭────╮__
              │    ╱         ‾‾╲__          warm-up is linear and starts above 0, so that step 0 is not wasted
              │  ╱                ‾‾╲__     (`warmup_from_zero`: at 0); then cosine, linear or constant down to
            0 ┼──┬────────────────────┬─ k  `final_fraction` at total_steps
               warm-up           total_steps
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from cclm.engine.adamw import PublishedAdamW
from cclm.errors import ConfigError

PUBLISHED_NO_DECAY = ("bias", "norm.weight")
"""Words in a parameter's name that exempt it from decay under `decay_rule: published`."""
PUBLISHED_DECAYED = ("matching_head.norm.weight", "box_head.norm.weight")
"""Ends of names that are decayed all the same: the published names of these gains hold no word of the rule."""
NORM_TYPES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
"""Modules whose weights are gains: never decayed."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a schedule."""

    total_steps: int
    """Number of optimizer updates of the whole run; the schedule ends there."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of AdamW's running means of the gradient and of its square. CCLM: 0.9, 0.98."""
    eps: float = 1e-8
    """AdamW's epsilon, added after bias correction."""
    weight_decay: float = 0.01
    """Decoupled weight decay (per step: times the learning rate)."""
    warmup_steps: int = 0
    """Steps of linear warm-up; step k of them uses (k + 1) / warmup_steps of the peak."""
    warmup_from_zero: bool = False
    """Step k of the warm-up uses k / warmup_steps instead, as published: step 0 moves nothing but the moments."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    final_fraction: float = 0.0
    """Fraction of the peak that cosine and linear end at."""
    max_grad_norm: float = 1.0
    """Clip the global gradient norm to this; 0 switches clipping off."""
    module_multipliers: Mapping[str, float] = field(default_factory=dict)
    """Learning-rate multipliers by prefix of parameter names, whole components ("model.vision_encoder"), where "*" is
    any one ("model.fusion_encoder.stack.layers.*.cross_attention"); the longest wins."""
    weight_decay_multipliers: Mapping[str, float] = field(default_factory=dict)
    """Weight-decay multipliers by prefix of parameter names, in the same way."""
    decay_embeddings: bool = True
    """Decay token and position embeddings too, as CCLM, open_clip and nanoGPT do. Never decayed: biases, weights of
    norm layers, and everything with fewer than two dimensions (temperature, layer scales, class token)."""

    decay_rule: Literal["module_type", "published"] = "module_type"
    """Which parameters are not decayed. "module_type": those named under `decay_embeddings`. "published": by words in
    their names, as the published runs did, which decays temperature, layer scales, class token and the gains of the
    matching and box heads."""
    update_rule: Literal["torch", "published"] = "torch"
    """"torch": torch's fused AdamW. "published": that of the published runs, decay after the update and eps before the
    bias correction (`cclm.engine.adamw`)."""
    ema_decay: float = 0.0
    """Keep an exponential moving average of the weights with this decay per update, 0.9999 say (`cclm.engine.ema`); it
    is saved with every checkpoint. 0: none."""

    def __post_init__(self) -> None:
        complaints = [text for text, is_right in _rules(self).items() if not is_right]
        if complaints:
            raise ConfigError(
                expected="an optimizer config that obeys its rules",
                got="; ".join(complaints),
                do="Correct these values.",
                where="optimizer",
            )

    def learning_rate_factor(self, step: int) -> float:
        """Fraction of the peak learning rate at `step` (counted from 0). Constant after `total_steps`."""
        if step < self.warmup_steps:
            return (step if self.warmup_from_zero else step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1.0 - progress
        return self.final_fraction + (1.0 - self.final_fraction) * remaining


def _rules(config: OptimizerConfig) -> dict[str, bool]:
    multipliers = [*config.module_multipliers.values(), *config.weight_decay_multipliers.values()]
    return {
        f"total_steps={config.total_steps} (must be ≥ 1)": config.total_steps >= 1,
        f"learning_rate={config.learning_rate} (must be > 0)": config.learning_rate > 0,
        f"betas={config.betas} (must be in [0, 1))": all(0 <= beta < 1 for beta in config.betas),
        f"eps={config.eps} (must be > 0)": config.eps > 0,
        f"ema_decay={config.ema_decay} (must be in [0, 1))": 0 <= config.ema_decay < 1,
        f"weight_decay={config.weight_decay} (must be ≥ 0)": config.weight_decay >= 0,
        f"warmup_steps={config.warmup_steps} with total_steps={config.total_steps} (must be 0 … total_steps)": (
            0 <= config.warmup_steps <= config.total_steps
        ),
        f"schedule={config.schedule!r} (must be cosine, linear or constant)": (
            config.schedule in ("cosine", "linear", "constant")
        ),
        f"decay_rule={config.decay_rule!r} (must be module_type or published)": (
            config.decay_rule in ("module_type", "published")
        ),
        f"update_rule={config.update_rule!r} (must be torch or published)": config.update_rule
        in ("torch", "published"),
        f"final_fraction={config.final_fraction} (must be in [0, 1])": 0 <= config.final_fraction <= 1,
        f"max_grad_norm={config.max_grad_norm} (must be ≥ 0)": config.max_grad_norm >= 0,
        "a multiplier below 0": all(value >= 0 for value in multipliers),
    }


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning-rate multiplier and a weight decay."""

    name: str
    """For logs: "decay", "no_decay", or with the prefix of its multiplier in front ("model.vision/decay")."""
    multiplier: float
    """Of the learning rate."""
    weight_decay: float
    """After multipliers; 0 for parameters that are not decayed."""
    parameters: tuple[nn.Parameter, ...]
    """In the order of `module.named_parameters()`."""


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[ParameterGroup]:
    """Split the trainable parameters of `module` (whole, before any sharding) into groups, in a fixed order.

    Raises ConfigError for a prefix that no parameter has, naming the nearest one.
    """
    prefixes = {*config.module_multipliers, *config.weight_decay_multipliers}
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    _refuse_unknown_prefixes(prefixes, [name for name, _ in named])
    by_name = config.decay_rule == "published"
    undecayed = _undecayed_by_name(named) if by_name else _undecayed(module, config.decay_embeddings)
    members: dict[tuple[str, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        is_decayed = id(parameter) not in undecayed
        members.setdefault((_longest_prefix(name, prefixes), is_decayed), []).append((name, parameter))
    groups = []
    for (prefix, is_decayed), own in sorted(members.items(), key=lambda item: (item[0][0], not item[0][1])):
        names = [name for name, _ in own]
        decay = config.weight_decay * _value(names, prefix, config.weight_decay_multipliers) if is_decayed else 0.0
        groups.append(
            ParameterGroup(
                name=(prefix + "/" if prefix else "") + ("decay" if is_decayed else "no_decay"),
                multiplier=_value(names, prefix, config.module_multipliers),
                weight_decay=decay,
                parameters=tuple(parameter for _, parameter in own),
            )
        )
    return groups


def adamw_groups(groups: Iterable[ParameterGroup]) -> list[dict[str, Any]]:
    """The groups as torch optimizers want them; `name` and `multiplier` ride along."""
    return [
        {
            "params": list(group.parameters),
            "weight_decay": group.weight_decay,
            "name": group.name,
            "multiplier": group.multiplier,
        }
        for group in groups
    ]


def build_adamw(groups: Iterable[ParameterGroup], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW at the learning rate of step 0: torch's fused one (one kernel per group; on CPU too), or the published."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
    optimizer: torch.optim.Optimizer
    if config.update_rule == "published":
        optimizer = PublishedAdamW(adamw_groups(groups), **settings)
    else:
        optimizer = torch.optim.AdamW(adamw_groups(groups), fused=True, **settings)
    set_learning_rates(optimizer, config, 0)
    return optimizer


def set_learning_rates(optimizer: Any, config: OptimizerConfig, step: int) -> dict[str, float]:
    """Write the learning rates of `step` into the optimizer's groups; return them by group name."""
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * config.learning_rate_factor(step) * group["multiplier"]
        rates[group["name"]] = group["lr"]
    return rates


def _undecayed(module: nn.Module, decay_embeddings: bool) -> set[int]:
    """Identities of the parameters without weight decay."""
    undecayed = set()
    for owner in module.modules():
        is_gain = isinstance(owner, NORM_TYPES) or type(owner).__name__.endswith("Norm")
        is_kept = is_gain or (isinstance(owner, nn.Embedding) and not decay_embeddings)
        for name, parameter in owner.named_parameters(recurse=False):
            is_position = "position" in name and not decay_embeddings
            if is_kept or is_position or num_dimensions(parameter) < 2 or "bias" in name:
                undecayed.add(id(parameter))
    return undecayed


def num_dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter, also if ZeRO-3 has left only a share of it here."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _undecayed_by_name(named: Iterable[tuple[str, nn.Parameter]]) -> set[int]:
    """Identities of the parameters that the published rule exempts."""
    return {
        id(parameter)
        for name, parameter in named
        if any(word in name for word in PUBLISHED_NO_DECAY) and not name.endswith(PUBLISHED_DECAYED)
    }


def _longest_prefix(name: str, prefixes: Iterable[str]) -> str:
    fitting = [prefix for prefix in prefixes if _has_prefix(name, prefix)]
    return max(fitting, key=lambda prefix: (prefix.count("."), len(prefix), prefix), default="")


def _has_prefix(name: str, prefix: str) -> bool:
    """Whether the first components of a name are those of the prefix; "*" is any one component."""
    wanted, found = prefix.split("."), name.split(".")
    return len(wanted) <= len(found) and all(want in ("*", have) for want, have in zip(wanted, found, strict=False))


def _value(names: Sequence[str], prefix: str, multipliers: Mapping[str, float]) -> float:
    """The multiplier of a group's members, whose longest prefix of all is `prefix`.

    Raises ConfigError if they have several: two patterns with "*" that overlap.
    """
    values = {multipliers.get(_longest_prefix(name, multipliers), 1.0) for name in names}
    if len(values) > 1:
        raise ConfigError(
            expected=f"one multiplier for everything under {prefix!r}",
            got=", ".join(map(str, sorted(values))),
            do="Name the overlapping prefixes in full instead of with *.",
            where="optimizer",
        )
    return values.pop()


def _refuse_unknown_prefixes(prefixes: Iterable[str], names: list[str]) -> None:
    known = {".".join(parts[:end]) for parts in (name.split(".") for name in names) for end in range(1, len(parts) + 1)}
    unknown = sorted(prefix for prefix in prefixes if not any(_has_prefix(name, prefix) for name in names))
    if unknown:
        nearest = {prefix: difflib.get_close_matches(prefix, known, n=1, cutoff=0.0) for prefix in unknown}
        hints = ", ".join(f"{prefix!r} (nearest: {', '.join(map(repr, found))})" for prefix, found in nearest.items())
        raise ConfigError(
            expected="multipliers for prefixes of parameter names",
            got=hints,
            do="Correct the prefixes in module_multipliers or weight_decay_multipliers.",
            where="optimizer",
        )
