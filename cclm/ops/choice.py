"""Which kernels there are, which one was chosen, and why.

Nothing is imported to find out what is there, and "auto" never fails because a library is missing; a kernel that is
asked for by name is an error where it cannot run, with the reason.

    op             candidates                  "auto"
    attention      sdpa math                   sdpa
    layer_norm     torch apex                  torch
    optimizer      torch apex deepspeed        torch; deepspeed where the optimizer is offloaded
    cross_entropy  blocks reference            blocks
    contrastive    triton blocks               triton on a GPU, else blocks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from cclm.errors import ConfigError
from cclm.model.kernels import PLAIN, Kernels
from cclm.ops.contrastive import LARGEST_WIDTH, ContrastiveLoss, LogSums, contrastive_loss, log_sums
from cclm.ops.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy, linear_cross_entropy_reference
from cclm.ops.options import EXTENSIONS, KernelConfig

PACKAGES = ("torch", "triton", "deepspeed", "apex")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What computes one thing."""

    op: str
    chosen: str
    why: str
    candidates: Mapping[str, str]
    """Name → "" if it can run here, else why it cannot."""


@dataclass(frozen=True, kw_only=True)
class ModelKernels:
    """What a training module is computed with, as arguments of its constructor, and the choices behind it."""

    kernels: Kernels = PLAIN
    cross_entropy: LinearCrossEntropy = linear_cross_entropy
    contrastive: ContrastiveLoss = contrastive_loss
    log_sums: LogSums = log_sums
    choices: tuple[Choice, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """Return them by the constructor's names."""
        return {
            "kernels": self.kernels,
            "cross_entropy": self.cross_entropy,
            "contrastive": self.contrastive,
            "log_sums": self.log_sums,
        }


def choose_model_kernels(config: KernelConfig, device: torch.device, width: int = 0) -> ModelKernels:
    """Choose what the network and its losses are computed with, and set the precision of float32 products.

    `width`: of the features that the contrastive losses compare.

    Raises:
        ConfigError: one that is asked for cannot run here.
    """
    attention = choose("attention", config.attention, {"sdpa": "", "math": ""}, "torch picks its backend by shapes")
    norms = {"torch": "", "apex": why_not_apex("layer_norm", device)}
    norm = choose("layer_norm", config.layer_norm, norms, "torch's own is fused, too")
    entropies = {"blocks": "", "reference": ""}
    entropy = choose("cross_entropy", config.cross_entropy, entropies, "never all logits at once")
    too_wide = f"features are wider than {LARGEST_WIDTH}" if width > LARGEST_WIDTH else ""
    losses = {"triton": why_not("triton", "triton", device) or too_wide, "blocks": ""}
    reason = losses["triton"] or f"one pass without the matrix, for features of at most {LARGEST_WIDTH}"
    loss = choose("contrastive", config.contrastive, losses, reason)
    is_wanted = loss.chosen == "triton"
    return ModelKernels(
        kernels=Kernels(
            attention=math_attention if attention.chosen == "math" else PLAIN.attention,
            layer_norm=apex_layer_norm() if norm.chosen == "apex" else PLAIN.layer_norm,
        ),
        cross_entropy=linear_cross_entropy_reference if entropy.chosen == "reference" else linear_cross_entropy,
        contrastive=partial(contrastive_loss, is_kernel_wanted=is_wanted),
        log_sums=partial(log_sums, is_kernel_wanted=is_wanted),
        choices=(attention, norm, entropy, loss, set_tf32(config, device)),
    )


def choose_optimizer(
    wanted: str, device: torch.device, *, rule: str = "torch", stage: int | None = None, is_offloaded: bool = False
) -> Choice:
    """Choose what updates the parameters. `rule`: of the update; `stage`: DeepSpeed's, None without it.

    Raises:
        ConfigError: the one that is asked for cannot run here.
    """
    is_other = "update_rule: published runs in torch's kernel only" if rule != "torch" else ""
    apex = is_other or ("the optimizer is offloaded" if is_offloaded else why_not_apex("optimizer", device))
    ours = "it needs engine: deepspeed at ZeRO stage 1 or more" if not stage else ""
    own = is_other or ours or ("" if is_offloaded else why_not("deepspeed", "deepspeed", device))
    best = "deepspeed" if is_offloaded and not own else "torch"
    reason = "the optimizer is offloaded" if best == "deepspeed" else "one fused kernel for a group of parameters"
    candidates = {best: "", "torch": "", "apex": apex, "deepspeed": own}
    return choose("optimizer", wanted, candidates, reason)


def choose(op: str, wanted: str, candidates: Mapping[str, str], reason: str) -> Choice:
    """Take what is wanted, or for "auto" the first candidate that can run, for this reason.

    Raises:
        ConfigError: what is wanted cannot run here.
    """
    if wanted == "auto":
        first = next(name for name, trouble in candidates.items() if not trouble)
        return Choice(op=op, chosen=first, why=reason, candidates=candidates)
    if trouble := candidates[wanted]:
        raise ConfigError(
            where=f"kernels.{op}",
            expected=f"one of {', '.join(name for name, other in candidates.items() if not other)}, or auto",
            got=f"{wanted}: {trouble}",
            do="Install what it needs, or leave the choice to auto.",
        )
    return Choice(op=op, chosen=wanted, why="asked for", candidates=candidates)


def why_not_apex(op: str, device: torch.device) -> str:
    """Return why apex cannot compute this here; "" if it can."""
    return why_not(EXTENSIONS[op], "apex", device, "NVIDIA's apex, built with its CUDA extensions, has")


def why_not(module: str, name: str, device: torch.device, owner: str = "") -> str:
    """Return why a library for GPUs cannot be used; "" if it can. Its module is looked for, not imported."""
    if device.type != "cuda":
        return f"{name} needs a GPU"
    if find_spec(module) is None:
        return f"{module} cannot be imported" + (f" ({owner} it)" if owner else "")
    return ""


def math_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention by torch's backend of plain products: the slow twin of the others."""
    with sdpa_kernel(SDPBackend.MATH):
        return functional.scaled_dot_product_attention(query, key, value, mask, dropout)


def apex_layer_norm() -> Any:
    """Return apex's fused layer norm, with torch's arguments."""
    apply = import_module("apex.normalization.fused_layer_norm").fused_layer_norm_affine

    def layer_norm(rows: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normed: Tensor = apply(rows, weight, bias, tuple(shape), eps)
        return normed

    return layer_norm


def set_tf32(config: KernelConfig, device: torch.device) -> Choice:
    """Give float32 products and convolutions on a GPU their precision, in this process; a CPU is left alone."""
    if device.type != "cuda":
        candidates = {"tf32": "it is for GPUs", "exact": ""}
        return Choice(op="float32_products", chosen="exact", why="no GPU", candidates=candidates)
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.tf32
    chosen, why = "tf32" if config.tf32 else "exact", f"kernels.tf32: {str(config.tf32).lower()}"
    return Choice(op="float32_products", chosen=chosen, why=why, candidates={"tf32": "", "exact": ""})


def describe(choices: Sequence[Choice], device: torch.device) -> dict[str, Any]:
    """Return what was chosen and why, with versions and devices, as plain values."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    devices = [torch.cuda.get_device_name(number) for number in range(count)] or ["no GPU"]
    return {"choices": [asdict(one) for one in choices], "versions": versions, "devices": devices}
