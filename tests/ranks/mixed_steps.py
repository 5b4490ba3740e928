"""Steps that are hard on ranks, one after the other, each drawn from its number: the same on any number of ranks.

Besides plain ones: a view in which no row has a negative (all show one thing), texts of one token, texts that are all
equal, all of these at once; joint steps and alternating ones in any order; always with 15 rows a view, in negative
groups of 5, so that two ranks hold 8 and 7 of them, and one of the ranks none that is matched.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from cclm.data.batch import Batch, Tokens, ViewBatch
from cclm.data.config import rank_blocks
from cclm.data.options import Schedule
from cclm.distributed.collectives import collectives
from cclm.engine.protocol import Engine
from cclm.train.updates import update
from tests.ranks.harness import OPTIMIZER, Case, make_deepspeed, make_plain, on_ranks
from tests.ranks.resuming import case_of
from tests.tiny_run import recipe, with_regions, write_corpus, write_recipe
from tests.tiny_training import dataset, read

WAYS = ("plain", "one thing", "one token", "equal texts", "all of it")
SCHEDULES: tuple[Schedule, ...] = ("joint", "alternate")
VIEWS = ("image_text", "regions", "text_pair")
RATE = 1e-5
"""So low that the last bits, in which engines differ, stay the last bits over a thousand steps."""


def write_mixed(folder: Path) -> str:
    """Write the corpus and the recipe; return its path."""
    settings = with_regions(recipe(write_corpus(folder), folder / "run"), folder)
    for name, matching in (("image_text", 6), ("regions", 15), ("text_pair", 9)):
        sizes = {"batch_size": 15, "negative_group": 5, "matching_rows": matching, "num_lanes": 5}
        settings["views"][name] |= sizes
    settings["views"]["regions"] |= {"images_per_group": 2}
    settings["optimizer"] = {"total_steps": 10_000, "learning_rate": RATE, "warmup_steps": 2}
    return str(write_recipe(folder / "recipe.yaml", settings))


def drawn(step: int) -> tuple[str, Schedule, str]:
    """Return a step's way, its schedule, and the view that is changed (of all of it, all): each three in turn."""
    all_of_them = list(product(WAYS, SCHEDULES, VIEWS))
    return random.Random(step // len(all_of_them)).sample(all_of_them, k=len(all_of_them))[step % len(all_of_them)]


def changed(batch: Batch) -> Batch:
    """Return the batch of a step as its number wants it."""
    way, _, view = drawn(batch.step)
    names = list(batch.views) if way == "all of it" else [view]
    return replace(batch, views={
        name: _change(one, way) if name in names else one for name, one in batch.views.items()
    })  # fmt: skip


def _change(batch: ViewBatch, way: str) -> ViewBatch:
    changes: dict[str, Any] = {}
    if way in ("one thing", "all of it"):
        names = [name for name in ("identity_R", "identity_S", "identity_P") if hasattr(batch, name)]
        changes |= {name: torch.full_like(getattr(batch, name), 77) for name in names}
    text: Tokens = batch.text  # type: ignore[attr-defined]
    ids_BL, mask_BL = text.ids_BL.clone(), text.mask_BL.clone()
    if way in ("one token", "all of it"):
        mask_BL[:, 1:] = False
    if way in ("equal texts", "all of it"):
        ids_BL[:, 1:] = 7
    if way in ("one token", "equal texts", "all of it"):
        changes["text"] = Tokens(ids_BL=ids_BL, mask_BL=mask_BL)
    return replace(batch, **changes)


def difference(folder: Path, num_steps: int, tolerance: float) -> str:
    """Train under ZeRO-3 on two ranks, and with the plain engine; name the first value that differs by more, or "".

    The tolerance is relative, ten times as wide for gradient norms; of values below 0.1 it is absolute, a tenth of it.
    """
    path = write_mixed(folder)
    on_each = on_ranks(_train_on_rank, 2, path, num_steps, timeout_s=300.0 + 3.0 * num_steps)
    plain = list(_steps(make_plain(_case(path)), path, num_steps))
    return next(filter(None, (_first_difference(found, plain, tolerance) for found in on_each)), "")


def _train_on_rank(path: str, num_steps: int) -> list[dict[str, float]]:
    config, ranks = read(path), collectives()
    for view in config.views.values():
        ranks.prepare(rank_blocks(view.batch_size, view.negative_group, ranks.world_size))
    return list(_steps(make_deepspeed(_case(path)), path, num_steps))


def _case(path: str) -> Case:
    return replace(case_of(Path(path)), optimizer=replace(OPTIMIZER, learning_rate=RATE))


def _steps(engine: Engine[Batch], path: str, num_steps: int) -> Iterator[dict[str, float]]:
    data = dataset(path, engine.rank, engine.world_size)
    for step in range(num_steps):
        result = update(engine, changed(data[step]).normalised(), drawn(step)[1])
        assert result is not None and all(result.applied)
        yield {**engine.reduce_mean(result.metrics), "grad_norm": max(result.grad_norms.read())}


def _first_difference(found: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float) -> str:
    assert len(found) == len(expected)
    for step, (ours, plain) in enumerate(zip(found, expected, strict=True)):
        if ours.keys() != plain.keys():
            return f"step {step} {drawn(step)}: other metrics"
        for name, value in plain.items():
            most = tolerance * (10.0 if name == "grad_norm" else 1.0)
            if not abs(ours[name] - value) <= most * max(abs(value), 0.1):
                return f"step {step} {drawn(step)}: {name} {ours[name]!r}, not {value!r}"
    return ""
