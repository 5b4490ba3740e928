"""An exponential moving average of the weights (EMA), kept by the engine beside its optimizer state.

    average ← average + (1 - d) · (weights - average)      after every update,  d = min(ema_decay, (1 + n) / (10 + n))

n is the number of updates before: the first weights, which are random, are forgotten quickly. Every rank averages the
fp32 master values that it holds, whatever the ZeRO stage; nothing is gathered.

In a checkpoint:

    ema/rank_00000.safetensors    flat fp32 fragments by parameter name; metadata: "updates", and "fragments", a JSON
    ema/rank_00001.safetensors    object of name → {"start": first element in the flattened parameter, "shape": of the
    …                             whole parameter}

Fragments of all ranks put in the order of their starts are the parameter, so any number of ranks can read them back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cclm.engine.fragments import Fragment, fill
from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError

FOLDER = "ema"
"""Of the averages inside a checkpoint."""


class WeightAverage:
    """One rank's share of the averages.

    Args:
        decay: d, once the run is long enough.
        fragments: the values at the start; the averages begin as a copy.
        device: where to keep them.
    """

    def __init__(self, decay: float, fragments: Iterable[Fragment], device: torch.device) -> None:
        self.decay, self.updates = decay, 0
        self.averages = [
            Fragment(
                name=fragment.name,
                shape=fragment.shape,
                start=fragment.start,
                values=fragment.values.detach().to(device, torch.float32, copy=True),
            )
            for fragment in fragments
        ]

    @torch.no_grad()
    def update(self, fragments: Sequence[Fragment]) -> None:
        """Move the averages towards the values of now (the same fragments in the same order)."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = [average.values for average in self.averages]
        if averages:
            device = averages[0].device
            values = [fragment.values.detach().to(device, torch.float32) for fragment in fragments]
            torch._foreach_lerp_(averages, values, 1.0 - decay)

    def save(self, checkpoint: Path, rank: int) -> None:
        """Write this rank's file; a rank that holds nothing writes none."""
        if not self.averages:
            return
        (checkpoint / FOLDER).mkdir(exist_ok=True)
        table = {average.name: {"start": average.start, "shape": average.shape} for average in self.averages}
        save_file(
            {average.name: average.values.cpu().contiguous() for average in self.averages},
            checkpoint / FOLDER / f"rank_{rank:05d}.safetensors",
            metadata={"updates": str(self.updates), "fragments": json.dumps(table)},
        )

    def load(self, checkpoint: Path) -> None:
        """Read back what `save` wrote on any number of ranks.

        Raises:
            CheckpointError: the checkpoint has no averages, or others.
        """
        fill(self.averages, stored_average(checkpoint), f"averages in {checkpoint}")
        self.updates = _read_updates(checkpoint)


def start_average(decay: float, fragments: Callable[[], list[Fragment]], device: torch.device) -> WeightAverage | None:
    """Averages that begin now; None for a decay of 0."""
    return WeightAverage(decay, fragments(), device) if decay > 0 else None


def stored_average(checkpoint: Path) -> dict[str, StoredTensor]:
    """The averages of a checkpoint by the training module's names, memory-mapped; each shared tensor under one name.

    Raises:
        CheckpointError: it has none, or a rank's share is missing.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for path in _files(checkpoint):
        with _open(path) as stored:
            table = json.loads(stored.metadata()["fragments"])
            for name, place in table.items():
                shapes[name] = tuple(place["shape"])
                pieces.setdefault(name, []).append((int(place["start"]), stored.get_tensor(name)))
    found = {}
    for name, parts in pieces.items():
        ordered, end = sorted(parts, key=lambda part: part[0]), 0
        for start, values in ordered:
            if start != end:
                raise _misfit(checkpoint, f"all of {name}", f"nothing from element {end} to {start}")
            end += values.numel()
        if end != math.prod(shapes[name]):
            raise _misfit(checkpoint, f"{math.prod(shapes[name])} elements of {name}", f"{end}")
        found[name] = StoredTensor(
            shape=shapes[name], dtype=torch.float32, parts=tuple(values for _, values in ordered)
        )
    return found


def _files(checkpoint: Path) -> list[Path]:
    files = sorted((checkpoint / FOLDER).glob("rank_*.safetensors"))
    if not files:
        raise CheckpointError(
            where=str(checkpoint),
            expected=f"averaged weights (folder {FOLDER!r})",
            got="none",
            do="Train with optimizer.ema_decay, or use the weights themselves.",
        )
    return files


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise _misfit(path, "a readable safetensors file", " ".join(str(error).split())) from error


def _read_updates(checkpoint: Path) -> int:
    with _open(_files(checkpoint)[0]) as stored:
        return int(stored.metadata()["updates"])


def _misfit(where: Path, expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        where=str(where), expected=expected, got=got, do="Use another checkpoint, or the weights themselves."
    )
