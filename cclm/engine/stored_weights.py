"""Read the training state of a checkpoint tensor by tensor: nothing is read before it is asked for.

Files are memory-mapped: what is mapped can be dropped again, so it is no second copy of the model. How they are
written: `cclm.engine.fragments`. The slow twin gathers them from the engine
(tests/ranks/test_checkpoint.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cclm.engine.fragments import AVERAGE, BUFFERS, FOLDER, METADATA, WEIGHTS, Fragment, ShareFacts, share_path
from cclm.engine.parts import ALPHA, BASE
from cclm.errors import CheckpointError
from cclm.run.causes import retried
from cclm.run.checkpoints import verify


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a checkpoint, still in its files."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    """As stored; weights of our checkpoints are the fp32 master weights."""
    parts: tuple[Tensor, ...]
    """Flat and memory-mapped; one after the other they are the tensor."""

    @property
    def num_elements(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape)

    def whole(self) -> Tensor:
        """Return the tensor, read into memory."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        sizes = [part.numel() for part in self.parts]
        for flat, part in zip(torch.split(tensor.view(-1), sizes), self.parts, strict=True):
            flat.copy_(part)
        return tensor


def stored_weights(checkpoint: Path) -> dict[str, StoredTensor]:
    """Return all weights and buffers by the training module's names; shared ones under each of their names.

    Of any engine, ZeRO stage and number of ranks; weights are fp32 whatever the ranks computed in. Adapters of LoRA are
    added to the weights of their layers.

    Raises:
        CheckpointError: files of ranks are missing or unreadable.
    """
    state = StoredState(checkpoint)
    found = {**state.tensors(WEIGHTS), **state.buffers()}
    found |= {alias: found[name] for alias, name in state.facts.aliases.items()}
    return without_adapters(found)


