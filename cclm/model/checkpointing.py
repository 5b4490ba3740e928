"""Activation checkpointing: what the backward pass needs of a block is computed again there instead of being kept.

    none         everything is kept
    elementwise  values of activation functions, a fifth of a block's memory, are computed again: that costs no product
    selective    every second block keeps its input only and runs forward once more in the backward pass; others as
                 above
    full         every block does

Losses and gradients are those of an ordinary step bit by bit, dropout included: the state of the random numbers is kept
for each block, and autocast as it was. A training run switches it on (`activation_checkpointing` in its recipe); it is
no part of the network, and no exported folder knows of it.

Why whole blocks, and not all but matrix products (torch's `create_selective_checkpoint_contexts`): docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .beit import BeitBlock
from .layers import FeedForward, TransformerLayer
from .swin import SwinBlock
from .vision import StemStage

ResultType = TypeVar("ResultType")
BLOCKS = (TransformerLayer, SwinBlock, BeitBlock, StemStage, GradientCheckpointingLayer)
"""What is repeated as a whole; where one stands inside of another, the inner one."""


def checkpoint_activations(encoder: nn.Module, mode: str) -> None:
    """Let the blocks of an encoder keep less for the backward pass: "none", "elementwise", "selective" or "full"
    (ValueError: an encoder without blocks, or with none that are known as such).
    """
    if mode == "none":
        return
    blocks = blocks_of(encoder)
    if not blocks and mode != "elementwise":
        raise ValueError(
            f"activation_checkpointing: expected an encoder of blocks that can be repeated, got "
            f'{type(encoder).__name__} without one. Use "none" for it.'
        )
    repeated = {"elementwise": [], "selective": blocks[::2], "full": blocks}[mode]
    # A repeated block fills its tensors anew: it has nothing to restore, and restoring would be into the first ones.
    inside = {module for block in repeated for module in block.modules()}
    for module in encoder.modules():
        if isinstance(module, FeedForward):
            module.recomputes_activation = module not in inside
    for block in repeated:
        # In place of `forward`, not around the call: hooks of the block itself (ZeRO-3's) run once each way, and its
        # parameters are there when it is repeated, because the hook before its backward pass has gathered them.
        block.forward = partial(_checkpointed, block.forward)


def blocks_of(encoder: nn.Module) -> list[nn.Module]:
    """Return the blocks of an encoder, from the first to the last."""
    known = _innermost(encoder, lambda module: isinstance(module, BLOCKS))
    # ConvNeXt's are not marked for checkpointing, but as what must stay on one device when a model is split.
    names = {name for module in encoder.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return known or _innermost(encoder, lambda module: type(module).__name__ in names)


def _innermost(encoder: nn.Module, is_block: Callable[[nn.Module], bool]) -> list[nn.Module]:
    return [module for module in encoder.modules() if is_block(module) and sum(map(is_block, module.modules())) == 1]


def _checkpointed(function: Callable[..., ResultType], *arguments: Any, **named: Any) -> ResultType:
    """Return `function` of the arguments; if there will be a backward pass, it is called again there."""
    if not torch.is_grad_enabled():
        return function(*arguments, **named)
    result: ResultType = checkpoint(function, *arguments, use_reentrant=False, **named)
    return result
