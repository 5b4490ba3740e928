"""The training state as flat fragments of its parameters, whatever the engine, the ZeRO stage and the number of ranks.

In a checkpoint each rank has one file, and nobody needs to know how DeepSpeed had cut the parameters:

    state/rank_00000.safetensors    "weights/NAME", "exp_avg/NAME", "exp_avg_sq/NAME", "average/NAME": flat, fp32;
    state/rank_00001.safetensors    "buffers/NAME": whole, on rank 0;
    …                               metadata "state": JSON of `ShareFacts`

Names are the training module's. Fragments of all ranks in the order of their starts are the parameter. Files of this
kind hold numbers and JSON only: reading one runs no code (DeepSpeed's own checkpoints are pickles).

They are written tensor by tensor, so that nothing but a few megabytes of a file is in memory at once: 8 bytes with the
length of the header, the header (JSON: name → dtype, shape, place), then the tensors. The library's own writer wants
all tensors of a file in host memory, and copies them once more.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cclm.run.causes import retried

FOLDER = "state"
"""Of the training state inside a checkpoint."""
WEIGHTS, AVERAGE, BUFFERS = "weights", "average", "buffers"
METADATA = "state"
DTYPE_NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""As the format spells them."""
PIECE_ELEMENTS = 1 << 24
"""Of a tensor, that are converted and copied from its device at once."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One tensor of a file that is to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    """On disk."""

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """What one rank holds of one parameter: of its fp32 master values, a moment, or an average."""

    name: str
    """Of the parameter in the training module."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """First element in the flattened parameter."""
    values: Tensor
    """Flat; shares memory with the engine's values."""


@dataclass(frozen=True, kw_only=True)
class ShareFacts:
    """What stands in one rank's file besides tensors."""

    world_size: int
    """Number of files."""
    places: Mapping[str, tuple[int, Sequence[int]]] = field(default_factory=dict)
    """By parameter: the first element of its fragments in this file, and the whole parameter's shape."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Second names of shared parameters → the name that the files know."""
    updates: int = 0
    """Updates that the moments have seen."""
    average_updates: int = 0
    """Updates that the averages have seen."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """DeepSpeed's own, such as "global_steps"."""
    client_state: dict[str, Any] = field(default_factory=dict)
    """What the engine was given to keep; numbers, texts, lists and mappings with texts as keys."""


def share_path(checkpoint: Path, rank: int) -> Path:
    """Return where a rank's share lies."""
    return checkpoint / FOLDER / f"rank_{rank:05d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class ShareFile:
    """One rank's file before it is written: what it holds still lies where the engine computes."""

    layout: Sequence[Planned]
    values: Sequence[Tensor]
    """One for each of the layout; they share memory with the engine's, so the next update changes them."""
    metadata: Mapping[str, str]

    @cached_property
    def header(self) -> bytes:
        """What stands before the tensors."""
        return header_of(self.layout, self.metadata)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(one.size_bytes for one in self.layout)

    def write(self, path: Path) -> None:
        """Write the file, durably; a fault that passes is met by writing it again (OSError: the storage refuses)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        retried(lambda: write_tensors(path, self.layout, [[value] for value in self.values], self.metadata))

    def copy_into(self, buffer: Tensor) -> None:
        """Copy the bytes of the file into a buffer of bytes in host memory, any thread of this process may.

        From a device it only begins to: synchronise before the values change or the buffer is read.
        """
        place = len(self.header)
        buffer[:place] = torch.frombuffer(bytearray(self.header), dtype=torch.uint8)
        for piece in _pieces_on_device(self.layout, [[value] for value in self.values]):
            size = piece.numel()
            if (
                piece.device.type == "cpu"
            ):  # leaves the caches and Python's lock alone: a third faster than torch's copy
                ctypes.memmove(buffer.data_ptr() + place, piece.data_ptr(), size)
            else:
                buffer[place : place + size].copy_(piece, non_blocking=True)
            place += size
        assert place == self.size_bytes, "the tensors have another size than the layout says"


def share_file(
    facts: ShareFacts, fragments: Mapping[str, Sequence[Fragment]], buffers: Mapping[str, Tensor]
) -> ShareFile:
    """Return one rank's file.

    Fragments come by kind; a parameter has the same place in each, which is noted among the `facts`.
    """
    placed = {one.name: (one.start, one.shape) for kind in fragments.values() for one in kind}
    values = {f"{kind}/{one.name}": one.values for kind, found in fragments.items() for one in found}
    layout = [Planned(name=name, shape=(value.numel(),), dtype=torch.float32) for name, value in values.items()]
    layout += [
        Planned(name=f"{BUFFERS}/{name}", shape=tuple(value.shape), dtype=value.dtype)
        for name, value in buffers.items()
    ]
    metadata = {"format": "pt", METADATA: json.dumps({**asdict(facts), "places": placed})}
    return ShareFile(layout=layout, values=[*values.values(), *buffers.values()], metadata=metadata)


def write_tensors(
    path: Path, layout: Sequence[Planned], values: Iterable[Iterable[Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write one file and force it to disk (OSError: the storage refuses; then the file is not whole).

    `values`: for each of the layout, pieces on any device and of any type that are the tensor one after the other.
    """
    header = header_of(layout, metadata)
    with path.open("wb") as file:
        file.write(header)
        for piece in _pieces_on_device(layout, values):
            file.write(piece.cpu().numpy().data)
        file.flush()
        os.fsync(file.fileno())
    size_bytes = len(header) + sum(tensor.size_bytes for tensor in layout)
    assert path.stat().st_size == size_bytes, f"{path} has another size than its header says"


def header_of(layout: Sequence[Planned], metadata: Mapping[str, str]) -> bytes:
    """Return what stands before the tensors."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    for tensor in layout:
        shape, end = list(tensor.shape), place + tensor.size_bytes
        header[tensor.name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the tensors begin at a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded


def _pieces_on_device(layout: Sequence[Planned], values: Iterable[Iterable[Tensor]]) -> Iterator[Tensor]:
    """Yield the bytes of the tensors, one piece after another, where they lie; converted, never many at once."""
    for tensor, pieces in zip(layout, values, strict=True):
        for piece in pieces:
            for part in torch.split(piece.detach().reshape(-1), PIECE_ELEMENTS):
                yield part.to(tensor.dtype).contiguous().view(torch.uint8)


def aliases_of(module: nn.Module) -> dict[str, str]:
    """Return the second names of shared parameters, each with the first one."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that belong to the module's state (not those that are made anew at each start)."""
    kept = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers(remove_duplicate=False) if name in kept}
