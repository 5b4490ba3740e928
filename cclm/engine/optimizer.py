"""AdamW: which parameters form a group, with which weight decay and multiplier of the learning rate; and its making."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from cclm.engine.adamw import PublishedAdamW, library_adamw
from cclm.engine.options import OptimizerConfig
from cclm.engine.parts import check_prefixes, longest_prefix
from cclm.errors import ConfigError
from cclm.files.text import nearest_word

PUBLISHED_NO_DECAY = ("bias", "norm.weight")
"""Words in a parameter's name that exempt it from decay under `decay_rule: published`."""
PUBLISHED_DECAYED = ("matching_head.norm.weight", "box_head.norm.weight")
"""Ends of names that are decayed all the same: the published names of these gains hold no word of the rule."""
MULTIPLIERS = "optimizer.module_multipliers and weight_decay_multipliers"
Height = tuple[str, int]
"""A tower's name, and the number of blocks down from its top."""
NO_HEIGHT: Height = ("", 0)
NORM_TYPES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
"""Modules whose weights are gains: never decayed."""


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters of `module` (whole, before any sharding) into groups, in a fixed order.

    Returns:
        Groups as torch's optimizers want them ("params", "weight_decay"), with a "multiplier" of the learning rate
        and a "name" for logs: "decay", "no_decay", or with the prefix of its multiplier ("model.vision/decay"), or with
        a tower and the number of blocks down from its top ("model.vision@3/decay").

    Raises:
        ConfigError: no parameter has a prefix (it names the nearest), patterns overlap, or a tower has no blocks.
    """
    rates, decays = config.module_multipliers, config.weight_decay_multipliers
    prefixes = {*rates, *decays}
    check_prefixes(prefixes, [name for name, _ in module.named_parameters()], MULTIPLIERS)
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    undecayed, height_of = _undecayed(module, config), heights(module, config.layer_decay)
    members: dict[tuple[str, Height, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in named:
        height = height_of.get(id(parameter), NO_HEIGHT)
        key = longest_prefix(name, prefixes), height, id(parameter) in undecayed
        members.setdefault(key, {})[name] = parameter
    groups = []
    for (prefix, (tower, down), is_kept), own in sorted(members.items(), key=lambda item: item[0]):
        place = [prefix if prefix != tower else "", f"{tower}@{down}" if tower else ""]
        groups.append(
            {
                "params": list(own.values()),
                "weight_decay": 0.0 if is_kept else config.weight_decay * _value(own, prefix, decays),
                "name": "/".join([*filter(None, place), "no_decay" if is_kept else "decay"]),
                "multiplier": _value(own, prefix, rates) * config.layer_decay.get(tower, 1.0) ** down,
            }
        )
    return groups


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return what an update moves; a parameter that the step did not use gets a gradient of zeros."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return parameters


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients in float64, [].

    On a CPU of small pieces: torch's own of a word table's 96 million is 1 % too small there (float32).
    """
    size = 1 << 14
    pieces = list[Tensor]()
    for gradient in gradients:
        is_cut = gradient.device.type == "cpu" and gradient.numel() > size
        pieces += torch.split(gradient.reshape(-1), size) if is_cut else [gradient]
    return torch.stack(torch._foreach_norm(pieces, 2, dtype=torch.float32)).double().square().sum().sqrt()


def build_adamw(
    groups: list[dict[str, Any]], config: OptimizerConfig, kernel: str = "torch", library: Any = None
) -> torch.optim.Optimizer:
    """AdamW at the learning rate of step 0, by torch's or the published rule: one fused kernel a group, on CPU too.

    `kernel`: as `cclm.ops.choice.choose_optimizer` chose it; "deepspeed" takes the class from `library`.
    """
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
    if kernel == "apex":
        library = import_module("apex.optimizers").FusedAdam
    if kernel != "torch":
        optimizer = library_adamw(library, groups, **settings)
    elif config.update_rule == "published":
        optimizer = PublishedAdamW(groups, **settings)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **settings)
    set_learning_rates(optimizer, config, 0)
    return optimizer


