"""What a training run does to the blocks of an encoder, each by another `forward`: no module is wrapped or renamed.

It is no part of the network, and no exported folder knows of it.

Activation checkpointing (`activation_checkpointing` in a recipe): what the backward pass needs of a block is computed
again there instead of being kept.

    none         everything is kept
    elementwise  values of activation functions, a fifth of a block's memory, are computed again: that costs no product
    selective    every second block keeps its input only and runs forward once more in the backward pass; others as
                 above
    full         every block does

Losses and gradients are those of an ordinary step bit by bit, dropout included: the state of the random numbers is kept
for each block, and autocast as it was. Why whole blocks, and not all but matrix products (torch's
`create_selective_checkpoint_contexts`): docs/performance.md.

`torch.compile` (`kernels.compile`): what stands between the products of a block becomes few kernels. Blocks of equal
sizes share what was compiled. Texts lie "packed" or "padded" and their shapes are symbols: another number of tokens
compiles nothing anew. Images have one size; their number becomes a symbol when it changes for the first time.
Evaluation runs as it is: exports are compared with what it computes.
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
MOST_SHAPES = 64
"""So often may one function be compiled, for the stages of a Swin, with and without gradients; torch's 8 are too few,
and what comes after them runs uncompiled."""


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


def compile_blocks(encoder: nn.Module, backend: str = "inductor") -> None:
    """Let the blocks of an encoder run compiled while it trains; before `checkpoint_activations`."""
    has_texts = hasattr(encoder, "token_layout")
    if has_texts and encoder.token_layout != "padded":
        encoder.token_layout = "packed"  # type: ignore[assignment]  # "grouped" has another graph for each set of lengths
    blocks = blocks_of(encoder)
    for block in blocks:
        # Dropout is drawn as without compilation: the two forward passes of a micro-batch are two graphs, and draw the
        # same.
        options: dict[str, Any] | None = {"fallback_random": True} if backend == "inductor" else None
        compiled = torch.compile(block.forward, dynamic=has_texts, backend=backend, options=options)
        numbers = None if has_texts else set[int]()
        block.forward = partial(_in_training, block, block.forward, compiled, numbers)
    # ZeRO-3 then gathers a block at once, and hangs no hooks on what is inside of it, which would be in the graph.
    encoder.zero3_leaf_modules = [*getattr(encoder, "zero3_leaf_modules", ()), *blocks]  # type: ignore[assignment]
    torch._dynamo.config.recompile_limit = max(MOST_SHAPES, torch._dynamo.config.recompile_limit)


def _in_training(
    block: nn.Module,
    plain: Callable[..., ResultType],
    compiled: Callable[..., ResultType],
    numbers: set[int] | None,
    *arguments: Any,
    **named: Any,
) -> ResultType:
    """The block's output, compiled if it is being trained; `numbers`: of images (or rows of them) until now."""
    if numbers is not None and block.training:
        numbers.add(len(arguments[0]))
        if len(numbers) > 1:
            torch._dynamo.maybe_mark_dynamic(arguments[0], 0)
    return (compiled if block.training else plain)(*arguments, **named)
