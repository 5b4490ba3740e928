"""The only wiring: a configuration becomes a `Run`, fresh or resumed."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from cclm.checkpoint.collective import newest_sound
from cclm.checkpoint.copies import bring_in
from cclm.config import RunConfig, validate_ranks
from cclm.data.batch import Batch
from cclm.data.config import rank_blocks, rank_errors
from cclm.data.counts import Quarantine, SamplesSeen
from cclm.data.ledger import LedgerFile
from cclm.data.loader import StepDataset, make_loader, on_device
from cclm.data.tokens import TextTokenizer, load_tokenizer
from cclm.distributed.agreement import check_same_values, made_by_first
from cclm.distributed.collectives import Collectives, collectives
from cclm.distributed.topology import Topology, process_group, write_recorded_collectives
from cclm.engine.deepspeed.construction import sharded_construction
from cclm.engine.ds_config import resolve_ds_file
from cclm.engine.protocol import Engine
from cclm.errors import Cause
from cclm.files.lock import run_lock
from cclm.hub.open import longest_text, transform_of
from cclm.hub.reference_outputs import make_recorder
from cclm.ops.choice import Choice, ModelKernels, choose_model_kernels
from cclm.ops.heap import treat_freed_memory
from cclm.run.checkpoints import ROLLBACKS_FILE, Rollback, read_rollbacks
from cclm.run.ending import MemoryGuard
from cclm.run.machine import THREADS, own_cores, share_cores
from cclm.run.signals import StopRequest
from cclm.run.status import DoneMarker, RankStatus
from cclm.run.stop import clear_for_this_start, note_left
from cclm.run.talk import Board, Talk
from cclm.run.watch import START, Limits, Watch
from cclm.track.metrics import MetricsLog
from cclm.track.progress import Progress
from cclm.track.sections import SectionClock
from cclm.track.trackers import Csv, TensorBoard, Tracker, check_services, service
from cclm.train.folder import QUARANTINE, check_same_run, identity_parts, input_hashes, write_identity, write_kernels
from cclm.train.health import BAD_STEPS_FILE, BadSteps, Health
from cclm.train.loop import Checkpointer, Run
from cclm.train.network import build_engine, build_module, names_towers, network_of, with_named_towers
from cclm.train.profile import StepProfile
from cclm.train.recorder import Recorder
from cclm.train.rollback import LeftOut
from cclm.train.shared_evaluation import Evaluation
from cclm.train.speed import Speedometer
from cclm.train.zero_shot_evaluation import zero_shot_evaluation
from cclm.views.table import VIEWS, Table, make_views
from cclm.views.view import View, open_dataset

WORKSPACE, WORKSPACE_VALUE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
"""cuBLAS sums in one order only with a workspace of its own for each stream: 8 of 4 MiB."""
MakeEvaluation: TypeAlias = Callable[[RunConfig, Engine[Batch], StepDataset, int], Evaluation]
"""(configuration, engine, this rank's data, step that training starts with) → what is measured."""


@contextmanager
def open_run(
    config: RunConfig,
    stop: StopRequest,
    table: Table = VIEWS,
    make_evaluation: MakeEvaluation = zero_shot_evaluation,
) -> Iterator[Run | None]:
    """Join the ranks, build everything, and resume from the newest complete checkpoint if there is one.

    Yields None when the run is already done. `table` are the views that there are, `make_evaluation` says what is
    measured beside the losses.

    Raises:
        ConfigError: the configuration contradicts itself, the data, the DeepSpeed JSON or the run that it continues.
    """
    folder = Path(config.run_folder)
    with ExitStack() as stack:
        stack.enter_context(deterministic(config.deterministic))  # before CUDA is started
        start = stack.enter_context(joined(config, table))
        config, topology, ranks = start.config, start.topology, start.ranks
        watch, is_first = start.watch, topology.rank == 0
        guard = MemoryGuard(folder, topology.rank, memory_advice(config, topology.world_size), tell=watch.tell)
        stack.enter_context(guard.watching())
        done = DoneMarker(folder)
        reached = done.read()
        if reached is not None and reached.step >= config.steps:
            yield None
            return
        stop.on_leave = partial(leave, watch, folder if is_first else None)
        if is_first:
            stack.enter_context(run_lock(folder))
            clear_for_this_start(folder)
            stop.folder = folder
            write_identity(folder, config, start.inputs, start.ds_config, table)
        ranks.barrier()
        checkpoint = newest_sound(ranks, folder, sys.stderr.write)
        parts = build_parts(start, is_fresh=checkpoint is None)
        engine, dataset = parts.engine, parts.dataset
        if engine.order is not None:
            watch.module_now = engine.order.now
        if is_first:
            write_kernels(folder, parts.choices, topology.device)
        left_out = LeftOut(made_by_first(ranks, partial(rollbacks_of, folder, is_fresh=checkpoint is None)))
        loaded: dict[str, Any] = {"step": 0, "state": {}} if checkpoint is None else engine.load(checkpoint)
        step, state = int(loaded["step"]), loaded["state"]
        recorder = stack.enter_context(recording(start, parts, step))
        recorder.restore_state(state)
        checkpointer = Checkpointer(
            engine=engine,
            run_folder=folder,
            config=config.checkpoint,
            seconds_before=state.get("seconds", 0.0),
            reference_outputs=make_recorder(parts.tokenizer, transform_of(config), longest_text(config)),
            note=recorder.note,
        )
        yield Run(
            folder=folder,
            engine=engine,
            batches=lambda step: parts.batches(step, left_out),
            schedule=config.data.schedule,
            start_step=step,
            num_steps=config.steps,
            recorder=recorder,
            checkpointer=stack.enter_context(closing(checkpointer)),
            done=done,
            stop=stop,
            memory=guard,
            evaluation=make_evaluation(config, engine, dataset, step),
            watch=watch,
            left_out=left_out,
            configuration=start.identity,
            profile=stack.enter_context(closing(StepProfile(folder, topology.rank, config.track.profile_steps))),
        )
        watch.close()


@contextmanager
def recording(start: Start, parts: Parts, step: int) -> Iterator[Recorder]:
    """Open what a run writes down from a step on, for the length of the `with` block."""
    config, topology, dataset = start.config, start.topology, parts.dataset
    folder, is_first = Path(config.run_folder), topology.rank == 0
    log = MetricsLog(folder, is_first, resume_step=step, trackers=trackers_of(config) if is_first else ())
    purpose = "pre-training" if config.finetune is None else "fine-tuning"
    with closing(log), Progress(config.steps, step, purpose, enabled=is_first) as progress:
        yield Recorder(
            engine=parts.engine,
            views=config.views,
            schedule=dataset.schedule,
            every_steps=config.track.every_steps,
            bad_sample_limit=config.data.bad_sample_limit,
            log=log,
            ledger=LedgerFile(folder / "ledger.jsonl", step) if is_first else None,
            quarantine=open_quarantine(folder / QUARANTINE, topology, step),
            samples_seen=SamplesSeen(dataset.counted),
            speed=Speedometer.of(config, parts.engine, parts.clock),
            progress=progress,
            status=RankStatus(folder, topology.rank),
            health=Health(run_folder=folder, config=config.health),
            bad_steps=BadSteps(folder=folder, engine=parts.engine, dataset=dataset, max_loss=config.health.max_loss),
        )


@dataclass(frozen=True, kw_only=True)
class Start:
    """What ranks know that have met and were started alike; nothing is built, and nothing written."""

    config: RunConfig
    topology: Topology
    ranks: Collectives
    ds_config: dict[str, Any] | None
    views: Mapping[str, View[Any, Any]]
    kernels: ModelKernels
    inputs: Mapping[str, str]
    """Hashes of what the configuration names."""
    identity: str
    """Hashes of all that decides a step."""
    watch: Watch


@contextmanager
def joined(config: RunConfig, table: Table) -> Iterator[Start]:
    """Join the ranks for the length of the `with` block; compare what they were started with, and with the run folder.

    Raises:
        ConfigError: the configuration contradicts itself, the ranks, the DeepSpeed JSON or the run that it continues.
    """
    topology = Topology.from_environment(device=config.device)
    if topology.device.type == "cpu":
        treat_freed_memory(config.kernels.freed_memory, os.environ)
    validate_ranks(config, topology.world_size)
    check_services(config.track.services)
    ds_config = None
    if config.engine == "deepspeed":
        ds_config = resolve_ds_file(config.deepspeed, config.engine_facts(topology.world_size))
    with process_group(topology) as board, make_watch(config, topology, board).watching() as watch:
        ranks = collectives()
        if names_towers(config):
            config = made_by_first(ranks, partial(with_named_towers, config))
        views = make_views(config.views, table)
        kernels = choose_model_kernels(config.kernels, topology.device, network_of(config))
        inputs = input_hashes(config, ds_config)
        identity = identity_parts(config, inputs)
        check_same_values(ranks, identity)
        if config.checkpoint.copy_to is not None:
            bring_in(ranks, Path(config.run_folder), config.checkpoint.copy_to)
        check_same_run(Path(config.run_folder), config, inputs, table)
        yield Start(
            config=config,
            topology=topology,
            ranks=ranks,
            ds_config=ds_config,
            views=views,
            kernels=kernels,
            inputs=inputs,
            identity=" ".join(identity.values()),
            watch=watch,
        )


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What computes the steps of a run: to make it writes nothing."""

    config: RunConfig
    engine: Engine[Batch]
    dataset: StepDataset
    tokenizer: TextTokenizer
    num_workers: int
    choices: tuple[Choice, ...]
    """What it computes with."""
    clock: SectionClock
    """That it says to where it is."""

    def batches(self, step: int, left_out: LeftOut) -> Generator[tuple[Batch, Batch], None, None]:
        """Yield the batches from a step on, each as it was read and on the device."""
        data = self.config.data
        loader = make_loader(self.dataset, step, self.config.steps, self.num_workers, data.batch_timeout_s, left_out)
        return on_device(loader, self.engine.device)


def build_parts(start: Start, *, is_fresh: bool) -> Parts:
    """Open the data, and build the network in its engine: with its first weights, or those to load them into."""
    config, topology, ranks, kernels = start.config, start.topology, start.ranks, start.kernels
    for view in config.views.values():  # alike on all ranks, as they have found by now
        rows = view.batch_size // config.data.micro_batches
        ranks.prepare(rank_blocks(rows, view.negative_group, topology.world_size))
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.normalise)
    dataset = open_dataset(start.views, config.data, tokenizer, config.seed, topology.rank, topology.world_size)
    dataset.check_steps(config.steps)  # the data's errors come before the long part of the start
    num_workers = choose_cores(config.data.num_workers, topology, ranks)
    construction, clock = sharded_construction(start.ds_config, topology), SectionClock(topology.device)
    module = build_module(
        config,
        start.views,
        tokenizer,
        ranks,
        is_fresh=is_fresh,
        construction=construction,
        kernels=kernels,
        clock=clock,
    )
    engine = build_engine(config, module, topology, start.ds_config)
    return Parts(
        config=config,
        engine=engine,
        dataset=dataset,
        tokenizer=tokenizer,
        num_workers=num_workers,
        choices=(*kernels.choices, engine.kernel),
        clock=clock,
    )


def rollbacks_of(folder: Path, *, is_fresh: bool) -> list[Rollback]:
    """Return a run's rollbacks; one that begins anew has none, and no bad steps. For rank 0."""
    if is_fresh:
        for name in (ROLLBACKS_FILE, BAD_STEPS_FILE):
            (folder / name).unlink(missing_ok=True)
    return read_rollbacks(folder)


def trackers_of(config: RunConfig) -> list[Tracker]:
    """Return who else gets the lines of the log. For rank 0."""
    folder, track = Path(config.run_folder), config.track
    found: list[Tracker] = [TensorBoard(folder)] * track.tensorboard
    found += [Csv(folder)] * track.csv
    return found + [service(name, folder, track.project, asdict(config)) for name in track.services]


def choose_cores(num_workers: int | None, topology: Topology, ranks: Collectives) -> int:
    """Let this rank, if it is one of several, compute on its share of the cores, and return its loader workers.

    What is given wins (OMP_NUM_THREADS, data.num_workers); rank 0 says what was chosen.
    """
    everyone = ranks.exchange(own_cores())
    share = share_cores(everyone, topology.rank, has_gpu=topology.device.type == "cuda", environment=os.environ)
    if topology.world_size > 1 and THREADS not in os.environ:
        torch.set_num_threads(share.threads)
    if num_workers is not None:
        return num_workers
    if topology.rank == 0:
        sys.stderr.write(f"data.num_workers: {share}\n")
    return share.num_workers


def memory_advice(config: RunConfig, world_size: int) -> str:
    """Return what to do when memory does not suffice."""
    parts = config.data.micro_batches
    rows = [f"{view.batch_size / parts / world_size:,.0f} rows of {name}" for name, view in config.views.items()]
    fewest = min(view.num_groups for view in config.views.values())
    ways = (replace(config.data, micro_batches=number) for number in range(1, fewest + 1))
    most = max(data.micro_batches for data in ways if not any(rank_errors(config.views, data, world_size)))
    workers = "chosen by cores" if config.data.num_workers is None else f"now {config.data.num_workers}"
    return (
        f"A rank computes {' and '.join(rows)} at once: raise data.micro_batches (now {parts}, at most {most}), set "
        f"activation_checkpointing, start more ranks, lower data.num_workers ({workers}), or use a machine with more "
        "memory."
    )


def open_quarantine(folder: Path, topology: Topology, start_step: int) -> Quarantine:
    """This rank's file; rank 0 takes over the files of ranks that an earlier attempt had and this has not."""
    own = {f"rank_{rank}.jsonl" for rank in range(topology.world_size)}
    left_behind = sorted(path for path in folder.glob("rank_*.jsonl") if path.name not in own)
    return Quarantine(folder / f"rank_{topology.rank}.jsonl", start_step, left_behind if topology.rank == 0 else ())


def make_watch(config: RunConfig, topology: Topology, board: Board | None) -> Watch:
    """Make this rank's watch, with the limits of its configuration."""
    settings, rank, folder = config.watch, topology.rank, Path(config.run_folder)
    floors = {START: settings.start_s, "step": settings.step_s, "save": settings.save_s}
    floors["evaluate"] = settings.evaluate_s
    floors["data"] = settings.step_s and settings.step_s + config.data.batch_timeout_s
    limits = Limits(floors_s=floors, first_s=settings.start_s, factor=settings.factor, num_first=settings.num_first)
    talk = None
    if board is not None:
        talk = Talk(board, rank, topology.world_size, socket.gethostname(), settings.silent_s)
    return Watch(folder, rank, limits, talk, silent_s=settings.silent_s, recorded=write_recorded_collectives)


def leave(watch: Watch, folder: Path | None, reason: str) -> None:
    """Note, on the rank that has the folder, and tell the others that a request ends this one before its first step."""
    if folder is not None:
        note_left(folder, reason)
    watch.tell(Cause.STOPPED, reason)


@contextmanager
def deterministic(is_wanted: bool) -> Iterator[None]:
    """Let torch take deterministic kernels alone inside. Enter it before CUDA is started: cuBLAS looks only then.

    Without it a step on a CPU has the same bits each time anyway.
    """
    if not is_wanted:
        yield
        return
    os.environ.setdefault(WORKSPACE, WORKSPACE_VALUE)
    memory: Any = torch.utils.deterministic
    before, fills = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a pass over all new memory, for readers of garbage
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fills
