"""The fusion encoder: text states (queries) read a memory, which is an image or the other text."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import LayerStack
from .options import FusionOptions
from .packing import text_layout

try:  # noqa: SIM105  # annotations only: an exported checkpoint loads without it, and HF skips imports in a try
    from jaxtyping import Bool, Float
except ImportError:
    pass


class FusionEncoder(nn.Module):
    """Layers of self-attention → cross-attention → feed-forward, shared by both views."""

    def __init__(self, width: int, options: FusionOptions, token_layout: str) -> None:
        super().__init__()
        self.token_layout = token_layout
        self.stack = LayerStack(width, options, cross=True, null_memory=options.null_memory)

    def forward(
        self,
        text_BLD: Float[Tensor, "b l d"],
        mask_BL: Bool[Tensor, "b l"],
        memory_BND: Float[Tensor, "b n d"] | None,
        memory_mask_BN: Bool[Tensor, "b n"] | None,
        *,
        has_memory_B: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Fused states, zero where `mask_BL` is False.

        `memory_mask_BN` None: every memory token is real. `memory_BND` None: no cross-attention at all.
        `has_memory_B`: False for texts that skip the cross-attention although others do not; what stands in their rows
        of the memory is not used, but at least one token of it must count as real.
        """
        layout = text_layout(mask_BL, self.token_layout)
        has_memory_T1 = None
        if memory_BND is not None and has_memory_B is not None:
            has_memory_T1 = layout.take_ids(has_memory_B[:, None].expand_as(mask_BL))[:, None]
        if memory_BND is not None:
            memory_BND = layout.sort_sequences(memory_BND)
        if memory_mask_BN is not None:
            memory_mask_BN = layout.sort_sequences(memory_mask_BN)
        rows_TD = self.stack(
            layout.to_rows(text_BLD), memory_BND, memory_mask_BN, layout=layout, has_memory_T1=has_memory_T1
        )
        return layout.to_rectangle(rows_TD)
