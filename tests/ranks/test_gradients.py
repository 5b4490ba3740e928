"""Full gradients under DeepSpeed against one process in float64: ZeRO stages, ranks, micro-batches, views, precisions,
activation checkpointing.

docs/numerics.md quotes the table; `python -m tests.ranks.test_gradients` prints it anew.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.config import ActivationCheckpointing
from cclm.data.batch import Batch
from cclm.data.config import rank_blocks
from cclm.distributed.collectives import Collectives, collectives
from cclm.distributed.topology import Topology
from cclm.engine.ds_config import EngineFacts, resolve_ds_config
from cclm.engine.options import OptimizerConfig
from cclm.engine.protocol import Engine
from cclm.train.updates import with_features_of_all
from tests.engine_values import full_gradients
from tests.left_to_long import left_to_long
from tests.ranks.harness import gradient_errors, on_ranks
from tests.tiny_run import recipe, with_regions, write_corpus, write_recipe
from tests.tiny_training import dataset_of, module_of, read

PATIENCE_S = 3600.0
"""The first that offloads compiles DeepSpeed's AdamW for the CPU."""
STEP = 5
KINDS = (("image_text", "regions", "text_pair"), ("text_pair",), ("regions",), ("image_text",))
"""Views of an update: joint; those of an alternating step, one after another: text only, and images only."""
OPTIMIZER = OptimizerConfig(total_steps=100, learning_rate=1e-30, warmup_steps=0, weight_decay=0.0)
"""Leaves the weights where they are, so that all updates see the same."""


@dataclass(frozen=True)
class Way:
    """A way to compute the same gradients."""

    stage: int
    offload: bool
    parts: int
    precision: Any
    checkpointing: Any


PLACES = ((0, False), (1, False), (2, False), (3, False), (3, True))
"""ZeRO stages, and whether the optimizer's state lies in the node's memory."""
ROWS = [
    (1, "fp32", "none"), (3, "fp32", "none"), (1, "fp32", "selective"), (3, "fp32", "full"),
    (1, "bf16", "none"), (3, "bf16", "none"),
]  # fmt: skip
"""Micro-batches, precision, what all encoders keep: each mode of checkpointing meets every stage and number of ranks
where an error is not hidden by rounding. That it changes no bit: tests/parity/test_activation_checkpointing.py."""
WAYS = [
    Way(*place, *row)
    for row in ROWS
    for place in PLACES
    if row[1] == "fp32" or place[0] > 0  # refused: stage 0 loses accuracy in bf16 (cclm.engine.ds_config)
]
PAIRS = [
    way
    for way in WAYS
    if way.checkpointing != "none"
    or (way.stage == 0 and way.parts == 3)
    or (way.stage == 3 and way.precision == "fp32" and not way.offload)
    or (way.precision == "bf16" and (way.stage == 3) == (way.parts == 3))
]
"""So many that each two of place, micro-batches, precision and what is kept meet, as far as `WAYS` has them."""
SELECTED = {"2, pairs": PAIRS, "2": WAYS, "1": WAYS[::3], "4": WAYS[1::3]}
"""Ranks, and their ways: on one and on four every third, each time others. `table` has them all."""
BOUNDS = {"fp32": 2e-5, "bf16": 0.06}
"""Largest error of an entry, over the largest entry of the whole gradient; bfloat16 keeps 8 bits."""
BF16 = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
"""As shipped."""


def write(folder: Path) -> str:
    """Write the corpus and its recipe."""
    settings = with_regions(recipe(write_corpus(folder), folder / "run"), folder)
    for name, group, matching in (("image_text", 6, 9), ("regions", 6, 18), ("text_pair", 3, 12)):
        sizes = {"batch_size": 18, "negative_group": group, "matching_rows": matching, "num_lanes": 6}
        settings["views"][name] |= sizes
    for encoder in ("text", "fusion"):  # of one block, "selective" would be "full"
        settings["model"][encoder] = {**settings["model"][encoder], "num_layers": 2}
    return str(write_recipe(folder / "recipe.yaml", settings))


def batches(path: str, parts: int, rank: int, world_size: int) -> list[Batch]:
    """The step's micro-batches on a rank."""
    config = read(path)
    config = replace(config, data=replace(config.data, micro_batches=parts))
    return list(dataset_of(config, rank, world_size)[STEP].normalised().parts)


def only(parts: Sequence[Batch], kind: Sequence[str]) -> list[Batch]:
    """The micro-batches of one update."""
    return [replace(part, views={name: part.views[name] for name in kind}) for part in parts]


