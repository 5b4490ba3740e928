"""Image models of the transformers library, tiny, as the configurations that their authors' files would hold."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedConfig

WIDTH, SIDE = 32, 32
VIT: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
MLP: dict[str, Any] = {**VIT, "intermediate_size": 48}
SQUARE = {"image_size": SIDE}
STAGES: dict[str, Any] = {"patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
CONVOLUTIONS = {"hidden_sizes": [8, 16, 24, 40], "depths": [1, 1, 1, 1]}

CONFIGS: dict[str, PreTrainedConfig] = {
    "siglip": transformers.SiglipVisionConfig(**MLP, **SQUARE),
    "siglip2": transformers.Siglip2VisionConfig(**MLP, num_patches=16),
    "clip": transformers.CLIPVisionConfig(**MLP, **SQUARE),
    "dinov2": transformers.Dinov2Config(**VIT, **SQUARE),
    "dinov2_registers": transformers.Dinov2WithRegistersConfig(**VIT, **SQUARE, num_register_tokens=4),
    "dinov3": transformers.DINOv3ViTConfig(**MLP, **SQUARE, num_register_tokens=4),
    "dinov3_convnext": transformers.DINOv3ConvNextConfig(**CONVOLUTIONS, **SQUARE),
    "swinv2": transformers.Swinv2Config(**STAGES, **SQUARE),
    "beit": transformers.BeitConfig(**MLP, **SQUARE, use_relative_position_bias=True, use_mean_pooling=True),
    "vit": transformers.ViTConfig(**MLP, **SQUARE),
    "convnext": transformers.ConvNextConfig(**CONVOLUTIONS, **SQUARE),
}
"""Those that the documentation names, and a few of other shapes (a pooled tower, stages, no class token)."""
CLASS_TOKENS = ("clip", "dinov2", "dinov2_registers", "dinov3", "beit", "vit")
GRID = {"swinv2": 8, "dinov3_convnext": 1, "convnext": 1}
"""Tokens along a side; 4 elsewhere."""
