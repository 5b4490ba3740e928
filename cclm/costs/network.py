"""What a recipe's network costs: parameters, FLOPs, bytes moved and bytes kept, counted by running its own code on the
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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
    moved_bytes: float = 0.0
    """Read and written by all other operations, forward and backward, each on its own (nothing fused)."""
    kept_bytes: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(MODES, 0.0))
    """What autograd keeps for the backward pass, by mode of activation checkpointing."""
    block_bytes: float = 0.0
    """The most that one block keeps: what is there for a while when it is computed again."""
    table_bytes: int = 0
    """Moved for the dense gradients of embedding tables in one call, whatever the rows."""
    num_operations: int = 0
    """Kernels of one call, whatever the rows."""


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


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of everything that is neither a view nor counted in FLOPs, and the number of kernels."""

    HAVE_FLOPS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_efficient_attention", "convolution_backward")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved_bytes, self.table_bytes, self.num_operations = 0, 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count it."""
        result = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket.__name__)
        if func.is_view or name in ("_unsafe_view", "detach", "empty", "empty_like", "new_empty"):
            return result
        self.num_operations += 1
        if name == "embedding_dense_backward":  # zero fill and sum of the whole table, whatever the rows
            self.table_bytes += 3 * _bytes_of(result)
        elif name == "embedding":  # reads rows, not the table
            self.moved_bytes += 2 * _bytes_of(result)
        elif name not in self.HAVE_FLOPS and "efficient_attention" not in name:
            self.moved_bytes += _bytes_of((args, kwargs or {}, result))
        return result


def _bytes_of(values: object) -> int:
    return sum(leaf.numel() * leaf.itemsize for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


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
        """Note a tensor that is kept."""
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
        """End a block."""
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
    kept, traffic, flops = _Kept(model), _Traffic(), FlopCounterMode(display=False)
    with _watched(model, kept), traffic, flops:
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda value: value):
            result = function(*inputs)
        forward = flops.get_total_flops()
        if result.requires_grad:  # not if everything that it went through is frozen
            result.backward(torch.empty_like(result))  # type: ignore[no-untyped-call]
    model.zero_grad()
    rows = inputs[0].shape[0]
    by_mode, block = kept.sizes()
    return Cost(
        flops=flops.get_total_flops() / rows, forward_flops=forward / rows, moved_bytes=traffic.moved_bytes / rows,
        kept_bytes={mode: size / rows for mode, size in by_mode.items()}, block_bytes=block / rows,
        table_bytes=traffic.table_bytes, num_operations=traffic.num_operations,
    )  # fmt: skip


def fetch_units(modules: Sequence[nn.Module | None], threshold: int, leaves: Sequence[str]) -> tuple[int, int]:
    """Return how many times a pass of ZeRO-3 gathers (modules with weights of their own above the persistence
    threshold; a leaf module is one), and how many parameters lie below it."""
    units, small = 0, 0
    for module in (module for module in modules if module is not None):
        if type(module).__name__ in leaves:
            sizes = [value.numel() for value in module.parameters()]
            children: Sequence[nn.Module] = ()
        else:
            sizes = [value.numel() for value in module.parameters(recurse=False)]
            children = list(module.children())
        inner = fetch_units(children, threshold, leaves)
        units += inner[0] + any(size > threshold for size in sizes)
        small += inner[1] + sum(size <= threshold for size in sizes)
    return units, small