@cache
def exact(path: str) -> list[dict[str, Tensor]]:
    """Gradients of each kind by one process in float64."""
    module = module_of(read(path)).double()
    (whole,) = batches(path, 1, 0, 1)
    found = []
    for kind in KINDS:
        module.zero_grad(set_to_none=False)
        (batch,) = only([whole], kind)
        module(batch.each(lambda values: values.double() if values.is_floating_point() else values)).total.backward()
        found.append(
            {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
        )
    return found


def errors_of(path: str, ways: Sequence[Way]) -> list[list[float]]:
    """The largest error of each way and kind, on this rank."""
    ranks, errors = collectives(), list[list[float]]()
    for way in ways:
        engine = made(path, way, ranks)
        own = batches(path, way.parts, ranks.rank, ranks.world_size)
        errors.append([])
        for found, reference in zip(gradients(engine, own), exact(path), strict=True):
            errors[-1].append(max(gradient_errors(found, reference).values()))
    return errors


def made(path: str, way: Way, ranks: Collectives) -> Engine[Batch]:
    """The engine of a rank."""
    from cclm.engine.deepspeed.engine import DeepSpeedEngine

    torch.set_num_threads(1)
    topology, config = Topology.from_environment(device="cpu"), read(path)
    kept = ActivationCheckpointing(vision=way.checkpointing, text=way.checkpointing, fusion=way.checkpointing)
    for view in config.views.values():
        ranks.prepare(rank_blocks(view.batch_size // way.parts, view.negative_group, ranks.world_size))
    facts = EngineFacts(
        micro_batch_size=1,
        world_size=ranks.world_size,
        max_grad_norm=1.0,
        precision=way.precision,
        accumulation_steps=way.parts,
    )
    zero: dict[str, Any] = {"stage": way.stage}
    if way.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if way.stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    raw = {"zero_optimization": zero, "steps_per_print": 10**9, **(BF16 if way.precision == "bf16" else {})}
    return DeepSpeedEngine(
        module_of(replace(config, activation_checkpointing=kept), ranks),
        OPTIMIZER,
        ds_config=resolve_ds_config(raw, facts),
        topology=topology,
    )


def gradients(engine: Engine[Batch], parts: Sequence[Batch]) -> Iterator[dict[str, Tensor]]:
    """Gradients of an update of each kind."""
    for kind in KINDS:
        for part in with_features_of_all(engine, only(parts, kind)):
            engine.backward(engine.forward(part))
        yield {name: value.double() for name, value in full_gradients(engine).items()}
        engine.update(STEP)


def table(path: str) -> Iterator[str]:
    """The table of docs/numerics.md."""
    yield "| ranks | micro-batches | precision | kept | stage 0 | stage 1 | stage 2 | stage 3 | stage 3, offload |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for world_size in (1, 2, 4):
        worst = dict[Way, float]()
        for errors in on_ranks(errors_of, world_size, path, WAYS, timeout_s=PATIENCE_S):
            for way, found in zip(WAYS, errors, strict=True):
                worst[way] = max(worst.get(way, 0.0), *found)
        for row in ROWS:
            found = [worst.get(Way(*place, *row)) for place in PLACES]
            cells = ["refused" if error is None else f"{error:.0e}" for error in found]
            yield f"| {' | '.join(map(str, (world_size, *row, *cells)))} |"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", left_to_long(SELECTED, "2", "1", "4"))
def test_every_way_computes_the_same_gradients(path: str, kind: str) -> None:
    world_size, ways = int(kind[0]), SELECTED[kind]
    for errors in on_ranks(errors_of, world_size, path, ways, timeout_s=PATIENCE_S):
        for way, found in zip(ways, errors, strict=True):
            assert max(found) < BOUNDS[way.precision], (way, dict(zip(KINDS, found, strict=True)))


def forgotten(path: str) -> list[int]:
    """How often DeepSpeed has forgotten the order of modules, after each of some updates in three micro-batches."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    calls, original = [0], Coordinator._invalidate_trace

    def counted(self: Any) -> None:
        calls[0] += 1
        original(self)

    Coordinator._invalidate_trace = counted
    ranks, found = collectives(), []
    engine, own = made(path, Way(3, False, 3, "fp32", "none"), ranks), batches(path, 3, ranks.rank, ranks.world_size)
    for _ in range(4):
        for part in with_features_of_all(engine, own):
            engine.backward(engine.forward(part))
        engine.update(STEP)
        found.append(calls[0])
    return found


@pytest.mark.slow
def test_micro_batches_keep_the_order_of_modules(path: str) -> None:
    """It is what parameters are fetched ahead by. The first pass of all is shorter than what comes after it."""
    for calls in on_ranks(forgotten, 2, path, timeout_s=300.0):
        assert calls[-1] == calls[0] <= 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for line in table(write(Path(folder))):
            sys.stdout.write(f"{line}\n")