def without_adapters(found: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Add each adapter to its layer, by the layer's own names."""
    plain: dict[str, StoredTensor] = {}
    for name, stored in found.items():
        layer, base, rest = name.partition(BASE)
        if base and rest == "weight":
            small, large = (found[f"{layer}.lora_{matrix}.default.weight"].whole().float() for matrix in "AB")
            scale = found[f"{layer}.{ALPHA}"].whole().item() / small.shape[0]
            plain[f"{layer}.{rest}"] = _of_tensor(stored.whole() + scale * (large @ small))
        elif base:
            plain[f"{layer}.{rest}"] = stored
        elif ".lora_A." not in name and ".lora_B." not in name and not name.endswith(f".{ALPHA}"):
            plain[name] = stored
    return plain


def _of_tensor(tensor: Tensor) -> StoredTensor:
    return StoredTensor(shape=tuple(tensor.shape), dtype=tensor.dtype, parts=(tensor.flatten(),))


def stored_average(checkpoint: Path) -> dict[str, StoredTensor]:
    """Return the averages of trainable parameters by the training module's names; each shared one under one name.

    Raises:
        CheckpointError: there are none, or files of ranks are missing or unreadable.
    """
    found = StoredState(checkpoint).tensors(AVERAGE)
    if not found:
        raise CheckpointError(
            where=str(checkpoint),
            expected="averaged weights",
            got="none",
            do="Train with optimizer.ema_decay, or use the weights themselves.",
        )
    return found


def load_full_state(checkpoint: Path) -> dict[str, Tensor]:
    """Return consolidated fp32 weights and buffers, read into memory, by the names of the module's `state_dict`.

    Every byte is verified first. Tensors with several names are read once.

    Raises:
        CheckpointError: a file is damaged or missing.
    """
    verify(checkpoint)
    whole = cache(StoredTensor.whole)
    return {name: whole(tensor) for name, tensor in stored_weights(checkpoint).items()}


class StoredState:
    """The files of all ranks. A rank that finds what it needs in its own opens no other.

    Raises:
        CheckpointError: files of ranks are missing or unreadable.
    """

    def __init__(self, checkpoint: Path, rank: int = 0) -> None:
        self.checkpoint = checkpoint
        self._paths = sorted((checkpoint / FOLDER).glob("rank_*.safetensors"))
        if not self._paths:
            raise _misfit(checkpoint, f"files of ranks (folder {FOLDER!r})", "none")
        own = share_path(checkpoint, rank)
        self._opened = cache(_Share)
        self._first = self._opened(self._paths[0])
        self._own = self._opened(own) if own in self._paths else self._first
        self.facts = self._first.facts
        """What the state holds besides tensors, as rank 0 wrote it, which always holds parameters."""
        if self.facts.world_size != len(self._paths):
            raise _misfit(checkpoint, f"the shares of {self.facts.world_size} ranks", f"{len(self._paths)} files")

    @property
    def _shares(self) -> list[_Share]:
        return [self._opened(path) for path in self._paths]

    def buffers(self) -> dict[str, StoredTensor]:
        """Return the module's buffers."""
        found = {}
        for key in self._first.keys:
            if key.startswith(f"{BUFFERS}/"):
                value = self._first.file.get_tensor(key)
                found[key.removeprefix(f"{BUFFERS}/")] = _of_tensor(value)
        return found

    def tensors(self, kind: str) -> dict[str, StoredTensor]:
        """Return the tensors of a kind ("weights", "average", …), put together from all ranks' fragments."""
        shapes: dict[str, tuple[int, ...]] = {}
        for share in self._shares:
            places = share.facts.places.items()
            shapes |= {name: tuple(shape) for name, (_, shape) in places if f"{kind}/{name}" in share.keys}
        found = {}
        for name, shape in shapes.items():
            parts = _stretch(self._shares, kind, name, shape, 0, math.prod(shape))
            if parts is None:
                raise _misfit(self.checkpoint, f"all of {name}", f"gaps in its {kind}")
            found[name] = StoredTensor(shape=shape, dtype=torch.float32, parts=tuple(parts))
        return found

    @torch.no_grad()
    def fill(self, kind: str, fragments: Iterable[Fragment]) -> None:
        """Copy into each fragment its stretch of the stored tensor of its name.

        Raises:
            CheckpointError: there is no such parameter, or one of another shape.
        """
        for one in fragments:
            wanted = (kind, one.name, one.shape, one.start, one.values.numel())
            parts = _stretch([self._own], *wanted) or _stretch(self._shares, *wanted)
            if parts is None:
                holding = [share for share in self._shares if f"{kind}/{one.name}" in share.keys]
                shapes = {tuple(share.facts.places[one.name][1]) for share in holding}
                raise CheckpointError(
                    expected=f"{kind} of {one.name}, of shape {one.shape}",
                    got=" and ".join(f"shape {shape}" for shape in shapes) or "nothing of that name",
                    do="Resume with the configuration that wrote the checkpoint.",
                    where=str(self.checkpoint),
                )
            sizes = [part.numel() for part in parts]
            for values, part in zip(torch.split(one.values, sizes), parts, strict=True):
                values.copy_(part)

    @torch.no_grad()
    def fill_buffers(self, module: nn.Module) -> None:
        """Copy the stored buffers; those that are made anew at each start are not among them."""
        stored = self.buffers()
        for name, buffer in module.named_buffers():
            if name in stored:
                buffer.copy_(stored[name].whole())


class _Share:
    """One rank's file, opened: its header is read, its tensors are not."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = cast(Any, retried(lambda: safe_open(path, framework="pt")))
            self.keys = frozenset(self.file.keys())
            self.facts = ShareFacts(**json.loads(self.file.metadata()[METADATA]))
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise _misfit(path, "a readable file of a rank's state", " ".join(str(error).split())) from error


def _stretch(
    shares: Sequence[_Share], kind: str, name: str, shape: tuple[int, ...], start: int, size: int
) -> list[Tensor] | None:
    """Return flat pieces that together are `size` elements from `start` on; None if these files do not hold them."""
    key = f"{kind}/{name}"
    holding = [share for share in shares if key in share.keys and tuple(share.facts.places[name][1]) == shape]
    found, at, end = [], start, start + size
    for share in sorted(holding, key=lambda share: share.facts.places[name][0]):
        begin = share.facts.places[name][0]
        if begin <= at < end:
            piece = share.file.get_tensor(key)[at - begin : end - begin]
            if piece.numel():  # else it ends before the stretch begins
                found.append(piece)
                at += piece.numel()
    return found if at == end else None


def _misfit(where: Path, expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        where=str(where),
        expected=expected,
        got=got,
        do="Was it written whole, by all ranks, with this version? Use another checkpoint.",
    )
