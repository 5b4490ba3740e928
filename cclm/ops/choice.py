"""Which kernels there are, which one was chosen, and why.

Nothing is imported to find out what is there, and "auto" never fails because a library is missing; a kernel that is
asked for by name is an error where it cannot run, with the reason. What there is, and what "auto" takes, is said in
`KernelConfig`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from cclm.model.kernels import PLAIN, Kernels, PackedAttention
from cclm.ops.attention import recomputed_attention, redrawn_dropout
from cclm.ops.contrastive import ContrastiveLoss, LogSums, contrastive_loss
from cclm.ops.contrastive_blocks import LARGEST_WIDTH
from cclm.ops.contrastive_operator import log_sums
from cclm.ops.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy, linear_cross_entropy_reference
from cclm.ops.options import EXTENSIONS, KernelConfig
from cclm.ops.word_table import WordTable

PACKAGES = ("torch", "triton", "deepspeed", "apex")
VARLEN, LARGEST_HEAD = "torch.nn.attention.varlen", 256
"""Its module, and the widest heads of the flash attention behind it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What computes one thing."""

    op: str
    chosen: str
    why: str
    candidates: Mapping[str, str]
    """Name → "" if it can run here, else why it cannot."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What decides which kernels can compute a network."""

    feature_width: int = 0
    """Of the features that the contrastive losses compare."""
    head_widths: tuple[int, ...] = ()
    """Of attention in the encoders of texts."""
    attention_dropout: float = 0.0
    """The largest of theirs."""
    precision: str = "bf16"


@dataclass(frozen=True, kw_only=True)
class ModelKernels:
    """What a training module is computed with, as arguments of its constructor, and the choices behind it."""

    kernels: Kernels = PLAIN
    cross_entropy: LinearCrossEntropy = linear_cross_entropy
    contrastive: ContrastiveLoss = contrastive_loss
    log_sums: LogSums = log_sums
    compiler: str = ""
    """Backend of `torch.compile` for the blocks of the encoders; "": they run as they are."""
    choices: tuple[Choice, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """Return them by the constructor's names."""
        return {name: getattr(self, name) for name in ("kernels", "cross_entropy", "contrastive", "log_sums")}


def choose_model_kernels(
    config: KernelConfig,
    device: torch.device,
    network: Network = Network(),
) -> ModelKernels:
    """Choose what the network and its losses are computed with, and set the precision of float32 products (ConfigError:
    one that is asked for cannot run here).
    """
    attention, dropout = choose_attention(config, device, network)
    words = choose("word_table", config.word_table, {"shared": "", "torch": ""}, "one gradient of it in place of two")
    norms = {"torch": "", "apex": why_not_apex("layer_norm", device)}
    norm = choose("layer_norm", config.layer_norm, norms, "torch's own is fused, too")
    entropies = {"blocks": "", "reference": ""}
    entropy = choose("cross_entropy", config.cross_entropy, entropies, "never all logits at once")
    too_wide = f"features are wider than {LARGEST_WIDTH}" if network.feature_width > LARGEST_WIDTH else ""
    losses = {"triton": why_not("triton", "triton", device) or too_wide, "blocks": ""}
    reason = losses["triton"] or f"one pass without the matrix, for features of at most {LARGEST_WIDTH}"
    loss = choose("contrastive", config.contrastive, losses, reason)
    compiled = choose("compile", config.compile, {"none": "", "blocks": why_not_compile(device)}, "")
    is_wanted = loss.chosen == "triton"
    cross_entropy = linear_cross_entropy_reference if entropy.chosen == "reference" else linear_cross_entropy
    table, is_shared = WordTable(), words.chosen == "shared"
    return ModelKernels(
        kernels=Kernels(
            attention={"math": math_attention, "recomputed": recomputed_attention}.get(
                attention.chosen, PLAIN.attention
            ),
            packed_attention=varlen_attention() if attention.chosen == "varlen" else None,
            layer_norm=apex_layer_norm() if norm.chosen == "apex" else PLAIN.layer_norm,
            dropout=redrawn_dropout if dropout.chosen == "bytes" else PLAIN.dropout,
            embedding=table.embedding if is_shared else PLAIN.embedding,
        ),
        cross_entropy=table.lending(cross_entropy) if is_shared else cross_entropy,
        contrastive=partial(contrastive_loss, is_kernel_wanted=is_wanted),
        log_sums=partial(log_sums, is_kernel_wanted=is_wanted),
        compiler="inductor" if compiled.chosen == "blocks" else "",
        choices=(attention, norm, dropout, words, entropy, loss, compiled, set_tf32(config, device)),
    )


def choose_attention(config: KernelConfig, device: torch.device, network: Network) -> tuple[Choice, Choice]:
    """Choose attention and dropout. Compiled blocks take torch's: a compiler plans memory itself (ConfigError: the one
    that is asked for cannot run here).
    """
    is_lean = device.type == "cpu" and config.compile == "none"
    varlen = why_not_varlen(device, network)
    drawn = "" if is_lean else "its dropout is drawn on a CPU, outside of compiled blocks"
    ways = {"varlen": varlen, "sdpa": "", "math": "", "recomputed": drawn}
    reason = "torch picks its backend by shapes" if varlen else "no padding in self-attention of texts"
    if is_lean:
        ways, reason = {"recomputed": "", **ways}, "no probabilities are kept"
    drops = {"bytes": drawn, "torch": ""}
    why = "a seed in place of a float for each element" if is_lean else "torch's own keeps bytes on a GPU"
    return choose("attention", config.attention, ways, reason), choose("dropout", config.dropout, drops, why)


def choose_optimizer(
    wanted: str, device: torch.device, *, rule: str = "torch", stage: int | None = None, is_offloaded: bool = False
) -> Choice:
    """Choose what updates the parameters. `rule`: of the update; `stage`: DeepSpeed's, None without it (ConfigError:
    the one that is asked for cannot run here).
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
    """Take what is wanted, or for "auto" the first candidate that can run, for this reason (ConfigError: what is wanted
    cannot run here).
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


def why_not_varlen(device: torch.device, network: Network) -> str:
    """Return why torch's attention of sequences of any length cannot compute a network's texts here; "" if it can."""
    if trouble := why_not(VARLEN, "varlen_attn", device, "torch 2.10 has"):
        return trouble
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    if network.precision != "bf16":
        return f"precision is {network.precision}, not bf16"
    if network.attention_dropout > 0:
        return f"it has no dropout, and attention_dropout is {network.attention_dropout:g}"
    wrong = [width for width in network.head_widths if width % 8 or width > LARGEST_HEAD]
    return f"heads are {wrong[0]} wide, not a multiple of 8 up to {LARGEST_HEAD}" if wrong else ""


def varlen_attention() -> PackedAttention:
    """Return torch's attention of sequences of any length. Its slow twin is `attention` on the padded rectangle."""
    apply = import_module(VARLEN).varlen_attn

    def attention(
        query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, starts: Tensor, longest: int
    ) -> Tensor:
        attended: Tensor = apply(query, key, value, query_starts, starts, longest, longest)
        return attended

    return attention


def why_not_compile(device: torch.device) -> str:
    """Return why `torch.compile` cannot make kernels here; "" if it can."""
    if device.type == "cuda":
        return why_not("triton", "triton", device)
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    return "" if any(name and shutil.which(name) for name in names) else "it needs a C++ compiler (g++, or $CXX)"


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


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute float32 products and convolutions exactly inside, whatever `set_tf32` has set."""
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


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
