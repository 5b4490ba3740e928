"""The weights inside a checkpoint's files, tensor by tensor: nothing is read before it is asked for.

    zero_pp_rank_*_optim_states.pt   the fp32 master weights, cut over the ranks:
        stages 1, 2   all parameters of a group in a row, the row cut into one piece a rank
        stage 3       every parameter cut into one piece a rank, a rank's pieces in a row
    mp_rank_00_model_states.pt       stage 0 (whole), and the names and shapes of the others
    plain_state.pt                   the plain engine (whole)

Files are memory-mapped: what is mapped can be dropped again, so it is no second copy of the model. DeepSpeed is not
imported and no code of a checkpoint runs: classes other than torch's own are read as empty shells. The slow twin is
DeepSpeed's `get_fp32_state_dict_from_zero_checkpoint` (tests/ranks/test_checkpoint.py).
"""

from __future__ import annotations

import collections
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cclm.engine.plain import STATE_FILE
from cclm.errors import CheckpointError

TAG = "deepspeed"
"""Name of DeepSpeed's own folder inside a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a checkpoint, still in its files."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    """As stored; weights of DeepSpeed checkpoints are the fp32 master weights."""
    parts: tuple[Tensor, ...]
    """Flat and memory-mapped; one after the other they are the tensor, then perhaps padding."""

    @property
    def num_elements(self) -> int:
        """Without padding."""
        return math.prod(self.shape)

    def pieces(self, max_elements: int = 1 << 24) -> Iterator[Tensor]:
        """Flat pieces of at most `max_elements`, in order; together the whole tensor without padding."""
        left = self.num_elements
        for part in self.parts:
            for piece in torch.split(part[:left], max_elements):
                yield piece
                left -= piece.numel()

    def whole(self) -> Tensor:
        """The tensor, read into memory."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        flat, done = tensor.view(-1), 0
        for piece in self.pieces():
            flat[done : done + piece.numel()] = piece
            done += piece.numel()
        assert done == flat.numel(), f"{done} of {flat.numel()} elements"
        return tensor


def stored_weights(checkpoint: Path) -> dict[str, StoredTensor]:
    """All weights and buffers of a checkpoint by the training module's names; shared ones under each of their names.

    Any ZeRO stage, any number of ranks, the plain engine; floating-point ones are fp32 whatever the ranks computed in.

    Raises:
        CheckpointError: files of ranks are missing, or are of another kind.
    """
    if (checkpoint / STATE_FILE).exists():
        return _whole_tensors(_read(checkpoint / STATE_FILE)["module"])
    folder = checkpoint / TAG
    shares = _natural_order(folder.glob("*_optim_states.pt"))
    if not shares:
        return _whole_tensors(_read(folder / "mp_rank_00_model_states.pt")["module"])
    models = _natural_order(folder.glob("*_model_states.pt"))
    if not models:
        raise _misfit(checkpoint, "files *_model_states.pt", "none")
    model = _read(models[0])
    states = [_read(path)["optimizer_state_dict"] for path in shares]
    ranks = states[0].get("partition_count")
    ranks = max(ranks) if isinstance(ranks, list) else ranks
    if ranks != len(states):
        raise _misfit(checkpoint, f"the shares of {ranks} ranks", f"{len(states)} files *_optim_states.pt")
    frozen = model.get("frozen_param_shapes") or {}
    found = _whole_tensors({name: model["module"][name] for name in model["buffer_names"]})
    if "fp32_flat_groups" in states[0]:
        found.update(_stage_3([state["fp32_flat_groups"] for state in states], model["param_shapes"]))
        fragments = [_read(path)["frozen_param_fragments"] for path in models] if frozen else []
        for name, shape in frozen.items():
            found[name] = _stored(shape, [fragment[name].flatten() for fragment in fragments])
    elif "single_partition_of_fp32_groups" in states[0]:
        rows = [state["single_partition_of_fp32_groups"] for state in states]
        found.update(_stages_1_2(rows, model["param_shapes"], states[0].get("param_alignment_paddings")))
        found.update({name: _stored(shape, [model["frozen_param_fragments"][name]]) for name, shape in frozen.items()})
    else:
        raise _misfit(checkpoint, "fp32 weights of a ZeRO stage", f"only {', '.join(states[0])}")
    shared = model["shared_params"] or {}
    return found | {alias: found[name] for alias, name in shared.items() if name in found}


