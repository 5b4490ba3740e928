"""The encoders of texts: on their own (embeddings, then transformer layers), and reading a memory (the fusion encoder).

A memory is an image or another text. A fusion encoder for several (two images and a sentence about both: NLVR2,
MaRVL) has each pre-trained layer once per memory:

    text ─ layer 0a (image 1) ─ layer 0b (image 2) ─ layer 1a (image 1) ─ …

The copies learn on their own, but the keys and values of one layer are the same module for all memories.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .kernels import LayerNorm, UsesKernels, WordEmbedding
from .layers import LayerStack
from .options import FusionOptions, TextOptions
from .packing import masked_mean, text_layout
from .reading import plan_reading, plan_wanted
from .shapes import Bool, Float, Int


class TextEmbeddings(UsesKernels, nn.Module):
    """Word plus position (plus the token type), normalised if the options say so."""

    def __init__(self, width: int, options: TextOptions) -> None:
        super().__init__()
        self.dropout = options.dropout
        self.words = WordEmbedding(options.vocab_size, width, padding_idx=options.pad_token_id)
        padding = options.pad_token_id if options.position_rule == "ids" else None
        self.positions = nn.Embedding(options.max_positions, width, padding_idx=padding)
        self.token_type = nn.Parameter(torch.zeros(1, width)) if options.token_type else None
        has_norm = options.embedding_norm or options.norm_position == "post"
        self.norm = LayerNorm(width, options.norm_eps) if has_norm else None

    def forward(self, ids_T: Int[Tensor, " t"], position_T: Int[Tensor, " t"]) -> Float[Tensor, "t d"]:
        """Flat ids and their positions to flat rows."""
        rows_TD: Tensor = self.words(ids_T) + self.positions(position_T)
        if self.token_type is not None:
            rows_TD = rows_TD + self.token_type
        if self.norm is not None:
            rows_TD = self.norm(rows_TD)
        return self.kernels.dropout(rows_TD, self.dropout, self.training) if self.dropout > 0 else rows_TD


def check_length(num_tokens: int, longest: int) -> None:
    """Raise ValueError if texts are longer than the encoder has positions for."""
    if num_tokens > longest:
        raise ValueError(
            f"texts: expected at most {longest} tokens "
            f"(text.max_positions), got {num_tokens}. Truncate them, or train with a longer table."
        )


def token_positions(ids_BL: Int[Tensor, "b l"], options: TextOptions) -> Int[Tensor, "b l"]:
    """Row of the position table for each token. Raises ValueError: a text longer than the position table."""
    from_ids = options.position_rule == "ids"
    offset = options.pad_token_id + 1 if from_ids else options.position_offset
    check_length(ids_BL.shape[1], options.max_positions - offset)
    if from_ids:
        counted_BL = (ids_BL != options.pad_token_id).long()
        return counted_BL.cumsum(1) * counted_BL + options.pad_token_id
    return (torch.arange(ids_BL.shape[1], device=ids_BL.device) + offset).expand_as(ids_BL)


class TextEncoder(nn.Module):
    """Token ids to token states; the same weights for captions and for both sides of a sentence pair."""

    def __init__(self, width: int, options: TextOptions, token_layout: str) -> None:
        super().__init__()
        self.token_layout, self.token_multiple = token_layout, 1
        self.options = options
        self.embeddings = TextEmbeddings(width, options)
        self.stack = LayerStack(width, options)

    def forward(
        self,
        ids_BL: Int[Tensor, "b l"],
        mask_BL: Bool[Tensor, "b l"],
        *,
        num_tokens: int | None = None,
        first_BLD: Float[Tensor, "b l d"] | None = None,
        start: int = 0,
    ) -> Float[Tensor, "b l d"]:
        """States, zero where the mask is False; who knows how many places are not says so (`packed_layout`).

        `first_BLD`: the states behind the first `start` layers, from whoever knows them.

        Raises ValueError: a text longer than the position table.
        """
        layout = text_layout(mask_BL, self.token_layout, num_tokens, self.token_multiple)
        if first_BLD is None:
            position_BL = token_positions(ids_BL, self.options)
            rows_TD = self.embeddings(layout.take_ids(ids_BL), layout.take_ids(position_BL))
        else:
            rows_TD = layout.to_rows(first_BLD)
        text_BLD = layout.to_rectangle(self.stack(rows_TD, layout=layout, start=start))
        return mean_first(text_BLD, mask_BL) if self.options.pooling == "mean_first" else text_BLD


def mean_first(text_BLD: Float[Tensor, "b l d"], mask_BL: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
    """The states, the first of which is replaced by the mean of the real ones."""
    return torch.cat([masked_mean(text_BLD, mask_BL)[:, None], text_BLD[:, 1:]], 1)


def pool_states(states_BLD: Float[Tensor, "b l d"], mask_BL: Bool[Tensor, "b l"], pooling: str) -> Float[Tensor, "b d"]:
    """One vector per sequence: the mean of the real states ("mean"), or the first ("cls" and "mean_first")."""
    return masked_mean(states_BLD, mask_BL) if pooling == "mean" else states_BLD[:, 0]


class FusionEncoder(nn.Module):
    """Layers of self-attention → cross-attention → feed-forward, shared by all views."""

    def __init__(self, width: int, options: FusionOptions, token_layout: str) -> None:
        super().__init__()
        self.token_layout, self.token_multiple = token_layout, 1
        self.num_memories = options.num_memories
        options = replace(options, num_layers=options.num_layers * self.num_memories)
        self.stack = LayerStack(width, options, cross=True, null_memory=options.null_memory)
        attentions: list[Any] = [layer.cross_attention for layer in self.stack.layers]
        for number, attention in enumerate(attentions):
            attention.key_value = attentions[number - number % self.num_memories].key_value

    def start_from(self, encoder: FusionEncoder) -> None:
        """Copy the pre-trained layers of an encoder with one memory, each to all of its copies."""
        for number, layer in enumerate(self.stack.layers):
            layer.load_state_dict(encoder.stack.layers[number // self.num_memories].state_dict())
        if self.stack.final_norm is not None and encoder.stack.final_norm is not None:
            self.stack.final_norm.load_state_dict(encoder.stack.final_norm.state_dict())

    def forward(
        self,
        text_BLD: Float[Tensor, "b l d"],
        mask_BL: Bool[Tensor, "b l"],
        *memories: Float[Tensor, "m _n d"],
        memory_mask_MN: Bool[Tensor, "m n"] | None = None,
        has_memory_B: Bool[Tensor, " b"] | None = None,
        memory_of_B: Int[Tensor, " b"] | None = None,
        wanted_W: Int[Tensor, " w"] | None = None,
    ) -> Float[Tensor, "*cells d"]:
        """Fused states (B, L, D), zero where `mask_BL` is False; without memories no cross-attention at all.

        `memory_mask_MN` None: every memory token is real. `memory_of_B`: which memory each text reads; None: there are
        B, each text has its own. `has_memory_B`: False for texts that skip the cross-attention although others do not;
        the memory that they seem to read is not used, but at least one token of it must count as real.
        `wanted_W`: cells b · L + l, real and different, text by text, whose states alone the last layer computes:
        (W, D), in their order.
        """
        assert len(memories) in (0, self.num_memories), f"{len(memories)} memories for {self.num_memories}"
        layout = text_layout(mask_BL, self.token_layout, multiple=self.token_multiple)
        plan = partial(plan_reading, layout, memory_mask_MN, memory_of_B, has_memory_B) if memories else None
        rows_TD = self.stack(
            layout.to_rows(text_BLD),
            *memories,
            layout=layout,
            reading=None if plan is None else plan(),
            wanted=None if wanted_W is None else plan_wanted(layout, wanted_W, plan),
        )
        return layout.to_rectangle(rows_TD) if wanted_W is None else rows_TD
