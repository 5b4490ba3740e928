"""The text encoder: word and position embeddings, then transformer layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .configuration_cclm import TextOptions
from .layers import LayerStack
from .packing import masked_mean, text_layout

try:  # noqa: SIM105  # annotations only: an exported checkpoint loads without it, and HF skips imports in a try
    from jaxtyping import Bool, Float, Int
except ImportError:
    pass


class TextEmbeddings(nn.Module):
    """Word plus position, normalised if the options say so."""

    def __init__(self, width: int, options: TextOptions) -> None:
        super().__init__()
        self.dropout = options.dropout
        self.words = nn.Embedding(options.vocab_size, width, padding_idx=options.pad_token_id)
        self.positions = nn.Embedding(options.max_positions, width)
        has_norm = options.embedding_norm or options.norm_position == "post"
        self.norm = nn.LayerNorm(width, options.norm_eps) if has_norm else None

    def forward(self, ids_T: Int[Tensor, " t"], position_T: Int[Tensor, " t"]) -> Float[Tensor, "t d"]:
        """Flat ids and their positions to flat rows."""
        rows_TD: Tensor = self.words(ids_T) + self.positions(position_T)
        if self.norm is not None:
            rows_TD = self.norm(rows_TD)
        return functional.dropout(rows_TD, self.dropout, self.training) if self.dropout > 0 else rows_TD


class TextEncoder(nn.Module):
    """Token ids to token states; the same weights for captions and for both sides of a sentence pair."""

    def __init__(self, width: int, options: TextOptions, token_layout: str) -> None:
        super().__init__()
        self.token_layout = token_layout
        self.options = options
        self.embeddings = TextEmbeddings(width, options)
        self.stack = LayerStack(width, options)

    def forward(self, ids_BL: Int[Tensor, "b l"], mask_BL: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """States, zero where the mask is False.

        Raises:
            ValueError: a text longer than the position table.
        """
        layout = text_layout(mask_BL, self.token_layout)
        position_L = torch.arange(ids_BL.shape[1], device=ids_BL.device) + self.options.position_offset
        if ids_BL.shape[1] + self.options.position_offset > self.options.max_positions:
            raise ValueError(
                f"texts: expected at most {self.options.max_positions - self.options.position_offset} tokens "
                f"(text.max_positions), got {ids_BL.shape[1]}. Truncate them, or train with a longer table."
            )
        rows_TD = self.embeddings(layout.take_ids(ids_BL), layout.take_ids(position_L.expand_as(ids_BL)))
        text_BLD = layout.to_rectangle(self.stack(rows_TD, layout=layout))
        if self.options.pooling == "mean_first":
            text_BLD = torch.cat([masked_mean(text_BLD, mask_BL)[:, None], text_BLD[:, 1:]], 1)
        return text_BLD


def pool_states(states_BLD: Float[Tensor, "b l d"], mask_BL: Bool[Tensor, "b l"], pooling: str) -> Float[Tensor, "b d"]:
    """One vector per sequence: the mean of the real states ("mean"), or the first ("cls" and "mean_first")."""
    return masked_mean(states_BLD, mask_BL) if pooling == "mean" else states_BLD[:, 0]
