"""A fusion encoder that reads several memories: two images and a sentence about both (NLVR2, MaRVL).

    text ─ layer 0a (image 1) ─ layer 0b (image 2) ─ layer 1a (image 1) ─ …

Each pre-trained layer stands there once per memory. The copies learn on their own, but the keys and values of one layer
are the same module for all memories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from .fusion import FusionEncoder
from .layers import LayerStack, TransformerLayer
from .options import FusionOptions, ModelOptions
from .packing import text_layout

try:  # noqa: SIM105  # annotations only: an exported checkpoint loads without it, and HF skips imports in a try
    from jaxtyping import Bool, Float
except ImportError:
    pass


class SeveralMemoriesEncoder(nn.Module):
    """Layer n of the stack reads memory n modulo their number.

    Args:
        width: of texts and memories.
        options: of the pre-trained fusion encoder, whose layers are doubled (for two memories).
        token_layout: as in the pre-trained model.
        num_memories: how many.
    """

    def __init__(self, width: int, options: FusionOptions, token_layout: str, num_memories: int = 2) -> None:
        super().__init__()
        self.token_layout = token_layout
        self.num_memories = num_memories
        doubled = replace(options, num_layers=options.num_layers * num_memories)
        self.stack = LayerStack(width, doubled, cross=True, null_memory=options.null_memory)
        layers: list[TransformerLayer] = list(self.stack.layers)  # type: ignore[arg-type]
        for number, layer in enumerate(layers):
            first = layers[number - number % num_memories].cross_attention
            assert layer.cross_attention is not None
            assert first is not None
            layer.cross_attention.key_value = first.key_value

    def start_from(self, encoder: FusionEncoder) -> None:
        """Copy the pre-trained layers, each to all of its copies."""
        for number, layer in enumerate(self.stack.layers):
            layer.load_state_dict(encoder.stack.layers[number // self.num_memories].state_dict())
        if self.stack.final_norm is not None and encoder.stack.final_norm is not None:
            self.stack.final_norm.load_state_dict(encoder.stack.final_norm.state_dict())

    def forward(
        self,
        text_BLD: Float[Tensor, "b l d"],
        mask_BL: Bool[Tensor, "b l"],
        memories: Sequence[Float[Tensor, "b _n d"]],
    ) -> Float[Tensor, "b l d"]:
        """Fused states, zero where the mask is False; every token of a memory is real."""
        assert len(memories) == self.num_memories, f"{len(memories)} memories for {self.num_memories}"
        layout = text_layout(mask_BL, self.token_layout)
        rows_TD = layout.to_rows(text_BLD)
        sorted_memories = [layout.sort_sequences(memory_BND) for memory_BND in memories]
        for number, layer in enumerate(self.stack.layers):
            rows_TD = layer(rows_TD, sorted_memories[number % self.num_memories], layout=layout)
        if self.stack.final_norm is not None:
            rows_TD = self.stack.final_norm(rows_TD)
        return layout.to_rectangle(rows_TD)


def fusion_encoder(options: ModelOptions) -> FusionEncoder | SeveralMemoriesEncoder:
    """The fusion encoder that the options describe: for one memory, or for several."""
    number = options.fusion.num_memories
    if number == 1:
        return FusionEncoder(options.width, options.fusion, options.token_layout)
    return SeveralMemoriesEncoder(options.width, options.fusion, options.token_layout, number)