def set_learning_rates(optimizer: Any, config: OptimizerConfig, step: int) -> dict[str, float]:
    """Write the learning rates of `step` into the optimizer's groups; return them by group name."""
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * config.learning_rate_factor(step) * group["multiplier"]
        rates[group["name"]] = group["lr"]
    return rates


def _undecayed(module: nn.Module, config: OptimizerConfig) -> set[int]:
    if config.decay_rule == "published":
        return {
            id(parameter)
            for name, parameter in module.named_parameters()
            if any(word in name for word in PUBLISHED_NO_DECAY) and not name.endswith(PUBLISHED_DECAYED)
        }
    undecayed, decays = set(), config.decay_embeddings
    for owner in module.modules():
        is_gain = isinstance(owner, NORM_TYPES) or type(owner).__name__.endswith("Norm")
        is_kept = is_gain or (isinstance(owner, nn.Embedding) and not decays)
        for name, parameter in owner.named_parameters(recurse=False):
            is_position = "position" in name and not decays
            if is_kept or is_position or num_dimensions(parameter) < 2 or "bias" in name:
                undecayed.add(id(parameter))
    return undecayed


def num_dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter, also if ZeRO-3 has left only a share of it here."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _value(names: Iterable[str], prefix: str, multipliers: Mapping[str, float]) -> float:
    """The multiplier of a group's members, whose longest prefix of all is `prefix`.

    Raises ConfigError if they have several: two patterns with "*" that overlap.
    """
    values = {multipliers.get(longest_prefix(name, multipliers), 1.0) for name in names}
    if len(values) > 1:
        raise ConfigError(
            expected=f"one multiplier for everything under {prefix!r}",
            got=", ".join(map(str, sorted(values))),
            do="Name the overlapping prefixes in full instead of with *.",
            where="optimizer",
        )
    return values.pop()


def heights(module: nn.Module, factors: Mapping[str, float]) -> dict[int, Height]:
    """Return how many blocks from its top each parameter (by identity) of the towers that `factors` names stands.

    The blocks are the members of the innermost lists of modules of one class, in their order: a transformer's layers,
    the blocks inside the stages of a Swin or ConvNeXt. The top block is 1, what stands below all of them (patches,
    words, positions) one more than the lowest, what stands above them (final norm) 0. What stands between two blocks (a
    merging of patches) counts to the lower one.

    Raises:
        ConfigError: there is no such tower, or it has no blocks; the nearest one that has is named.
    """
    towers = {name: (one, list(blocks_of(one))) for name, one in module.named_modules() if name} if factors else {}
    towers = {name: found for name, found in towers.items() if found[1]}
    if unknown := sorted(set(factors) - set(towers)):
        hints = (f"{name!r} (nearest: {nearest_word(name, towers, cutoff=0.0)!r})" for name in unknown)
        raise ConfigError(
            where="optimizer.layer_decay",
            expected="names of towers that have blocks",
            got=", ".join(hints),
            do="Name modules as in model.vision_encoder.",
        )
    found: dict[int, Height] = {}
    for name in sorted(factors, key=len):  # a tower inside another comes later, and wins
        tower, blocks = towers[name]
        found |= {key: (name, down) for key, down in _downs(tower, blocks).items()}
    return found


def blocks_of(tower: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks from the lowest to the top."""
    for child in tower.children():
        if isinstance(child, nn.ModuleList) and len({type(one) for one in child}) == 1:
            for one in child:
                yield from list(blocks_of(one)) or [one]
        else:
            yield from blocks_of(child)


def _downs(tower: nn.Module, blocks: Sequence[nn.Module]) -> dict[int, int]:
    """Blocks down from the top, by the parameter's identity."""
    down_of = {id(value): len(blocks) - number for number, block in enumerate(blocks) for value in block.parameters()}
    top, downs, current = list(blocks[-1].parameters())[-1], {}, len(blocks) + 1
    for parameter in tower.parameters():  # in the order of the modules
        current = down_of.get(id(parameter), current)
        downs[id(parameter)] = current
        if parameter is top:
            current = 0
    return downs
