"""Transformer layers on flat rows: self-attention, optional cross-attention to a memory, feed-forward.

Each module uses its own parameters in its own forward (ZeRO-3 gathers them there). Layouts are passed by keyword:
DeepSpeed's hooks look into positional arguments and warn about objects they do not know.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .kernels import LayerNorm, UsesKernels
from .options import LayerOptions
from .packing import PaddedLayout
from .reading import Reading, Wanted
from .shapes import Float


def split_heads(states_BLD: Float[Tensor, "b l d"], num_heads: int) -> Float[Tensor, "b n l k"]:
    """(B, L, D) → (B, heads, L, D / heads), a view."""
    batch, length, width = states_BLD.shape
    return states_BLD.view(batch, length, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(states_BNLK: Float[Tensor, "b n l k"]) -> Float[Tensor, "b l d"]:
    """The inverse of `split_heads`."""
    batch, num_heads, length, head_width = states_BNLK.shape
    return states_BNLK.transpose(1, 2).reshape(batch, length, num_heads * head_width)


def drop_path(branch: Float[Tensor, " b *rest"], probability: float, training: bool) -> Float[Tensor, " b *rest"]:
    """Stochastic depth: in training, zero a residual branch for some samples and scale it up for the others."""
    if probability == 0.0 or not training:
        return branch
    keep = 1.0 - probability
    kept_B = branch.new_empty(branch.shape[:1]).bernoulli_(keep).div_(keep)
    return branch * kept_B.view(-1, *[1] * (branch.ndim - 1))


def stochastic_depth(highest: float, num_blocks: int) -> list[float]:
    """Probabilities of `drop_path` for the blocks of a tower: from 0 rising linearly to `highest`."""
    return [highest * number / max(1, num_blocks - 1) for number in range(num_blocks)]


def forget(value: Tensor, function: Callable[..., Any], argument: Tensor, *, until: Tensor) -> None:
    """Free the memory of `value = function(argument)`, which only the operation that returned `until` has kept.

    `function` takes `out=`, as torch's own do.

    When the gradient of `until` is there, just before that operation's backward pass, the value is computed again into
    the same tensor. (As Megatron-LM does it: the storage is emptied and filled, so that the operation may be any,
    DeepSpeed's linear too, and autograd sees no change.) Nothing happens where nobody goes backward, or where the
    operations are recorded.
    """
    if torch.compiler.is_compiling() or not (until.requires_grad and torch.is_grad_enabled()):
        return
    size_bytes, held = value.untyped_storage().nbytes(), [(value.data, argument)]  # data: to fill it is no change

    def restore(grad: Tensor) -> None:
        if not held:  # a second pass backward
            return
        kept, argument = held.pop()  # the hook lives as long as the graph: what it held would, too
        kept.untyped_storage().resize_(size_bytes)
        with torch.no_grad():
            function(argument, out=kept)

    until.register_hook(restore)  # type: ignore[no-untyped-call]
    value.untyped_storage().resize_(0)


class SelfAttention(UsesKernels, nn.Module):
    """Multi-head attention of the tokens of one sequence to each other."""

    def __init__(self, width: int, options: LayerOptions) -> None:
        super().__init__()
        self.num_heads = options.num_heads
        self.attention_dropout = options.attention_dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self, rows_TD: Float[Tensor, "t d"], *, layout: PaddedLayout, wanted: Wanted | None = None
    ) -> Float[Tensor, "_t d"]:
        """Rows in, rows out; given wanted ones, out come these."""
        attended, dropout = [], self.attention_dropout if self.training else 0.0
        projected_TE, packed_attention = self.query_key_value(rows_TD), self.kernels.packed_attention
        if packed_attention is not None and layout.starts is not None and dropout == 0.0:
            query, key, value = projected_TE.view(len(rows_TD), 3, self.num_heads, -1).unbind(1)
            query, starts = (query, layout.starts) if wanted is None else (wanted.take(query), wanted.starts)
            attended_TNK = packed_attention(query, key, value, starts, layout.starts, layout.length)
            return self.output(attended_TNK.flatten(1))  # type: ignore[no-any-return]
        if wanted is not None:
            return self._of_wanted(projected_TE, layout, wanted, dropout)
        for block, mask in zip(layout.to_blocks(projected_TE), layout.block_masks(), strict=True):
            query, key, value = (split_heads(part, self.num_heads) for part in block.chunk(3, -1))
            attended.append(merge_heads(self.kernels.attention(query, key, value, mask, dropout)))
        mixed_TD: Tensor = self.output(layout.from_blocks(attended))
        return mixed_TD

    def _of_wanted(self, projected_TE: Tensor, layout: PaddedLayout, wanted: Wanted, dropout: float) -> Tensor:
        query_TD, key_value_TE = projected_TE.tensor_split([projected_TE.shape[1] // 3], 1)
        own, attended = wanted.own.arrange(layout.to_rectangle(key_value_TE)), []
        for query_BLD, key_value_BNE, mask in wanted.own.blocks(wanted.take(query_TD), own):
            parts = (query_BLD, *key_value_BNE.chunk(2, -1))
            query, key, value = (split_heads(part, self.num_heads) for part in parts)
            attended.append(merge_heads(self.kernels.attention(query, key, value, mask, dropout)))
        mixed_WD: Tensor = self.output(wanted.own.join(attended))
        return mixed_WD


class CrossAttention(UsesKernels, nn.Module):
    """Attention of flat query rows to the memory of their sequence."""

    def __init__(self, width: int, options: LayerOptions, null_memory: bool) -> None:
        super().__init__()
        self.num_heads = options.num_heads
        self.attention_dropout = options.attention_dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.null_key = nn.Parameter(torch.zeros(width)) if null_memory else None

    def forward(
        self, rows_TD: Float[Tensor, "t d"], memory: Float[Tensor, " *rows d"], *, reading: Reading
    ) -> Float[Tensor, "t d"]:
        """Rows in, rows out; memory as `reading.arrange` gives it.

        A null key lets a query attend to a slot of value zero.
        """
        attended, dropout = [], self.attention_dropout if self.training else 0.0
        for query_BLD, key_value_BNE, mask in reading.blocks(self.query(rows_TD), self.key_value(memory)):
            key_BND, value_BND = key_value_BNE.chunk(2, -1)
            if self.null_key is not None:
                key_BND = torch.cat([key_BND, self.null_key.to(key_BND.dtype).expand(key_BND.shape[0], 1, -1)], 1)
                value_BND = functional.pad(value_BND, (0, 0, 0, 1))
                mask = None if mask is None else functional.pad(mask, (0, 1), value=True)
            query, key, value = (split_heads(part, self.num_heads) for part in (query_BLD, key_BND, value_BND))
            attended.append(merge_heads(self.kernels.attention(query, key, value, mask, dropout)))
        mixed_TD: Tensor = self.output(reading.join(attended))
        return mixed_TD


class FeedForward(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, hidden_width)
        self.narrow = nn.Linear(hidden_width, width)
        self.recomputes_activation = False

    def forward(self, rows_TD: Float[Tensor, " *rows d"]) -> Float[Tensor, " *rows d"]:
        """Row by row."""
        wide_TF = self.widen(rows_TD)
        active_TF = functional.gelu(wide_TF)
        narrowed_TD: Tensor = self.narrow(active_TF)
        if self.recomputes_activation:
            forget(active_TF, functional.gelu, wide_TF, until=narrowed_TD)
        return narrowed_TD


class TransformerLayer(UsesKernels, nn.Module):
    """Self-attention → (cross-attention →) feed-forward, each with residual, dropout and norm (pre or post)."""

    def __init__(self, width: int, options: LayerOptions, *, cross: bool = False, null_memory: bool = False) -> None:
        super().__init__()
        self.pre_norm = options.norm_position == "pre"
        self.dropout = options.dropout
        self.self_attention = SelfAttention(width, options)
        self.self_norm = LayerNorm(width, options.norm_eps)
        self.cross_attention = CrossAttention(width, options, null_memory) if cross else None
        self.cross_norm = LayerNorm(width, options.norm_eps) if cross else None
        self.feedforward = FeedForward(width, options.feedforward_width)
        self.feedforward_norm = LayerNorm(width, options.norm_eps)

    def forward(
        self,
        rows_TD: Float[Tensor, "t d"],
        memory: Float[Tensor, " *rows d"] | None = None,
        *,
        layout: PaddedLayout,
        reading: Reading | None = None,
        wanted: Wanted | None = None,
    ) -> Float[Tensor, "_t d"]:
        """Rows in, rows out; without a memory, arranged for `reading`, no cross-attention (published TLM).

        `wanted`: all rows are looked at, but only these come out, and it is they who read the memory.
        """
        rows_TD = self._sublayer(
            rows_TD, self.self_norm, lambda rows: self.self_attention(rows, layout=layout, wanted=wanted), wanted
        )
        if self.cross_attention is not None and self.cross_norm is not None and memory is not None:
            assert reading is not None, "a memory without the plan of who reads it"
            attention, read, plan = self.cross_attention, memory, reading
            crossed_TD = self._sublayer(rows_TD, self.cross_norm, lambda rows: attention(rows, read, reading=plan))
            has_memory_T1 = plan.has_memory_T1
            rows_TD = crossed_TD if has_memory_T1 is None else torch.where(has_memory_T1, crossed_TD, rows_TD)
        return self._sublayer(rows_TD, self.feedforward_norm, self.feedforward)

    def _sublayer(
        self, rows_TD: Tensor, norm: nn.Module, function: Callable[[Tensor], Tensor], wanted: Wanted | None = None
    ) -> Tensor:
        changed_TD = function(norm(rows_TD) if self.pre_norm else rows_TD)
        if self.dropout > 0:
            changed_TD = self.kernels.dropout(changed_TD, self.dropout, self.training)
        summed_TD = (rows_TD if wanted is None else wanted.take(rows_TD)) + changed_TD
        return summed_TD if self.pre_norm else norm(summed_TD)


class LayerStack(nn.Module):
    """The layers of an encoder, and the final norm that a pre-norm stack needs."""

    def __init__(self, width: int, options: LayerOptions, *, cross: bool = False, null_memory: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(width, options, cross=cross, null_memory=null_memory) for _ in range(options.num_layers)
        )
        self.final_norm = LayerNorm(width, options.norm_eps) if options.norm_position == "pre" else None

    def forward(
        self,
        rows_TD: Float[Tensor, "t d"],
        *memories: Float[Tensor, "m _n d"],
        layout: PaddedLayout,
        reading: Reading | None = None,
        wanted: Wanted | None = None,
        start: int = 0,
    ) -> Float[Tensor, "_t d"]:
        """Rows in, rows out (of the last layer those that are wanted), from layer `start` on; layer n reads memory n
        modulo their number; the rest as in them."""
        arranged = [memory_MND if reading is None else reading.arrange(memory_MND) for memory_MND in memories]
        for number, layer in islice(enumerate(self.layers), start, None):
            now = wanted if number == len(self.layers) - 1 else None
            memory = arranged[number % len(arranged)] if arranged else None
            if now is not None and now.reading is not None:
                reading, memory = now.reading, now.reading.arrange(memories[number % len(memories)])
            rows_TD = layer(rows_TD, memory, layout=layout, reading=reading, wanted=now)
        return rows_TD if self.final_norm is None else self.final_norm(rows_TD)
