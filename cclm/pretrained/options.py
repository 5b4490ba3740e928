"""What a fresh run starts from. Nothing is imported to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cclm.types import PathText

Reach = Literal["auto", "text", "text_and_fusion"]
"""Which stacks an XLM-R fills."""


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What a fresh run starts from (a resumed one has its checkpoint), and what of it stays as it is."""

    sources: tuple[PathText, ...] = ()
    """Weights: original Swin or BEiT-v2 files, X2-VLM files, Hugging Face models by name or folder (image and text
    models for "hf" towers, Swin and BEiT for those towers, XLM-R, BERT and their kin for texts), exports and imports.
    Later ones win."""
    text_fills: Reach = "auto"
    """Which stacks the evenly spaced layers of an XLM-R or BERT fill: "text", "text_and_fusion", or "auto": as
    published, both where the image tower is Swin, else the text encoder."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they start, by prefix of parameter names as in `optimizer.module_multipliers`
    ("model.vision_encoder", "model.text_encoder.stack.layers.*"): no gradient, no moments, no decay. A shared matrix
    (tied decoder and word table) is frozen by any of its names. In bf16 they are kept, and saved, in bf16."""
