"""What a fresh run starts from. Nothing is imported to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cclm.types import Count, PathText

Reach = Literal["auto", "text", "text_and_fusion"]
"""Which stacks an XLM-R fills."""
Layers = Literal["spread", "first", "last"] | tuple[Count, ...]
"""Which layers of an XLM-R fill them."""


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What a fresh run starts from (a resumed one has its checkpoint), and what of it stays as it is."""

    sources: tuple[PathText, ...] = ()
    """Weights: original Swin or BEiT-v2 files, X2-VLM files, Hugging Face models by name or folder (image and text
    models for "hf" towers, Swin and BEiT for those towers, XLM-R, BERT and their kin for texts), exports and imports.
    Later ones win."""
    text_fills: Reach = "auto"
    """Which stacks the layers of an XLM-R or BERT fill: "text", "text_and_fusion", or "auto": as published,
    both where the image tower is Swin, else the text encoder. With "text" the fusion encoder keeps its own sizes."""
    text_layers: Layers = "spread"
    """Which of its layers, counted from 0: "spread": evenly, as published; "first", "last"; or as many numbers as there
    are layers to fill, [0, 2, 4] say. Of an encoder that was tuned for retrieval "first" is best (docs/models.md)."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they start, by prefix of parameter names as in `optimizer.module_multipliers`
    ("model.vision_encoder", "model.text_encoder.stack.layers.*"): no gradient, no moments, no decay. A shared matrix
    (tied decoder and word table) is frozen by any of its names. In bf16 they are kept, and saved, in bf16."""
    remember_bytes: Count = 0
    """Memory of each rank for what frozen embeddings and first layers of the text encoder make of each text, so that it
    passes them once (masked texts always do; docs/models.md). A rank then has these layers whole besides. 0: off."""
