"""Which kernel computes what: the `kernels:` block of a recipe. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cclm.types import Positive

EXTENSIONS = {"layer_norm": "fused_layer_norm_cuda", "optimizer": "amp_C"}
"""apex's compiled extensions, by what they are for: they tell whether it is there. Its name does not: the registry's
`apex` is an unrelated package."""


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """Kernels by name; "auto" takes one that is there, and any other name is an error where it cannot run."""

    attention: Literal["auto", "sdpa", "math", "recomputed", "varlen"] = "auto"
    """"sdpa": torch's, which picks flash, cuDNN or another backend by shapes; "math": its slow, exact backend;
    "recomputed": torch's where it has a fused kernel, elsewhere (on a CPU: with dropout, or a learned bias) ours, which
    keeps no probabilities. "varlen": sdpa, and for self-attention of packed texts torch's flash attention of sequences
    of any length, without padding (a GPU in bf16, torch 2.10, no attention dropout). "auto": varlen where it can run;
    recomputed on a CPU; else sdpa."""
    dropout: Literal["auto", "torch", "bytes"] = "auto"
    """"bytes": drawn by two random bytes for an element, twice, so that nothing is kept. "auto": bytes on a CPU."""
    freed_memory: Literal["kept", "returned"] = "kept"
    """On a CPU: used again by the next step, which then need not clear it ("kept"), or given back before the largest
    pieces of a step are made, so that less is needed. MALLOC_… variables and GLIBC_TUNABLES win."""
    layer_norm: Literal["auto", "torch", "apex"] = "auto"
    """"auto": torch's."""
    optimizer: Literal["auto", "torch", "apex", "deepspeed"] = "auto"
    """"auto": torch's fused AdamW; where the optimizer is offloaded, DeepSpeed's for the CPU. "deepspeed" is its
    FusedAdam otherwise. The last two are for `optimizer.update_rule: torch`."""
    cross_entropy: Literal["auto", "blocks", "reference"] = "auto"
    """Of the masked-LM head. "auto": blocks of rows; "reference": all logits at once."""
    word_table: Literal["auto", "shared", "torch"] = "auto"
    """Gradient of a table that embeds words and decodes them. "shared", and "auto": the embedding adds its rows to the
    decoder's; "torch": two gradients as large as the table, added up."""
    contrastive: Literal["auto", "blocks", "triton"] = "auto"
    """"auto": Triton's kernels on a GPU, where features are at most 256 wide; blocks of rows elsewhere."""
    compile: Literal["none", "blocks"] = "none"
    """"blocks": `torch.compile` for each block of the three encoders while they train; texts are then laid out packed,
    on a CPU too. The first steps take minutes longer. Dropout is torch's; other numbers but for rounding."""
    token_multiple: Positive = 1
    """Texts that are laid out packed are filled up with padding to a multiple of so many tokens, so that few sizes
    occur (256, say: half of it is computed for nothing, on average). No loss depends on it."""
    tf32: bool = True
    """On a GPU, products of float32 in TF32 (10 bits of mantissa, as `torch.set_float32_matmul_precision("high")`);
    false: exact. Nothing else changes it, and on a CPU it does nothing."""
