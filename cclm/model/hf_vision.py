"""An image encoder from the transformers library: SigLIP 2, CLIP, DINOv2 and v3, Swin v2, BEiT, ViT, ConvNeXt …

    image ─ (patches, for SigLIP 2 of variable size) ─ the tower ─ its final norm ─ [linear to the width] ─┐
                                      tokens (B, P, D), class and register tokens dropped, summary in front ◀┘

The tower is built from the configuration that our own carries, so an exported model needs nothing but transformers.
What a tower holds besides (poolers, mask tokens) takes no part: poolers are left out, mask tokens frozen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from .options import VisionOptions
from .shapes import Float, Int
from .vision import take_patches, with_tokens_before

FINAL_NORMS = {
    "clip_vision_model": "post_layernorm",
    "metaclip_2_vision_model": "post_layernorm",
    "convnext": "layernorm",
    "convnextv2": "layernorm",
    "beit": "pooler.layernorm",
    "data2vec-vision": "pooler.layernorm",
}
"""`model_type` → the norm that the library applies to the pooled token only; here every token passes it."""
HEADLESS = {"siglip_vision_model": "vision_use_head", "siglip2_vision_model": "vision_use_head"}
"""`model_type` → the switch that leaves out a pooling head with parameters."""
VARIABLE_SIZE = "siglip2_vision_model"
"""Takes patches, their mask and the grid's shape instead of pixels."""


def plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what could name code on a hub: a tower computes with the library's own."""
    return {
        name: value for name, value in values.items() if "attn_implementation" not in name and name != "use_kernels"
    }


def build_tower(values: dict[str, Any]) -> nn.Module:
    """An image model with fresh weights from its configuration (the content of its config.json)."""
    given = plain_values(values)
    model_type = given.pop("model_type")
    if model_type in HEADLESS:
        given[HEADLESS[model_type]] = False
    keeps_pooler = FINAL_NORMS.get(model_type, "").startswith("pooler.")
    return fresh_model(AutoConfig.for_model(model_type, **given), keeps_pooler=keeps_pooler)


def fresh_model(config: PreTrainedConfig, *, keeps_pooler: bool = False) -> nn.Module:
    """A model of the library with fresh weights; mask tokens and what pools its states take no part and are frozen."""
    model_class = AutoModel._model_mapping[type(config)]
    accepts = inspect.signature(model_class.__init__).parameters
    without_pooler = {"add_pooling_layer": False} if "add_pooling_layer" in accepts and not keeps_pooler else {}
    model: nn.Module = AutoModel.from_config(config, **without_pooler)
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token") or (name.startswith("pooler.") and not keeps_pooler):
            parameter.requires_grad_(False)
    return model


def tower_width(config: PreTrainedConfig) -> int:
    """Channels of the last states of an image model."""
    width = getattr(config, "hidden_size", None)
    return int(config.hidden_sizes[-1] if width is None else width)


class HFEncoder(nn.Module):
    """An encoder around a tower of the library."""

    tower: Any

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HFEncoder:
        """Move, but do not round the frequencies that positions are turned by: beyond some 100 they would be wrong."""
        whole = {name: one for name, one in self.tower.named_buffers() if "inv_freq" in name and not one.is_meta}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, one in whole.items():
            owner, _, last = name.rpartition(".")
            module = self.tower.get_submodule(owner)
            setattr(module, last, one.to(getattr(module, last).device))
        return self


