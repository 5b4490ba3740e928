"""Every kind of model, tiny: what one definition covers by configuration, for tests that all of them must pass."""

from __future__ import annotations

from dataclasses import replace

from cclm.model.configuration_cclm import ModelOptions
from tests.unit.checkpoint.tiny_families import TINY_BEIT, TINY_SWIN
from tests.unit.model.tiny import tiny_config

KINDS: dict[str, ModelOptions] = {
    "own": tiny_config(vision={"image_size": 32, "stem_channels": [4, 8, 8]}, text={"max_positions": 20}).options(),
    "swin_regions": TINY_SWIN,
    "swin_without_regions": replace(TINY_SWIN, box_head=False),
    "x2vlm_base": TINY_BEIT,
    "x2vlm_large": replace(
        TINY_BEIT,
        width=32,
        vision=replace(TINY_BEIT.vision, num_layers=3, num_heads=4, feedforward_width=128),
        text=replace(TINY_BEIT.text, num_layers=3, num_heads=4),
        fusion=replace(TINY_BEIT.fusion, num_layers=2, num_heads=4),
    ),
    "nlvr_pairs": replace(
        TINY_SWIN,
        box_head=False,
        masked_lm_head=False,
        tie_decoder=False,
        fusion=replace(TINY_SWIN.fusion, num_memories=2),
    ),
}
"""All pictures have 32 pixels a side. "large" differs from "base" as the published ones do: wider and deeper."""


def with_vocabulary(options: ModelOptions, vocab_size: int, max_positions: int = 40) -> ModelOptions:
    """The same kind of model for another tokenizer."""
    return replace(options, text=replace(options.text, vocab_size=vocab_size, max_positions=max_positions))