def _stages_1_2(
    rows: Sequence[Sequence[Tensor]], shapes_by_group: Sequence[Mapping[str, Any]], paddings: Sequence[Any] | None
) -> dict[str, StoredTensor]:
    """Parameters lie one behind the other (with paddings) in a row that was cut into one piece a rank."""
    found = {}
    for group, shapes in enumerate(shapes_by_group):
        pieces, start = [row[group] for row in rows], 0
        for number, (name, shape) in enumerate(shapes.items()):
            found[name] = _stored(shape, _cut(pieces, start, math.prod(shape)))
            start += math.prod(shape) + (paddings[group][number] if paddings else 0)
    return found


def _stage_3(rows: Sequence[Sequence[Tensor]], shapes_by_group: Sequence[Mapping[str, Any]]) -> dict[str, StoredTensor]:
    """Every rank holds an equal piece of every parameter; the last rank's ends in padding."""
    found, start = {}, 0
    for shapes in shapes_by_group:
        for name, shape in shapes.items():
            size = math.ceil(math.prod(shape) / len(rows))
            found[name] = _stored(shape, [part for row in rows for part in _cut(row, start, size)])
            start += size
    return found


def _cut(pieces: Sequence[Tensor], start: int, size: int) -> list[Tensor]:
    """`size` elements from `start` on, of flat pieces that lie one behind the other."""
    found = []
    for piece in pieces:
        length = piece.numel()
        if size > 0 and start < length:
            found.append(piece[start : start + size])
            size -= found[-1].numel()
        start = max(start - length, 0)
    assert size == 0, f"{size} elements are missing"
    return found


def _whole_tensors(state: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    return {name: _stored(value.shape, [value.flatten()]) for name, value in state.items()}


def _stored(shape: Sequence[int], parts: Sequence[Tensor]) -> StoredTensor:
    return StoredTensor(shape=tuple(shape), dtype=parts[0].dtype, parts=tuple(parts))


def _natural_order(paths: Iterator[Path]) -> list[Path]:
    """By rank: rank 10 comes after rank 9."""
    return sorted(paths, key=lambda path: [int(word) if word.isdigit() else -1 for word in path.name.split("_")])


def _misfit(checkpoint: Path, expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        where=str(checkpoint),
        expected=expected,
        got=got,
        do="Was it written by the DeepSpeed engine, by all ranks? Use another checkpoint.",
    )


class _Shell:
    """Stands for an object whose class is not wanted here (DeepSpeed's loss scaler and the like)."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def __setstate__(self, state: Any) -> None:
        """Drop it."""


_DTYPES = ("float32", "bfloat16", "float16", "float64", "int64", "bool")
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "Tensor"): Tensor,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): torch._tensor._rebuild_from_type_v2,
    **{("torch", name): getattr(torch, name) for name in _DTYPES},
}
"""What tensors, sizes and ordered dicts are pickled as, besides torch's functions that rebuild tensors."""


class _Unpickler(pickle.Unpickler):
    """Knows what tensors, sizes and ordered dicts are made of; everything else becomes a shell, and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """Only what holds tensors together."""
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return getattr(torch._utils, name)
        return _KNOWN.get((module, name), _Shell)


def _read(path: Path) -> dict[str, Any]:
    """A file that `torch.save` wrote, memory-mapped."""
    reader = SimpleNamespace(Unpickler=_Unpickler, load=pickle.load, __name__="pickle")
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=reader)
    return content
