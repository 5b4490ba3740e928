"""The weights and moments inside a checkpoint's files, tensor by tensor: nothing is read before it is asked for.

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

from cclm.errors import CheckpointError

STATE_FILE = "plain_state.pt"
"""The one file that `PlainEngine.save` writes: dict(module, optimizer, client_state)."""
TAG = "deepspeed"
"""Name of DeepSpeed's own folder inside a checkpoint."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW, torch's, DeepSpeed's and the published one, keeps of every value."""
COUNTERS = ("global_steps", "global_samples", "skipped_steps")


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

    def stretch(self, start: int, size: int) -> list[Tensor]:
        """Flat pieces that together are `size` elements from `start` on; not read yet."""
        return _cut(self.parts, start, size)

    def whole(self) -> Tensor:
        """The tensor, read into memory."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        flat, done = tensor.view(-1), 0
        for piece in self.pieces():
            flat[done : done + piece.numel()] = piece
            done += piece.numel()
        assert done == flat.numel(), f"{done} of {flat.numel()} elements"
        return tensor


@dataclass(frozen=True, kw_only=True)
class StoredState:
    """The whole training state of ZeRO ranks, still in their files."""

    ranks: int
    """How many wrote it."""
    weights: Mapping[str, StoredTensor]
    """As `stored_weights` gives them."""
    moments: Mapping[str, Mapping[str, StoredTensor]]
    """By the optimizer's key (`MOMENTS`), then by the names of trainable parameters."""
    updates: float
    """Updates that the moments have seen."""
    counters: Mapping[str, Any]
    """DeepSpeed's own, such as "global_steps"."""
    client_state: dict[str, Any]
    """What the engine was given to keep."""


def stored_weights(checkpoint: Path) -> dict[str, StoredTensor]:
    """All weights and buffers of a checkpoint by the training module's names; shared ones under each of their names.

    Any ZeRO stage, any number of ranks, the plain engine; floating-point ones are fp32 whatever the ranks computed in.

    Raises:
        CheckpointError: files of ranks are missing, or are of another kind.
    """
    if (checkpoint / STATE_FILE).exists():
        return _whole_tensors(_read(checkpoint / STATE_FILE)["module"])
    if not ranks_of_shares(checkpoint):
        return _whole_tensors(_read(checkpoint / TAG / "mp_rank_00_model_states.pt")["module"])
    return _open_shares(checkpoint).weights()


def stored_state(checkpoint: Path) -> StoredState:
    """Weights, moments and everything else of a checkpoint that ZeRO cut over its ranks (stages 1 to 3).

    Raises:
        CheckpointError: files of ranks are missing, or are of another kind.
    """
    shares = _open_shares(checkpoint)
    counts = {float(entry["step"]) for base in shares.base_states() for entry in base["state"].values()}
    if len(counts) != 1:
        raise _misfit(checkpoint, "parameters that were all updated equally often", f"{sorted(counts)} updates")
    return StoredState(
        ranks=len(shares.states),
        weights=shares.weights(),
        moments={key: shares.moments(key) for key in MOMENTS},
        updates=counts.pop(),
        counters={key: shares.model[key] for key in COUNTERS},
        client_state=shares.model["client_state"],
    )


def ranks_of_shares(checkpoint: Path) -> int:
    """How many ranks the optimizer's state is cut over; 0 if it is whole (stage 0, the plain engine)."""
    return len(list((checkpoint / TAG).glob("*_optim_states.pt")))


@dataclass(frozen=True, kw_only=True)
class _Shares:
    """The files of ZeRO ranks, opened."""

    models: Sequence[Path]
    model: Mapping[str, Any]
    """Rank 0's file of the model: names and shapes."""
    states: Sequence[Mapping[str, Any]]
    """Each rank's share of the optimizer."""

    @property
    def is_stage_3(self) -> bool:
        return "fp32_flat_groups" in self.states[0]

    def weights(self) -> dict[str, StoredTensor]:
        """Trainable, frozen and shared ones, and buffers."""
        if not self.is_stage_3:  # everything is there whole, the trainable ones as the ranks compute with them
            found = _whole_tensors(self.model["module"])
            found.update(self._put_together([state["single_partition_of_fp32_groups"] for state in self.states]))
            return self._with_aliases(found)
        found = _whole_tensors({name: self.model["module"][name] for name in self.model["buffer_names"]})
        found.update(self._put_together([state["fp32_flat_groups"] for state in self.states]))
        frozen = self.model.get("frozen_param_shapes") or {}
        fragments = [_read(path)["frozen_param_fragments"] for path in self.models] if frozen else []
        for name, shape in frozen.items():
            found[name] = _stored(shape, [fragment[name].flatten() for fragment in fragments])
        return self._with_aliases(found)

    def moments(self, key: str) -> dict[str, StoredTensor]:
        """One moment of the trainable ones."""
        rows = [[base["state"][number][key] for number in sorted(base["state"])] for base in self.base_states()]
        return self._with_aliases(self._put_together(rows))

    def base_states(self) -> Iterator[Mapping[str, Any]]:
        """What the ranks' AdamW saved."""
        for state in self.states:
            yield state["optimizer_state_dict" if self.is_stage_3 else "base_optimizer_state"]

    def _put_together(self, rows: Sequence[Sequence[Tensor]]) -> dict[str, StoredTensor]:
        """Flat values of all ranks, by group, as tensors by name."""
        shapes = self.model["param_shapes"]
        if self.is_stage_3:
            return _stage_3(rows, shapes)
        return _stages_1_2(rows, shapes, self.states[0].get("param_alignment_paddings"))

    def _with_aliases(self, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
        shared = self.model["shared_params"] or {}
        return found | {alias: found[name] for alias, name in shared.items() if name in found}


def _open_shares(checkpoint: Path) -> _Shares:
    """Map the files; raise CheckpointError if one is missing or of another kind."""
    folder = checkpoint / TAG
    models = _natural_order(folder.glob("*_model_states.pt"))
    if not models:
        raise _misfit(checkpoint, "files *_model_states.pt", "none")
    states = [_read(path)["optimizer_state_dict"] for path in _natural_order(folder.glob("*_optim_states.pt"))]
    if not states:
        raise _misfit(checkpoint, "files *_optim_states.pt (ZeRO stages 1 to 3)", "none")
    ranks = states[0].get("partition_count")
    ranks = max(ranks) if isinstance(ranks, list) else ranks
    if ranks != len(states):
        raise _misfit(checkpoint, f"the shares of {ranks} ranks", f"{len(states)} files *_optim_states.pt")
    if not {"fp32_flat_groups", "single_partition_of_fp32_groups"} & states[0].keys():
        raise _misfit(checkpoint, "fp32 weights of a ZeRO stage", f"only {', '.join(states[0])}")
    return _Shares(models=models, model=_read(models[0]), states=states)


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
