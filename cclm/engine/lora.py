"""LoRA (arXiv 2106.09685) through `peft`: linear layers keep their weight and learn a product of two small matrices.

    add_lora          before an engine takes the module: W x becomes W x + alpha / rank · B A x, with W frozen
    without_adapters  a checkpoint's weights as those of an ordinary model: W + alpha / rank · B A

What training saves and resumes has peft's names; whoever reads weights of a checkpoint (export, evaluation, a run that
starts from it) sees the ordinary ones, and needs no peft.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from cclm.engine.options import LoraOptions
from cclm.engine.parts import check_prefixes, has_prefix
from cclm.errors import ConfigError
from cclm.rows.guard import optional_library

BASE = ".base_layer."
"""In peft's names: behind it the layer's own parameters."""
ALPHA = "lora_alpha_whole"
"""A buffer beside the two matrices; whole, so that no engine rounds it to bf16."""


class Stored(Protocol):
    """A tensor that is read when it is asked for."""

    def whole(self) -> Tensor:
        """Read it."""


StoredType = TypeVar("StoredType", bound=Stored)


def add_lora(module: nn.Module, options: LoraOptions) -> None:
    """Give the linear layers of parts of a training module adapters, and freeze all else in these parts.

    Call it on every rank after the same seed; under ZeRO-3 the layers may be sharded already.

    Raises:
        MissingDependencyError: peft is not installed.
        ConfigError: there is no such part, or it has no linear layer.
    """
    peft: Any = optional_library("peft", "it makes the adapters of LoRA", do="pip install 'cclm-pretraining[lora]'")
    before = {name: parameter.requires_grad for name, parameter in module.named_parameters(remove_duplicate=False)}
    check_prefixes(options.parts, list(before), "finetune.lora.parts")

    def is_inside(name: str) -> bool:
        return any(has_prefix(name, prefix) for prefix in options.parts)

    targets = [name for name, part in module.named_modules() if isinstance(part, nn.Linear) and is_inside(name)]
    if bare := [one for one in options.parts if not any(has_prefix(name, one) for name in targets)]:
        do = "Leave it out, or name the part around it (start.freeze freezes a part without adapters)."
        raise ConfigError(where="finetune.lora.parts", expected="parts with linear layers", got=", ".join(bare), do=do)
    settings = peft.LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=targets
    )
    peft.inject_adapter_in_model(settings, module)
    named = [(name.replace(BASE, "."), one) for name, one in module.named_parameters(remove_duplicate=False)]
    for name, parameter in named:  # peft has frozen the heads, too
        parameter.requires_grad_(before.get(name, True))
    for name, parameter in named:  # a shared one is frozen by any of its names
        if name in before and is_inside(name):
            parameter.requires_grad_(False)
    for part in module.modules():
        if hasattr(part, "lora_A"):
            part.register_buffer(ALPHA, torch.tensor(options.alpha))


def without_adapters(found: Mapping[str, StoredType], make: Callable[[Tensor], StoredType]) -> dict[str, StoredType]:
    """Return stored weights with each adapter added to its layer, by the layer's own names; `make` stores a tensor."""
    plain: dict[str, StoredType] = {}
    for name, stored in found.items():
        layer, base, rest = name.partition(BASE)
        if base and rest == "weight":
            small, large = (found[f"{layer}.lora_{matrix}.default.weight"].whole().float() for matrix in "AB")
            scale = found[f"{layer}.{ALPHA}"].whole().item() / small.shape[0]
            plain[f"{layer}.{rest}"] = make(stored.whole() + scale * (large @ small))
        elif base:
            plain[f"{layer}.{rest}"] = stored
        elif ".lora_A." not in name and ".lora_B." not in name and not name.endswith(f".{ALPHA}"):
            plain[name] = stored
    return plain
