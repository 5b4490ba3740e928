"""A tiny network of three views: the same steps on the plain engine, under ZeRO-3, and in a run that goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.parts import missing
from benchmarks.gpu.session import Session
from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.distributed.topology import Topology, process_group
from cclm.engine.adamw import MOMENTS
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine
from cclm.engine.stored_weights import StoredState, load_full_state
from cclm.run.checkpoints import newest_complete, step_folder
from cclm.train.step import CrossViewTraining
from tests.tiny_run import recipe, with_regions, write_corpus
from tests.tiny_training import as_config, dataset_of, module_of

STEPS = 4
FP32_TOLERANCE, BF16_TOLERANCE = 1e-3, 0.02
"""Of a step's loss against the plain engine in float32: other orders of sums, and 8 bits of bfloat16 (4e-3) in states
that the temperature divides. The gradient's norm is a sum over all of that: five times as much."""


def tiny_config(folder: Path, **changes: Any) -> RunConfig:
    """Return a joint run of images, regions and sentence pairs; its corpus is written where it is missing."""
    if not (folder / "images").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_corpus(folder)
    settings = with_regions(recipe(folder, folder / "run"), folder)
    return as_config({**settings, **changes})


def check(session: Session) -> None:
    """Compare GPU with CPU, ZeRO-3 with the plain engine, and bfloat16 with float32, by losses and gradient norms."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = tiny_config(session.scratch, device=session.device.type)
    exact = trained(plain_engine(config, torch.device("cpu")), config)
    here = trained(plain_engine(config, session.device), config)
    compare(session, "plain engine, here against the CPU, fp32", here, exact, FP32_TOLERANCE)
    topology = Topology.from_environment({}, device=config.device)
    with process_group(topology):
        for precision, tolerance in (("fp32", FP32_TOLERANCE), ("bf16", BF16_TOLERANCE)):
            own = replace(config, precision=precision, deepspeed=f"ds_configs/zero3_{precision}.json")
            found = trained(deepspeed_engine(own, topology), own)
            compare(session, f"ZeRO-3 against the plain engine in fp32, {precision}", found, exact, tolerance)


Values = list[tuple[float, float]]
"""Loss and gradient norm of each step."""


def compare(session: Session, name: str, found: Values, expected: Values, tolerance: float) -> None:
    """Check losses and norms, relative to the expected ones."""
    for what, index, factor in (("loss", 0, 1), ("gradient norm", 1, 5)):
        errors = [abs(a[index] - b[index]) / abs(b[index]) for a, b in zip(found, expected, strict=True)]
        session.check(f"{name}: {what}", max(errors), factor * tolerance)


def plain_engine(config: RunConfig, device: torch.device) -> PlainEngine[Batch]:
    """Return the slow twin on a device."""
    return PlainEngine(module_of(config), config.optimizer, seed=config.seed, device=device)


def deepspeed_engine(config: RunConfig, topology: Topology, module: CrossViewTraining | None = None) -> Engine[Batch]:
    """Return DeepSpeed's engine of a configuration (and of its module, if that is there), in a process group of one."""
    from cclm.engine.ds_config import resolve_ds_file
    from cclm.train.network import build_engine

    ds_config = resolve_ds_file(config.deepspeed, config.engine_facts(topology.world_size))
    return build_engine(config, module or module_of(config), topology, ds_config)


def trained(engine: Engine[Batch], config: RunConfig) -> Values:
    """Train some steps on one rank."""
    dataset, found = dataset_of(config), []
    for step in range(STEPS):
        losses = engine.forward(dataset[step].to(engine.device))
        engine.backward(losses)
        found.append((float(losses.total.detach()), float(engine.update(step).grad_norm)))
    return found


def check_resume(session: Session) -> None:
    """Save a run in the middle, go on from there, and compare with the run that was not interrupted, bit by bit."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before its first use: else cuBLAS may add in another order
    engine: dict[str, Any] = {"deepspeed": "ds_configs/zero3_bf16.json", "precision": "bf16"}
    if missing(["deepspeed"]):
        session.note("without DeepSpeed: the run is the plain engine's, in fp32")
        engine = {"engine": "plain"}
    folder = session.scratch
    config = tiny_config(
        folder,
        device=session.device.type,
        optimizer={"total_steps": 2 * STEPS, "learning_rate": 0.002, "warmup_steps": 2},
        checkpoint={"every_steps": STEPS, "keep": 2},
        track={"every_steps": 1, "tensorboard": False},
        **engine,
    )
    whole = in_new_process(replace(config, run_folder=str(folder / "whole")))
    half = folder / "half"
    shutil.copytree(whole, half)
    shutil.rmtree(step_folder(half, 2 * STEPS))
    (half / "done.json").unlink()
    in_new_process(replace(config, run_folder=str(half)))
    differing = different(half, whole)
    if differing and session.device.type == "cuda":  # is it the resuming, or does no run equal another here?
        again = in_new_process(replace(config, run_folder=str(folder / "again")))
        if different(again, whole):
            session.note("two undisturbed runs differ, too: some kernel of the step adds in no fixed order")
            session.check("loss of the first resumed step, relative", losses_apart(half, whole, range(STEPS + 1)), 1e-6)
            session.check("losses of the resumed run, relative", losses_apart(half, whole), BF16_TOLERANCE)
            return
    session.check("values of a resumed run that differ", float(len(differing)), 0.0)


def trained_run(config: RunConfig) -> Path:
    """Do what `python -m pretrain` does, with kernels that add in a fixed order; return the run folder."""
    from cclm.run.signals import StopRequest
    from cclm.train.build import open_run
    from cclm.train.loop import train

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    with open_run(config, StopRequest()) as run:
        assert run is not None and train(run), "the run was not asked to stop"
    return Path(config.run_folder)


def in_new_process(config: RunConfig) -> Path:
    """Do the same in a process of its own: as after a crash, and DeepSpeed joins no second group of ranks in one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(trained_run, (config,))


def different(run: Path, other: Path) -> list[str]:
    """Return the names of weights, moments and logged values that differ at the end."""
    ours, theirs = newest_complete(run), newest_complete(other)
    assert ours is not None and theirs is not None, "both runs have saved"
    names = _unequal(load_full_state(ours), load_full_state(theirs))
    states = StoredState(ours), StoredState(theirs)
    for kind in MOMENTS:
        moments = ({name: one.whole() for name, one in state.tensors(kind).items()} for state in states)
        names += [f"{kind} of {name}" for name in _unequal(*moments)]
    values, expected = logged(run), logged(other)
    return names + [f"step {number}" for number in expected if values.get(number) != expected[number]]


def _unequal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    return [name for name in theirs if name not in ours or not torch.equal(ours[name], theirs[name])]


def logged(run: Path) -> dict[int, dict[str, float]]:
    """Return what stands in a run's log by step, without what the clock decides."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        line["step"]: {name: value for name, value in line["values"].items() if not name.startswith("speed/")}
        for line in lines
    }


def losses_apart(run: Path, other: Path, steps: Container[int] = range(2 * STEPS)) -> float:
    """Return the largest relative difference of the losses of two runs."""
    ours, theirs = logged(run), logged(other)
    return max(abs(ours[step]["loss"] / values["loss"] - 1.0) for step, values in theirs.items() if step in steps)