class HFVisionEncoder(HFEncoder):
    """The "hf" tower."""

    def __init__(self, width: int, options: VisionOptions) -> None:
        super().__init__()
        assert options.tower is not None, "the source is read before a model is built"
        self.tower = build_tower(options.tower)
        config: Any = self.tower.config
        self.model_type = str(config.model_type)
        self.grid_side = options.grid_side
        self.summary = options.summary
        self.patch_size = getattr(config, "patch_size", None)
        own_width = tower_width(config)
        self.project = nn.Linear(own_width, width) if own_width != width else None
        trained_size = getattr(config, "image_size", None)
        trained_size = trained_size[0] if isinstance(trained_size, list | tuple) else trained_size
        accepts = inspect.signature(self.tower.forward).parameters
        stretches = trained_size != options.image_size and "interpolate_pos_encoding" in accepts
        self.arguments = {"interpolate_pos_encoding": True} if stretches else {}
        norm = FINAL_NORMS.get(self.model_type)  # a BEiT that is not mean-pooled has none in its pooler
        self.final_norm_name = norm if norm in dict(self.tower.named_modules()) else None
        # ZeRO-3 gathers per module, but these tables are read by the module around them when they are stretched.
        self.zero3_leaf_modules = [module for name, module in self.tower.named_children() if name == "embeddings"]

    def forward(
        self, images_BCHW: Float[Tensor, "b 3 h w"], *, kept_BK: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Normalised pixels to 1 + P tokens; the first is the summary of the image. P are the kept patches, or all
        (ValueError: a class token is wanted of a tower that has none).
        """
        is_trained = any(parameter.requires_grad for parameter in self.parameters())
        if torch.is_grad_enabled() and is_trained and not images_BCHW.requires_grad:
            # ZeRO-3 lets go of a module's parameters too early in the backward pass if no input of it has a gradient
            images_BCHW = images_BCHW.detach().requires_grad_()
        given = self._patches(images_BCHW) if self.model_type == VARIABLE_SIZE else {"pixel_values": images_BCHW}
        if kept_BK is not None and "pixel_attention_mask" in given:
            given["pixel_attention_mask"] = torch.ones_like(kept_BK)
        with self._dropping(kept_BK):
            states: Tensor = self.tower(**given, **self.arguments).last_hidden_state
        if states.ndim == 4:
            states = states.flatten(2).transpose(1, 2)
        if self.final_norm_name is not None:
            states = self.tower.get_submodule(self.final_norm_name)(states)
        if self.project is not None:
            states = self.project(states)
        num_patches = states.shape[1] if self.grid_side is None else self.grid_side**2
        num_patches = num_patches if kept_BK is None else kept_BK.shape[1]
        num_extra = states.shape[1] - num_patches
        patches_BPD = states[:, num_extra:]
        if self.summary == "mean":
            return torch.cat([patches_BPD.mean(1, keepdim=True), patches_BPD], 1)
        if num_extra < 1:
            raise ValueError(
                f'vision.summary: expected a tower with a class token, got {self.model_type}. Use summary "mean".'
            )
        return torch.cat([states[:, :1], patches_BPD], 1)

    @contextmanager
    def _dropping(self, kept_BK: Tensor | None) -> Iterator[None]:
        """Let the tower's layers see these patches only, and all that its embeddings put before the patches."""
        if kept_BK is None or self.grid_side is None:
            yield
            return
        num_patches = self.grid_side**2

        def drop(_module: nn.Module, _inputs: Any, embedded_BLD: Tensor) -> Tensor:
            return take_patches(embedded_BLD, with_tokens_before(kept_BK, embedded_BLD.shape[1] - num_patches))

        names = (name for name, _ in self.tower.named_modules() if name.split(".")[-1] == "embeddings")
        hook = self.tower.get_submodule(next(names)).register_forward_hook(drop)
        try:
            yield
        finally:
            hook.remove()

    def _patches(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Square images as the patches that a tower for images of any shape wants, channels last in each."""
        assert isinstance(self.patch_size, int)
        batch, channels, height, width = images_BCHW.shape
        down, right = height // self.patch_size, width // self.patch_size
        pieces = images_BCHW.view(batch, channels, down, self.patch_size, right, self.patch_size)
        shape = torch.tensor([[down, right]], device=images_BCHW.device).expand(batch, -1)
        return {
            "pixel_values": pieces.permute(0, 2, 4, 3, 5, 1).reshape(batch, down * right, -1),
            "pixel_attention_mask": torch.ones(batch, down * right, dtype=torch.long, device=images_BCHW.device),
            "spatial_shapes": shape,
        }
