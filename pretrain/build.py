"""The only wiring: a configuration becomes a `Run`, fresh or resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cclm.checkpoint.load import load_checkpoint
from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.data.config import equal_shares, validate
from cclm.data.exposure import Exposure
from cclm.data.ledger import LedgerFile
from cclm.data.loader import StepDataset, make_loader, view_schedule
from cclm.data.prefetch import on_device
from cclm.data.quarantine import Quarantine
from cclm.data.schedule import ViewSchedule
from cclm.data.tokens import TextTokenizer, load_tokenizer
from cclm.distributed.collectives import Collectives, collectives
from cclm.distributed.topology import Topology, process_group
from cclm.engine.ds_config import EngineFacts, load_ds_config, refuse_unguarded_offload, resolve_ds_config
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine
from cclm.engine.seeding import seed_initialisation
from cclm.errors import ConfigError
from cclm.files.lock import run_lock
from cclm.hub.open import longest_text, model_config, transform_of
from cclm.hub.reference_outputs import make_recorder
from cclm.model.modeling_cclm import CCLMModel
from cclm.run.checkpoints import newest_complete
from cclm.run.status import DoneMarker, RankStatus
from cclm.run.stop import StopRequest, clear_for_this_start
from cclm.track.metrics import MetricsLog
from cclm.track.progress import Progress
from cclm.track.throughput import Throughput
from cclm.train.folder import QUARANTINE, input_hashes, refuse_another_run, run_hash, write_identity
from cclm.train.loop import Run
from cclm.train.start import start_from_sources
from cclm.train.step import CrossViewTraining


@contextmanager
def open_run(config: RunConfig, stop: StopRequest) -> Iterator[Run | None]:
    """Join the ranks, build everything, and resume from the newest complete checkpoint if there is one.

    `stop` tells the loop when it is to end early. Yields None when the run is already done.

    Raises:
        ConfigError: the configuration contradicts itself, the data, the DeepSpeed JSON or the run that it continues.
    """
    topology = Topology.from_environment(device=config.device)
    validate(config.data, topology.world_size)
    folder = Path(config.run_folder)
    ds_config = None if config.engine == "plain" else resolve_deepspeed(config, topology)
    inputs = input_hashes(config, ds_config)
    refuse_another_run(folder, config, inputs)
    done = DoneMarker(folder)
    if done.read() is not None:
        yield None
        return
    with ExitStack() as stack:
        stack.enter_context(process_group(topology))
        talk = collectives(equal_shares(config.data, topology.world_size))
        tokenizer = load_tokenizer(config.data.tokenizer, config.data.normalise)
        is_first = topology.rank == 0
        if is_first:
            stack.enter_context(run_lock(folder))
            clear_for_this_start(folder)
            write_identity(folder, config, inputs, ds_config)
        talk.barrier()
        checkpoint = newest_complete(folder)
        dataset = make_dataset(config, tokenizer, topology)  # its complaints come before the long part of the start
        construction = construction_of(config, ds_config, topology)
        module = build_module(config, tokenizer, talk, is_fresh=checkpoint is None, construction=construction)
        engine = build_engine(config, module, topology, ds_config, run_hash(config, inputs))
        start_step, seconds, seen = (0, 0.0, {}) if checkpoint is None else resume(engine, checkpoint)
        log = MetricsLog(folder, is_first, resume_step=start_step, tensorboard=config.track.tensorboard)
        progress = Progress(config.steps, start_step, "pre-training", enabled=is_first)
        yield Run(
            config=config,
            folder=folder,
            device=topology.device,
            engine=engine,
            collectives=talk,
            batches=make_batches(config, dataset, topology, start_step),
            schedule=view_schedule(config.data, config.seed),
            start_step=start_step,
            seconds_before=seconds,
            log=stack.enter_context(log),
            progress=stack.enter_context(progress),
            throughput=Throughput(),
            status=RankStatus(folder, topology.rank),
            ledger=LedgerFile(folder / "ledger.jsonl", start_step) if is_first else None,
            quarantine=open_quarantine(folder / QUARANTINE, topology, start_step),
            exposure=Exposure(dataset.exposure_keys, seen),
            done=done,
            stop=stop,
            witness=make_recorder(tokenizer, transform_of(asdict(config)), longest_text(asdict(config))),
        )


def open_quarantine(folder: Path, topology: Topology, start_step: int) -> Quarantine:
    """This rank's file; rank 0 takes over the files of ranks that an earlier life of the run had and this has not."""
    own = {f"rank_{rank}.jsonl" for rank in range(topology.world_size)}
    left_behind = sorted(path for path in folder.glob("rank_*.jsonl") if path.name not in own)
    return Quarantine(folder / f"rank_{topology.rank}.jsonl", start_step, left_behind if topology.rank == 0 else ())


