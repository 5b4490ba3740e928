"""What a network computes attention and layer norm with: values, plain torch unless a run puts faster ones in.

A module that uses one inherits `UsesKernels` and reads `self.kernels`; `use_kernels(model, kernels)` changes all.
An exported folder carries this file and so only knows the plain ones; `cclm.ops` has the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from .shapes import Float, Int

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""(query (B, N, L, K), key (B, N, M, K), value (B, N, M, K), mask, dropout) → (B, N, L, K), the heads apart.

The mask is None, boolean (True: may be attended to) or added to the scores; it broadcasts to (B, N, L, M)."""
PackedAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""(query (Q, N, K), key (T, N, K), value, their starts (B + 1), those of key and value, longest) → (Q, N, K): attention
inside of each of B sequences that lie one after the other, of sequence b from row starts[b] on; none is longer than
`longest`. No dropout."""
LayerNormFunction = Callable[[Tensor, Sequence[int], Tensor, Tensor, float], Tensor]
"""(rows, normalized shape, weight, bias, epsilon) → rows, as `torch.nn.functional.layer_norm`."""
Dropout = Callable[[Tensor, float, bool], Tensor]
"""(rows, probability, training) → rows, as `torch.nn.functional.dropout`."""
Embedding = Callable[[Tensor, Tensor, int | None], Tensor]
"""(ids, table, id without a gradient) → rows, as `torch.nn.functional.embedding`."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The functions that a network is computed with."""

    attention: Attention = functional.scaled_dot_product_attention
    packed_attention: PackedAttention | None = None
    """For texts in the packed layout, where attention has no dropout; None: `attention`, on the padded rectangle."""
    layer_norm: LayerNormFunction = functional.layer_norm
    dropout: Dropout = functional.dropout
    embedding: Embedding = functional.embedding


PLAIN = Kernels()


class UsesKernels:
    """A module that computes with `self.kernels`."""

    kernels: Kernels = PLAIN


class LayerNorm(UsesKernels, nn.LayerNorm):
    """`torch.nn.LayerNorm` by the run's kernel; the same parameters and names."""

    def forward(self, rows: Float[Tensor, " *rows d"]) -> Float[Tensor, " *rows d"]:
        """Normalise the last axis."""
        return self.kernels.layer_norm(rows, self.normalized_shape, self.weight, self.bias, self.eps)


class WordEmbedding(UsesKernels, nn.Embedding):
    """`torch.nn.Embedding` by the run's kernel; the same parameter and name."""

    def forward(self, ids: Int[Tensor, " *b"]) -> Float[Tensor, " *b d"]:
        """Look up."""
        return self.kernels.embedding(ids, self.weight, self.padding_idx)


def use_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Let every module of a network compute with these kernels."""
    for module in model.modules():
        if isinstance(module, UsesKernels):
            module.kernels = kernels
