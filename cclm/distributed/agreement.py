"""Do all ranks do the same? Asked when they have met, and before each forward call: a disagreement would hang later.

Ranks that run different modules, or gather other numbers of rows than the others expect, wait for each other for
ever. So each rank sends hashes of what must be equal (its configuration; the step and the structure of the batch); only
when they differ are the full texts exchanged, and every rank raises the same sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import torch
import torch.distributed as torch_dist
from torch import Tensor

from cclm.distributed.collectives import Collectives
from cclm.errors import ConfigError

ROW_LETTERS = "BPFRS"
"""Letters of sample counts: a field `…_BCHW` or `…_FG` must have the same first dimension on every rank. Numbers of
tokens (T), of distinct texts and padded lengths (…_BL) may differ."""


def check_same_values(collectives: Collectives, values: Mapping[str, str]) -> None:
    """Raise ConfigError on every rank if a value differs; call it with the same names on every rank.

    One collective of as many integers as values (CPU tensors, so no GPU waits); nothing with one process.
    """
    if collectives.world_size == 1:
        return
    numbers = torch.tensor([[_hash63(text) for text in values.values()]])
    gathered = collectives.gather(numbers)
    if bool((gathered == gathered[:1]).all()):
        return
    everyone: list[dict[str, str]] = [{} for _ in range(collectives.world_size)]
    torch_dist.all_gather_object(everyone, dict(values))
    raise ConfigError(
        expected=f"the same {', '.join(values)} on every rank",
        got="; ".join(_differences(everyone)),
        do="Start all ranks with the same command, files and environment, and let all resume from the same checkpoint.",
        where="agreement of ranks",
    )


def check_same_step(collectives: Collectives, step: int, batch: object) -> None:
    """Raise ConfigError on every rank if the ranks differ in step or structure of the batch. One small collective."""
    structure = batch_structure(batch, collectives.equal_rows)
    check_same_values(collectives, {"step": str(step), "batch structure": structure})


def batch_structure(value: object, equal_rows: bool = True) -> str:
    """A text that is equal for two batches exactly if ranks may run them side by side.

    Without `equal_rows` ranks may have different numbers of samples (their gathers ask for the numbers).
    """
    if isinstance(value, Tensor):
        return f"{value.dtype}:{value.ndim}d".removeprefix("torch.")
    if is_dataclass(value) and not isinstance(value, type):
        parts = []
        for field in fields(value):
            item = getattr(value, field.name)
            if item is None or isinstance(item, Tensor | Mapping) or is_dataclass(item):
                rows = _rows(field.name, item) if equal_rows else ""
                parts.append(f"{field.name}={batch_structure(item, equal_rows)}{rows}")
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}={batch_structure(item, equal_rows)}" for key, item in value.items()) + "}"
    return type(value).__name__


def _rows(name: str, item: object) -> str:
    letters = name.rpartition("_")[2]
    is_counted = isinstance(item, Tensor) and letters[:1] in tuple(ROW_LETTERS) and not letters.endswith("L")
    return f":{item.shape[0]}rows" if is_counted and isinstance(item, Tensor) else ""


def _differences(everyone: list[dict[str, str]]) -> list[str]:
    lines = []
    for what in everyone[0]:
        ranks_by_value: dict[str, list[int]] = {}
        for rank, values in enumerate(everyone):
            ranks_by_value.setdefault(values[what], []).append(rank)
        if len(ranks_by_value) > 1:
            told = ", ".join(f"{value} on {_name_ranks(ranks)}" for value, ranks in ranks_by_value.items())
            lines.append(f"{what} {told}")
    return lines


def _name_ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f", … ({len(ranks)} ranks)" if len(ranks) > 8 else "")
    return ("rank " if len(ranks) == 1 else "ranks ") + shown


def _hash63(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
