"""Write a safetensors file tensor by tensor, so that nothing but a few megabytes of it is in memory at once.

A file is 8 bytes with the length of the header, the header (JSON: name → dtype, shape, place), then the tensors. The
library's own writer wants all tensors of a file in host memory, and copies them once more.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


def write_tensors(
    path: Path, layout: Sequence[Planned], values: Iterable[Iterable[Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write one file and force it to disk.

    Args:
        path: is overwritten.
        layout: names, shapes and types of the tensors, in the order in which they are written.
        values: for each tensor, pieces on any device that are the whole tensor one after the other; each is converted
            to the planned type.
        metadata: texts for the file's header.

    Raises:
        OSError: the storage refuses; then the file is not whole.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    for tensor in layout:
        shape, end = list(tensor.shape), place + tensor.size_bytes
        header[tensor.name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor, pieces in zip(layout, values, strict=True):
            for piece in pieces:
                for part in torch.split(piece.detach().reshape(-1), PIECE_ELEMENTS):
                    file.write(part.to("cpu", tensor.dtype).contiguous().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    assert path.stat().st_size == 8 + len(encoded) + place, f"{path} has another size than its header says"
