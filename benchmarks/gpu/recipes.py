"""A shipped recipe at its real size on one GPU: FLOPs and utilisation by tower, whole steps, and the batch that fits.

Random weights, made-up data (`corpus`), read and collated before the clock starts. A batch is a multiple of the
recipe's negative group in every view. First the batch that a rank has in the published run, then twice that, then what
the memory of both leads to expect; the largest row of the table is the largest that was tried and fitted.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.corpus import write_corpus
from benchmarks.gpu.engines import deepspeed_engine
from benchmarks.gpu.measure import rounded, seconds_of
from benchmarks.gpu.parts import missing
from benchmarks.gpu.session import Session
from cclm.config import RunConfig
from cclm.costs.step import peak_tflops
from cclm.data.batch import Batch
from cclm.distributed.topology import Topology, process_group
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine
from cclm.recipe.read import RECIPES
from cclm.train.step import CrossViewTraining
from cclm.train.updates import update, updates_of
from tests.tiny_run import shrink
from tests.tiny_run import write_corpus as write_tiny_corpus
from tests.tiny_training import as_config, dataset_of, module_of

RANKS = {"cclm_x2vlm_large": 16, "template": 32, "demo": 2}
"""Ranks of the published run (or what the recipe is written for); the others: 8."""
TOWERS = ("vision_encoder", "text_encoder", "fusion_encoder")
RECORDS = 2048
"""In each made-up set; no batch is larger."""
FULL = 0.92
"""Share of the GPU's memory that the third batch aims at."""
REPEATS = 3


def measure_recipe(session: Session, name: str) -> None:
    """Measure a recipe."""
    settings = settings_of(session, name)
    groups = published_groups(settings, RANKS.get(name, 8))
    config = sized(settings, groups, session)
    batch = read_batch(config, session.device)
    construction = nullcontext() if config.model.vision.stem_norm == "affine" else session.device
    with construction:  # drawing a billion weights takes a CPU half a minute
        module = module_of(config).to(session.device)
    step_flops = measure_towers(session, name, module, config, batch)
    topology = Topology.from_environment({}, device=config.device)
    with process_group(topology):
        engine = engine_of(session, config, module, topology)
        fitted = measure_batches(session, name, engine, settings, groups, step_flops)
    if not fitted:
        session.note(f"{name}: not even the batch of a rank of the published run fits")


def settings_of(session: Session, name: str) -> dict[str, Any]:
    """Return the recipe's settings over made-up data; in a dry run tiny ones."""
    folder: Path = session.scratch
    settings: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    if session.is_dry:
        write_tiny_corpus(folder)
        return {**shrink(name, folder, folder / "run"), "precision": settings.get("precision", "fp32")}
    return {**write_corpus(folder, settings, RECORDS), "run_folder": str(folder / "run")}