def resolve_deepspeed(config: RunConfig, topology: Topology) -> dict[str, Any]:
    """Fill the DeepSpeed JSON's "auto" values from our configuration; a contradiction is an error."""
    samples = config.data.image_text or config.data.text_pair or config.data.regions
    assert samples is not None, "validate() refuses a configuration without data"
    facts = EngineFacts(
        micro_batch_size=samples.batch_size // config.data.micro_batches // topology.world_size,
        accumulation_steps=config.data.micro_batches,
        world_size=topology.world_size,
        max_grad_norm=config.optimizer.max_grad_norm,
        precision=config.precision,
    )
    resolved = resolve_ds_config(load_ds_config(config.deepspeed), facts, where=config.deepspeed)
    refuse_unguarded_offload(resolved, uses_all_parameters(config))
    return resolved


def build_module(
    config: RunConfig,
    tokenizer: TextTokenizer,
    talk: Collectives,
    *,
    is_fresh: bool = True,
    construction: AbstractContextManager[None] | None = None,
) -> CrossViewTraining:
    """Build the network, alike on every rank, and the training module around it.

    `construction`: what the network is made in (ZeRO-3 shards it there).

    A fresh one starts from the seed and, with an affine stem, from the pictures of the first global batch; then
    from the sources that the configuration names.
    """
    seed_initialisation(config.seed)
    with construction or nullcontext():
        model = CCLMModel(model_config(asdict(config.model), tokenizer))
    if is_fresh and config.model.vision.stem_norm == "affine" and config.data.image_text is not None:
        only_images = replace(config.data, text_pair=None, regions=None, micro_batches=1)
        first = StepDataset(only_images, tokenizer, seed=config.seed)[0].normalised().image_text
        assert first is not None
        model.calibrate_stem(first.images_BCHW)
    if is_fresh and config.start.sources:
        start_from_sources(config, model, is_first=talk.rank == 0)
    return CrossViewTraining(model, config.objectives, talk)


def construction_of(
    config: RunConfig, ds_config: dict[str, Any] | None, topology: Topology
) -> AbstractContextManager[None]:
    """What the network is made in: sharded from the start under ZeRO-3.

    But not with an affine stem, which looks at whole weights with the first pictures (such models are small).
    """
    if config.model.vision.stem_norm == "affine":
        return nullcontext()
    from cclm.engine.deepspeed.construction import sharded_construction

    return sharded_construction(ds_config, topology)


def build_engine(
    config: RunConfig,
    module: CrossViewTraining,
    topology: Topology,
    ds_config: dict[str, Any] | None,
    config_hash: str,
) -> Engine:
    """Give the module to its engine."""
    if ds_config is None:
        if topology.world_size > 1:
            raise ConfigError(
                where="engine",
                expected="one process for the plain engine",
                got=f"{topology.world_size} ranks",
                do="Start it without a launcher, or use engine: deepspeed.",
            )
        return PlainEngine(
            module,
            config.optimizer,
            seed=config.seed,
            device=topology.device,
            accumulation_steps=config.data.micro_batches,
        )
    from cclm.engine.deepspeed.engine import DeepSpeedEngine

    return DeepSpeedEngine(
        module,
        config.optimizer,
        ds_config=ds_config,
        topology=topology,
        seed=config.seed,
        uses_all_parameters=uses_all_parameters(config),
        config_hash=config_hash,
        equal_rows=equal_shares(config.data, topology.world_size),
    )


def uses_all_parameters(config: RunConfig) -> bool:
    """Whether every update reaches every parameter: all views in one, pictures among them, boxes if there is a head."""
    has_pictures = config.data.image_text is not None or config.data.regions is not None
    num_views = sum(getattr(config.data, name) is not None for name in ViewSchedule.ORDER)
    has_boxes = config.data.regions is not None or not config.model.box_head
    is_whole = config.data.schedule == "joint" or num_views == 1
    return has_pictures and has_boxes and is_whole


def resume(engine: Engine, checkpoint: Path) -> tuple[int, float, dict[str, int]]:
    """Load a checkpoint; returns the first step to do, the seconds that the run has taken, and what it has seen."""
    loaded = load_checkpoint(engine, checkpoint)
    return int(loaded["step"]), float(loaded["state"]["seconds"]), dict(loaded["state"].get("exposure", {}))


def make_dataset(config: RunConfig, tokenizer: TextTokenizer, topology: Topology) -> StepDataset:
    """This rank's data.

    Raises:
        ConfigError: a set of another view, language weights that no source has, fewer samples than steps.
    """
    rank, world_size = topology.rank, topology.world_size
    dataset = StepDataset(config.data, tokenizer, seed=config.seed, rank=rank, world_size=world_size)
    dataset.refuse_too_many_steps(config.steps)
    return dataset


def make_batches(
    config: RunConfig, dataset: StepDataset, topology: Topology, start_step: int
) -> Iterable[tuple[Batch, Batch]]:
    """Batches of this rank from `start_step` to the end, as read and on the device."""
    loader = make_loader(
        dataset,
        start_step=start_step,
        stop_step=config.steps,
        num_workers=config.data.num_workers,
        pin_memory=topology.device.type == "cuda",
    )
    return on_device(loader, topology.device)
