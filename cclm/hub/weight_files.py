"""Write weights as safetensors, piece by piece: a model of any size passes through a few megabytes of memory.

model.safetensors                                 all of them, if they fit into one shard, or
model-00001-of-00003.safetensors, …               shards, each at most `shard_bytes` (a larger tensor has its own)
model.safetensors.index.json                      name → shard, as `transformers` reads it
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from cclm.engine.fragments import Planned, write_tensors
from cclm.engine.stored_weights import StoredTensor
from cclm.errors import ConfigError

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, Dtype] = {
    "fp32": "float32", "bf16": "bfloat16", "fp16": "float16",
    "float32": "float32", "bfloat16": "bfloat16", "float16": "float16",
}  # fmt: skip
"""What people write → torch's name."""
INDEX_NAME = "model.safetensors.index.json"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
Source = Callable[[], Mapping[str, StoredTensor]]
"""Opens the weights anew: dropping the mapping before gives back the pages of files that it held."""
REOPEN_BYTES = 1 << 28
"""Mapped pages count as memory of the process until the mapping is dropped, so it is opened anew after so many."""


def parse_size(text: str) -> int:
    """Bytes of "500MB", "5GB", "2GiB" or a plain number (ConfigError: something else, or nothing)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise ConfigError(
            where="--shard-size",
            expected="a size such as 500MB, 5GB or 2GiB",
            got=repr(text),
            do="Write a number and a unit.",
        )
    return int(float(match[1]) * unit)


def write_weights(
    source: Source, folder: Path, *, names: Sequence[str], dtype: Dtype | None, shard_bytes: int
) -> list[str]:
    """Write the named tensors of `source` (not the second names of tied ones) into `folder`; return the files' names.

    `dtype`: of floating-point tensors on disk; None: as stored. `shard_bytes`: largest size of a file.
    """
    stored, wanted = source(), None if dtype is None else getattr(torch, dtype)
    layout = {}
    for name in names:
        kept = stored[name].dtype
        layout[name] = Planned(
            name=name, shape=stored[name].shape, dtype=wanted if wanted and kept.is_floating_point else kept
        )
    del stored
    shapes = {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in layout.items()}
    shards = split_torch_state_dict_into_shards(shapes, max_shard_size=shard_bytes)
    for file, inside in shards.filename_to_tensors.items():
        pieces = (one.parts for one in visit(source, inside))
        write_tensors(folder / file, [layout[name] for name in inside], pieces, {"format": "pt"})
    files = list(shards.filename_to_tensors)
    if shards.is_sharded:
        facts = {"total_parameters": sum(math.prod(one.shape) for one in layout.values()), **shards.metadata}
        text = json.dumps({"metadata": facts, "weight_map": shards.tensor_to_filename}, indent=2) + "\n"
        (folder / INDEX_NAME).write_text(text, encoding="utf-8")
        files.append(INDEX_NAME)
    return files


def visit(source: Source, names: Sequence[str]) -> Iterator[StoredTensor]:
    """The named tensors, one after the other, with few of their pages in memory; use each before the next."""
    stored, touched = source(), 0
    for name in names:
        if touched > REOPEN_BYTES:
            del stored
            stored, touched = source(), 0
        yield stored[name]
        touched += stored[name].num_elements * stored[name].dtype.itemsize


def in_memory(state: Mapping[str, Tensor]) -> Source:
    """Tensors that are in memory already (or mapped), as a source."""
    stored = {
        name: StoredTensor(shape=tuple(value.shape), dtype=value.dtype, parts=(value.detach().reshape(-1),))
        for name, value in state.items()
    }
    return lambda: stored
