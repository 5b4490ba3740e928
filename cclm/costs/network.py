"""What a recipe's network costs: parameters, FLOPs and bytes kept, counted by running its own code on the
meta device, where tensors have shapes and no values.

Every cost is that of one row (an image, a text, a text with its memory); all are linear in rows of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from cclm.config import Checkpointing
from cclm.model.blocks import blocks_of
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.kernels import Kernels, use_kernels
from cclm.model.layers import FeedForward
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions

MODES: tuple[str, ...] = get_args(Checkpointing)
PARTS = {
    "vision": ("vision_encoder",),
    "text": ("text_encoder",),
    "fusion": ("fusion_encoder",),
    "heads": (
        "image_projection",
        "text_projection",
        "matching_head",
        "box_head",
        "masked_lm_transform",
        "masked_lm_decoder",
        "temperature",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one row, in the network's precision."""

    flops: float = 0.0
    """Of matrix products and attention, forward and backward (nothing computed again)."""
    forward_flops: float = 0.0
    kept_bytes: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(MODES, 0.0))
    """What autograd keeps for the backward pass, by mode of activation checkpointing."""
    block_bytes: float = 0.0
    """The most that one block keeps: what is there for a while when it is computed again."""


def build_on_meta(options: ModelOptions, dtype: torch.dtype = torch.float32) -> CCLMModel:
    """Build a network without memory for its weights; with memory-efficient attention, as a GPU has it."""
    layout = replace(options, token_layout="padded")  # the others look at the values of masks
    with torch.device("meta"):
        model = CCLMModel(CCLMConfig(**asdict(layout)))
    model.tie_weights()
    use_kernels(model, Kernels(attention=_attention))
    model.to(dtype).train()
    return model


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    if mask is not None:
        mask = mask.to(query.dtype).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    attended = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, dropout)
    return attended[0]  # type: ignore[no-any-return]


def count_parameters(modules: Sequence[nn.Module | None]) -> int:
    """Return how many parameters modules have, shared ones once."""
    found = {id(value): value.numel() for module in modules if module is not None for value in module.parameters()}
    return sum(found.values())


def parts_of(model: nn.Module) -> dict[str, list[nn.Module | None]]:
    """Return the modules of each part of a network."""
    return {part: [getattr(model, name) for name in names] for part, names in PARTS.items()}


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Return parameters by part; what parts share (the word table) counts where it stands first."""
    found, seen = {}, list[nn.Module | None]()
    for part, modules in parts_of(model).items():
        before = count_parameters(seen)
        seen += modules
        found[part] = count_parameters(seen) - before
    return found


class _Kept:
    """Storages that autograd keeps, by the block that they were kept in; parameters are not counted."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {value.untyped_storage()._cdata for value in model.parameters()}
        self.bytes_of: dict[int, int] = {}
        self.block_of: dict[int, int] = {}
        """Storage → number of a block, from 1; 0: outside of blocks."""
        self.inputs_of: dict[int, set[int]] = {}
        self.activated: set[int] = set()
        """Values of activation functions."""
        self.depth: list[int] = []
        self.alive: list[Tensor] = []

    def pack(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self.weights and storage._cdata not in self.block_of:
            self._size(value)
            self.block_of[storage._cdata] = self.depth[-1] if self.depth else 0
        return value

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Begin a block: its tensors from before it are its inputs."""
        number = len(self.inputs_of) + 1
        self.inputs_of[number] = {self._size(value) for value in inputs if isinstance(value, Tensor)}
        self.depth.append(number)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.depth.pop()

    def activate(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note what goes into the second layer of a feed-forward network."""
        self.activated.add(self._size(inputs[0]))

    def _size(self, value: Tensor) -> int:
        storage = value.untyped_storage()
        if storage._cdata not in self.bytes_of:
            self.alive.append(value)  # so that no other storage gets its number
            self.bytes_of[storage._cdata] = storage.nbytes()
        return int(storage._cdata)

    def sizes(self) -> tuple[dict[str, int], int]:
        """Return the bytes that are kept by mode (`cclm.model.blocks`), and those of the largest block."""
        everything, repeated = set(self.block_of), list(self.inputs_of)
        kept = {"none": everything, "elementwise": everything - self.activated}
        for mode, blocks in (("selective", repeated[::2]), ("full", repeated)):
            outside = {storage for storage in everything if self.block_of[storage] not in blocks}
            kept[mode] = (outside - self.activated).union(*(self.inputs_of[number] for number in blocks))
        by_block = dict.fromkeys(repeated, 0)
        for storage, number in self.block_of.items():
            if number:
                by_block[number] += self.bytes_of[storage]
        return (
            {mode: sum(self.bytes_of[storage] for storage in storages) for mode, storages in kept.items()},
            max(by_block.values(), default=0),
        )


@contextmanager
def _watched(model: nn.Module, kept: _Kept) -> Iterator[None]:
    """Let blocks tell where they begin and end; dropout is one kernel with a mask of bytes, as on a GPU."""
    hooks = []
    for name in ("vision_encoder", "text_encoder", "fusion_encoder"):
        for block in blocks_of(getattr(model, name)):
            hooks += [block.register_forward_pre_hook(kept.enter), block.register_forward_hook(kept.leave)]
    for module in model.modules():
        if isinstance(module, FeedForward):
            hooks.append(module.narrow.register_forward_pre_hook(kept.activate))

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, True)[0] if training and p > 0 else x

    try:
        with patch.object(functional, "dropout", dropout):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def count(model: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> Cost:
    """Count one call, forward and backward; `inputs` begin with the batch axis, and those that ask get gradients."""
    kept, flops = _Kept(model), FlopCounterMode(display=False)
    with _watched(model, kept), flops:
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda value: value):
            result = function(*inputs)
        forward = flops.get_total_flops()
        if result.requires_grad:  # not if everything that it went through is frozen
            result.backward(torch.empty_like(result))  # type: ignore[no-untyped-call]
    model.zero_grad()
    rows = inputs[0].shape[0]
    by_mode, block = kept.sizes()
    return Cost(
        flops=flops.get_total_flops() / rows, forward_flops=forward / rows,
        kept_bytes={mode: size / rows for mode, size in by_mode.items()}, block_bytes=block / rows,
    )  # fmt: skip
