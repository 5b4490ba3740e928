"""`torch.compile` for the blocks of an encoder: what stands between the products of a block becomes few kernels.

Each block's `forward` is replaced and no module is wrapped, so names of parameters, hooks of the block and activation
checkpointing, which comes around this, are as without. Blocks of equal sizes share what was compiled. Texts lie
"packed" or "padded" and their shapes are symbols: another number of tokens compiles nothing anew. Images have one size;
their number becomes a symbol when it changes for the first time.

A training run switches it on (`kernels.compile` in its recipe); it is no part of the network, and no exported folder
knows of it. Evaluation runs as it is: exports are compared with what it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from .checkpointing import blocks_of

ResultType = TypeVar("ResultType")
MOST_SHAPES = 64
"""So often may one function be compiled, for the stages of a Swin, with and without gradients; torch's 8 are too few,
and what comes after them runs uncompiled."""


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
