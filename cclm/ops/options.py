"""Which kernel computes what: the `kernels:` block of a recipe. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EXTENSIONS = {"layer_norm": "fused_layer_norm_cuda", "optimizer": "amp_C"}
"""apex's compiled extensions, by what they are for: they tell whether it is there. Its name does not: the registry's
`apex` is an unrelated package."""


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """Kernels by name; "auto" takes one that is there, and any other name is an error where it cannot run."""

    attention: Literal["auto", "sdpa", "math"] = "auto"
    """"sdpa": torch's, which picks flash, cuDNN or another backend by shapes; "math": its slow, exact backend."""
    layer_norm: Literal["auto", "torch", "apex"] = "auto"
    """"auto": torch's."""
    optimizer: Literal["auto", "torch", "apex", "deepspeed"] = "auto"
    """"auto": torch's fused AdamW; where the optimizer is offloaded, DeepSpeed's for the CPU. "deepspeed" is its
    FusedAdam otherwise. The last two are for `optimizer.update_rule: torch`."""
    cross_entropy: Literal["auto", "blocks", "reference"] = "auto"
    """Of the masked-LM head. "auto": blocks of rows; "reference": all logits at once."""
    contrastive: Literal["auto", "blocks", "triton"] = "auto"
    """"auto": Triton's kernels on a GPU, where features are at most 256 wide; blocks of rows elsewhere."""
    tf32: bool = True
    """On a GPU, products of float32 in TF32 (10 bits of mantissa, as `torch.set_float32_matmul_precision("high")`);
    false: exact. Nothing else changes it, and on a CPU it does nothing."""