def published_groups(settings: Mapping[str, Any], ranks: int) -> int:
    """Return how many negative groups of each view a rank of the published run has, at least one."""
    return max(1, min(view["batch_size"] // view["negative_group"] for view in settings["views"].values()) // ranks)


def sized(settings: dict[str, Any], groups: int, session: Session) -> RunConfig:
    """Return the settings with batches of so many negative groups, all of whose rows are matched if they were."""
    views = {}
    for name, view in settings["views"].items():
        size = groups * view["negative_group"]
        rows = max(groups, view["matching_rows"] * size // view["batch_size"])
        views[name] = {**view, "batch_size": size, "matching_rows": rows - rows % groups, "num_lanes": groups}
    return as_config({**settings, "views": views, "device": session.device.type})


def read_batch(config: RunConfig, device: torch.device) -> Batch:
    """Return the first batch, on the device."""
    return dataset_of(config)[0].to(device)


def engine_of(session: Session, config: RunConfig, module: CrossViewTraining, topology: Topology) -> Engine[Batch]:
    """Return DeepSpeed's engine by the recipe's JSON, or without DeepSpeed the plain one."""
    if missing(["deepspeed"]):
        session.note("without DeepSpeed: the steps are the plain engine's, with weights in float32")
        device, precision = session.device, config.precision
        return PlainEngine(module, config.optimizer, seed=config.seed, device=device, precision=precision)
    return deepspeed_engine(config, topology, module)


# --- towers ---


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a tower was called with."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]


def measure_towers(session: Session, name: str, module: CrossViewTraining, config: RunConfig, batch: Batch) -> float:
    """Write down time and utilisation of each tower alone; return the floating-point operations of a whole step."""
    weights = torch.bfloat16 if config.precision == "bf16" else torch.float32
    module.to(weights)
    autocast = torch.autocast(session.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")
    calls: dict[str, list[Call]] = {tower: [] for tower in TOWERS}
    step_flops = float("nan")
    with session.variant(f"{name}, counting"), autocast, recorded(module, calls):
        with FlopCounterMode(display=False) as counter:
            for part in updates_of(batch, config.data.schedule):
                module(part).total.backward()
        step_flops = float(counter.get_total_flops())
    peak = peak_tflops(session.device, config.precision)
    for tower in TOWERS:
        with session.variant(f"{name}, {tower}"), autocast:
            own = getattr(module.model, tower)
            with FlopCounterMode(display=False) as counter:
                run_calls(own, calls[tower])
            flops = float(counter.get_total_flops())
            seconds = seconds_of(lambda own=own, given=calls[tower]: run_calls(own, given), session.device)
            session.row(
                "towers", recipe=name, tower=tower, tflop=rounded(flops / 1e12), ms=rounded(1e3 * seconds),
                tflops=rounded(flops / seconds / 1e12), mfu=rounded(utilisation(flops, seconds, peak)),
                share_of_step=rounded(flops / step_flops),
            )  # fmt: skip
    module.zero_grad(set_to_none=True)
    module.float()
    gc.collect()
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
    return step_flops


@contextmanager
def recorded(module: CrossViewTraining, calls: Mapping[str, list[Call]]) -> Iterator[None]:
    """Note what each tower is called with."""

    def note(tower: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _, positional, named: calls[tower].append(Call(positional=positional, named=named))

    handles = [getattr(module.model, one).register_forward_pre_hook(note(one), with_kwargs=True) for one in calls]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_calls(tower: nn.Module, calls: list[Call]) -> None:
    """Run a tower forward and backward on what it was called with."""
    for call in calls:
        output: Tensor = tower(*map(_leaf, call.positional), **{key: _leaf(one) for key, one in call.named.items()})
        output.backward(torch.ones_like(output))  # type: ignore[no-untyped-call]


def _leaf(value: Any) -> Any:
    """The same tensor without what it was computed from; it wants a gradient if it did."""
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def utilisation(flops: float, seconds: float, peak: float | None) -> float | None:
    """Return the share of the data sheet's rate (padding that is not computed does not count); None without one."""
    return None if peak is None else flops / seconds / 1e12 / peak


# --- whole steps ---


def measure_batches(
    session: Session, name: str, engine: Engine[Batch], settings: dict[str, Any], groups: int, step_flops: float
) -> int:
    """Write down steps at growing batches until one does not fit, or time is over; return how many fitted."""
    most = RECORDS // max(view["negative_group"] for view in settings["views"].values())
    memory: dict[int, float] = {}
    wanted: int | None = groups
    while wanted is not None and (session.left_s > 5.0 or not memory):
        config = sized(settings, wanted, session)
        try:
            memory[wanted] = measure_steps(session, name, engine, config, step_flops * wanted / groups)
        except torch.cuda.OutOfMemoryError:  # what a step holds then is not given back: nothing runs after this
            session.note(f"{name}: {wanted} negative groups do not fit")
            break
        wanted = next_groups(memory, most, session.device)
    return len(memory)


def next_groups(memory: Mapping[int, float], most: int, device: torch.device) -> int | None:
    """Return what to try next: twice the first, then what the straight line through two of them leads to expect."""
    first, *others = memory
    if not others:
        return 2 * first if 2 * first <= most else None
    if len(others) > 1 or device.type != "cuda":
        return None
    slope = (memory[others[0]] - memory[first]) / (others[0] - first)
    room = FULL * torch.cuda.get_device_properties(device).total_memory / 1e6 - memory[first]
    expected = min(most, first + int(room / slope)) if slope > 0 else most
    return expected if expected > others[0] else None


def measure_steps(session: Session, name: str, engine: Engine[Batch], config: RunConfig, flops: float) -> float:
    """Time whole steps, updates included, on one batch; return the most memory that was taken, in megabytes."""
    device, is_gpu = session.device, session.device.type == "cuda"
    batch = read_batch(config, device)
    schedule = config.data.schedule
    update(engine, batch, schedule)  # allocates what is kept, and lets kernels be compiled and chosen
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    numbers = iter(range(1, 1 + 2 * REPEATS + 60))
    seconds = seconds_of(lambda: update(engine, replace(batch, step=next(numbers)), schedule), device, enough_s=1.0)
    peak = torch.cuda.max_memory_reserved(device) / 1e6 if is_gpu else 0.0
    texts = [tokens for view in batch.views.values() for tokens in (*view.texts, view.masked.tokens)]
    tokens = sum(int(one.mask_BL.sum()) for one in texts)
    images = sum(view.images.shape[0] for view in batch.views.values() if view.images is not None)
    sizes = " + ".join(f"{config.views[view].batch_size} {view}" for view in batch.views)
    samples = sum(config.views[view].pairs_per_step for view in batch.views)
    session.row(
        "recipes", recipe=name, engine=engine.description, batch=sizes,
        ms=rounded(1e3 * seconds), samples_per_s=rounded(samples / seconds), images_per_s=rounded(images / seconds),
        text_tokens_per_s=rounded(tokens / seconds), tflop=rounded(flops / 1e12),
        mfu=rounded(utilisation(flops, seconds, peak_tflops(device, config.precision))),
        peak_gb=rounded(peak / 1e3) if is_gpu else None,
    )  # fmt: skip
    return peak
