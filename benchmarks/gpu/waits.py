"""Where the host waits for the GPU in a step of three views, by forward, backward and update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from benchmarks.gpu.engines import deepspeed_engine, plain_engine, tiny_config
from benchmarks.gpu.parts import missing
from benchmarks.gpu.session import Session
from cclm.distributed.topology import Topology, process_group
from tests.tiny_training import dataset_of
from tests.waits import Waits, waits_on_cpu, waits_on_gpu

Result = TypeVar("Result")

WARM_UP = 2
"""Steps whose waits are those of a start: buffers, compiled kernels."""


def check(session: Session) -> None:
    """Write down every place and how often a step waits there; tests say where it may."""
    is_gpu, has_deepspeed = session.device.type == "cuda", not missing(["deepspeed"])
    engine_options = {"precision": "bf16", "deepspeed": "ds_configs/zero3_bf16.json"} if has_deepspeed else {}
    config = tiny_config(session.scratch, device=session.device.type, **engine_options)
    dataset, watch = dataset_of(config), waits_on_gpu if is_gpu else waits_on_cpu
    topology = Topology.from_environment({}, device=config.device)
    found: Counter[tuple[str, str, str]] = Counter()
    with process_group(topology) if has_deepspeed else nullcontext():
        engine = deepspeed_engine(config, topology) if has_deepspeed else plain_engine(config, session.device)
        warm_up = 0 if session.is_dry else WARM_UP
        for step in range(warm_up + 1):
            batch = dataset[step].to(session.device)
            losses = _watched("forward", lambda batch=batch: engine.forward(batch), watch, found)
            _watched("backward", lambda losses=losses: engine.backward(losses), watch, found)
            _watched("update", lambda step=step: engine.update(step), watch, found)
            if step < warm_up:
                found.clear()
    for (phase, what, place), count in sorted(found.items()):
        session.row("waits", phase=phase, operation=what, place=place, count=count)
    session.row("waits", phase="all", operation="", place=engine.description, count=sum(found.values()))


def _watched(
    phase: str,
    work: Callable[[], Result],
    watch: Callable[[], AbstractContextManager[Waits]],
    found: Counter[tuple[str, str, str]],
) -> Result:
    with watch() as waits:
        result = work()
    for (what, place), count in waits.found.items():
        found[phase, what, place] += count
    return result
