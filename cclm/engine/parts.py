"""Parts of a training module, by prefixes of its parameters' names: "model.vision_encoder", "model.*.stack.layers.0".

A prefix is whole components; "*" is any one of them. A part can be frozen: it takes no gradient, has no moments, and is
neither decayed nor averaged, under every engine.

Or it keeps its weights and learns adapters (LoRA, arXiv 2106.09685, through `peft`): W x becomes
W x + alpha / rank · B A x, with W frozen. What training saves and resumes has peft's names; `stored_weights` adds the
products to W, so whoever reads a checkpoint (export, evaluation, a run that starts from it) needs no peft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cclm.engine.options import LoraOptions
from cclm.errors import ConfigError
from cclm.files.text import nearest_word
from cclm.rows.guard import optional_library

BASE = ".base_layer."
"""In peft's names: behind it the layer's own parameters."""
ALPHA = "lora_alpha_whole"
"""A buffer beside the two matrices; whole, so that no engine rounds it to bf16."""


def freeze(module: nn.Module, prefixes: Sequence[str], where: str = "start.freeze") -> None:
    """Let no update move the parameters with one of these prefixes; a shared one has one by any of its names.

    Call it on every rank, before the module is given to an engine.

    Raises:
        ConfigError: no parameter has a prefix (it names the nearest), or none is left to train.
    """
    named = list(module.named_parameters(remove_duplicate=False))
    check_prefixes(prefixes, [name for name, _ in named], where)
    for name, parameter in named:
        if any(has_prefix(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)
    if prefixes and not any(parameter.requires_grad for _, parameter in named):
        raise ConfigError(
            where=where, expected="something that is left to train", got=", ".join(prefixes), do="Freeze less."
        )


def check_reaches_trained(total: Tensor) -> None:
    """Raise ConfigError if a loss has no gradient: what it was computed with is frozen."""
    if not total.requires_grad:
        raise ConfigError(
            where="start.freeze",
            expected="losses of every update that reach something that is trained",
            got="an update whose losses reach frozen parameters only",
            do="Freeze less, or take that view away (data.schedule: alternate makes an update for each view).",
        )


def not_finite(module: nn.Module, gradient: Callable[[nn.Parameter], Tensor | None]) -> list[str]:
    """Return the names of the trained parameters with a gradient that is not finite; the host waits for the device."""
    found = [(name, gradient(one)) for name, one in module.named_parameters() if one.requires_grad]
    return [name for name, values in found if values is not None and not bool(values.isfinite().all())]


def longest_prefix(name: str, prefixes: Iterable[str]) -> str:
    """Return the prefix of a name with the most components; "" if none is."""
    fitting = [prefix for prefix in prefixes if has_prefix(name, prefix)]
    return max(fitting, key=lambda prefix: (prefix.count("."), len(prefix), prefix), default="")


def has_prefix(name: str, prefix: str) -> bool:
    """Whether the first components of a name are those of the prefix; "*" is any one component."""
    wanted, found = prefix.split("."), name.split(".")
    return len(wanted) <= len(found) and all(want in ("*", have) for want, have in zip(wanted, found, strict=False))


def check_prefixes(prefixes: Iterable[str], names: Sequence[str], where: str) -> None:
    """Raise ConfigError with the nearest one for each prefix that no name has."""
    known = {".".join(parts[:end]) for parts in (name.split(".") for name in names) for end in range(1, len(parts) + 1)}
    unknown = sorted(prefix for prefix in prefixes if not any(has_prefix(name, prefix) for name in names))
    if unknown:
        hints = ", ".join(f"{prefix!r} (nearest: {nearest_word(prefix, known, cutoff=0.0)!r})" for prefix in unknown)
        raise ConfigError(
            where=where, expected="prefixes of parameter names", got=hints, do=f"Correct them under {where}."
        )


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
