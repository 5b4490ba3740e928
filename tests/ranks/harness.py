"""Train the same module on the plain engine and on DeepSpeed ranks, and keep everything that can be compared.

Plug in a module factory (collectives → module that maps a Batch to Losses) and a batch factory
((step, rank, world_size) → Batch: rank r of w holds the r-th of w equal slices of the global batch). Both must be
top-level functions, because ranks import them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace  # noqa: F401 - tests vary cases with replace
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from cclm.data.batch import Batch
from cclm.distributed.collectives import SINGLE, Collectives, collectives
from cclm.distributed.topology import Topology
from cclm.engine.ds_config import EngineFacts, resolve_ds_config
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine, seed_initialisation
from tests.engine_values import full_gradients, full_parameters
from tests.ranks.spawn import on_ranks

ModuleFactory = Callable[[Collectives], nn.Module]
BatchFactory = Callable[[int, int, int], Batch]
OPTIMIZER = OptimizerConfig(total_steps=100, learning_rate=1e-3, warmup_steps=5, max_grad_norm=0.5)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to train and how; picklable."""

    make_module: ModuleFactory
    make_batch: BatchFactory
    num_steps: int
    stage: int = 3
    persistence_threshold: int = 0
    """ZeRO-3 keeps smaller parameters whole; 0 shards every one of them."""
    optimizer: OptimizerConfig = OPTIMIZER
    accumulation_steps: int = 1
    precision: Any = "fp32"
    clears_stale_gradients: bool = True
    """False shows what DeepSpeed does without our guard."""
    keeps_gradients: bool = False
    seed: int = 0
    zero_options: dict[str, Any] = field(default_factory=dict)
    """More keys for `zero_optimization`."""
    ds_options: dict[str, Any] = field(default_factory=dict)
    """More keys for the top of DeepSpeed's JSON."""
    timeout_s: float = 120.0


@dataclass
class History:
    """What a training saw; on ranks above 0 `parameters` is empty."""

    losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    learning_rates: list[dict[str, float]] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)


def train_plain(case: Case) -> History:
    """Train on one process with the plain engine."""
    return drive(make_plain(case), case, range(case.num_steps))


def train_ranks(case: Case, world_size: int = 2) -> list[History]:
    """Train on `world_size` gloo ranks with DeepSpeed; one history per rank."""
    return on_ranks(_train_rank, world_size, case, timeout_s=case.timeout_s)


def in_group(program: Callable[[list[str]], int], words: list[str]) -> int:
    """A program's `main` on a rank, which has its process group: as under `launch run`, without the imports."""
    with patch("cclm.train.build.process_group", lambda topology: nullcontext()):
        return program(words)


def make_plain(case: Case) -> PlainEngine[Batch]:
    seed_initialisation(case.seed)
    return PlainEngine(
        case.make_module(SINGLE),
        case.optimizer,
        seed=case.seed,
        precision=case.precision,
        accumulation_steps=case.accumulation_steps,
    )


def make_deepspeed(case: Case, **options: Any) -> Any:
    """The engine of this rank; call it inside a process group."""
    from cclm.engine.deepspeed import quirks
    from cclm.engine.deepspeed.engine import DeepSpeedEngine

    if not case.clears_stale_gradients:
        quirks.forget_gradients = quirks.clear_stale_gradients = lambda zero, stage: None  # in this process, for good
    topology, ours = Topology.from_environment(device="cpu"), collectives()
    seed_initialisation(case.seed)
    return DeepSpeedEngine(
        case.make_module(ours),
        case.optimizer,
        ds_config=ds_config(case, topology.world_size),
        topology=topology,
        seed=case.seed,
        **options,
    )


def ds_config(case: Case, world_size: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": case.stage, **case.zero_options}
    if case.stage == 3:
        zero["stage3_param_persistence_threshold"] = case.persistence_threshold
    raw = {"zero_optimization": zero, "steps_per_print": 10**9, **case.ds_options}
    facts = EngineFacts(
        micro_batch_size=1,
        world_size=world_size,
        max_grad_norm=case.optimizer.max_grad_norm,
        precision=case.precision,
        accumulation_steps=case.accumulation_steps,
    )
    return resolve_ds_config(raw, facts)


def drive(engine: Engine[Any], case: Case, steps: range) -> History:
    """Run `steps`; each step takes the batches step·G … step·G + G - 1 of the batch factory."""
    history = History()
    for step in steps:
        for micro in range(case.accumulation_steps):
            number = step * case.accumulation_steps + micro
            losses = engine.forward(case.make_batch(number, engine.rank, engine.world_size))
            means = engine.reduce_mean({"total": losses.total, **losses.metrics})
            history.losses.append(means.pop("total"))
            history.metrics.append(means)
            engine.backward(losses)
        if case.keeps_gradients:
            history.gradients.append(full_gradients(engine))
        statistics = engine.update(step)
        history.grad_norms.append(float(statistics.grad_norm))
        history.learning_rates.append(dict(statistics.learning_rates))
    history.parameters = full_parameters(engine)
    return history


def gradient_errors(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference by parameter, relative to the largest entry of the whole reference gradient."""
    assert ours.keys() == reference.keys()
    scale = max(float(value.abs().max()) for value in reference.values())
    return {name: float((ours[name] - reference[name]).abs().max()) / scale for name in reference}


def _train_rank(case: Case) -> History:
    return drive(make_deepspeed(case), case, range(case.num_steps))
