"""The only wiring: a configuration becomes a `Run`, fresh or resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from cclm.checkpoint.layout import newest_complete
from cclm.checkpoint.load import load_checkpoint
from cclm.checkpoint.open import model_config
from cclm.data.batch import Batch
from cclm.data.config import validate
from cclm.data.ledger import LedgerFile
from cclm.data.loader import StepDataset, make_loader
from cclm.data.quarantine import Quarantine
from cclm.data.tokens import TextTokenizer, load_tokenizer
from cclm.dist.collectives import Collectives, collectives
from cclm.dist.topology import Topology, process_group
from cclm.engine.ds_config import EngineFacts, load_ds_config, resolve_ds_config, write_ds_config
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine
from cclm.engine.seeding import seed_initialisation
from cclm.errors import ConfigError
from cclm.model.modeling_cclm import CCLMModel
from cclm.track.metrics import MetricsLog
from cclm.track.progress import Progress
from cclm.track.status import DoneMarker, RankStatus
from cclm.track.throughput import Throughput
from pretrain.config import RunConfig
from pretrain.loop import Run
from pretrain.step import CrossViewTraining

CONFIG_FILE = "config.yaml"
QUARANTINE = "quarantine"


@contextmanager
def open_run(config: RunConfig) -> Iterator[Run | None]:
    """Join the ranks, build everything, and resume from the newest complete checkpoint if there is one.

    Yields None when the run is already done.

    Raises:
        ConfigError: the configuration contradicts itself, the data, the DeepSpeed JSON or the run that it continues.
    """
    topology = Topology.from_environment(device=config.device)
    validate(config.data, topology.world_size)
    folder = Path(config.run_folder)
    done = DoneMarker(folder)
    record = done.read()
    if record is not None and record.step >= config.steps:
        yield None
        return
    with ExitStack() as stack:
        stack.enter_context(process_group(topology))
        talk = collectives()
        tokenizer = load_tokenizer(config.data.tokenizer, config.data.normalise)
        ds_config = None if config.engine == "plain" else resolve_deepspeed(config, topology)
        if topology.rank == 0:
            prepare_folder(folder, config, ds_config)
            done.clear()
        talk.barrier()
        module = build_module(config, tokenizer, talk)
        engine = build_engine(config, module, topology, ds_config)
        start_step = resume(engine, folder)
        yield Run(
            config=config,
            folder=folder,
            device=topology.device,
            engine=engine,
            collectives=talk,
            batches=make_batches(config, tokenizer, topology, start_step),
            start_step=start_step,
            log=stack.enter_context(
                MetricsLog(folder, topology.rank == 0, resume_step=start_step, tensorboard=config.track.tensorboard)
            ),
            progress=stack.enter_context(
                Progress(config.steps, start_step, "pre-training", enabled=topology.rank == 0)
            ),
            throughput=Throughput(),
            status=RankStatus(folder, topology.rank),
            ledger=LedgerFile(folder / "ledger.jsonl", start_step) if topology.rank == 0 else None,
            quarantine=Quarantine(folder / QUARANTINE / f"rank_{topology.rank:05d}.jsonl", start_step),
            done=done,
        )


def resolve_deepspeed(config: RunConfig, topology: Topology) -> dict[str, Any]:
    """Fill the DeepSpeed JSON's "auto" values from our configuration; a contradiction is an error."""
    samples = config.data.image_text or config.data.text_pair
    assert samples is not None, "validate() refuses a configuration without data"
    facts = EngineFacts(
        micro_batch_size=samples.batch_size // topology.world_size,
        world_size=topology.world_size,
        max_grad_norm=config.optimizer.max_grad_norm,
        precision=config.precision,
    )
    return resolve_ds_config(load_ds_config(config.deepspeed), facts, where=config.deepspeed)


def prepare_folder(folder: Path, config: RunConfig, ds_config: dict[str, Any] | None) -> None:
    """Write the resolved configuration; refuse a folder that holds another run."""
    (folder / QUARANTINE).mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG_FILE
    text = yaml.safe_dump(plain(asdict(config)), sort_keys=False, allow_unicode=True)
    if path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = differences(before, yaml.safe_load(text))
        if changed and newest_complete(folder) is not None:
            raise ConfigError(
                where=str(path),
                expected="the configuration that this run was started with",
                got="other values of " + ", ".join(changed),
                do="Choose another run_folder for a new run, or give the old values to resume this one.",
            )
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    if ds_config is not None:
        write_ds_config(ds_config, folder)


MAY_CHANGE = ("checkpoint", "track", "run_folder", "device", "data.num_workers", "data.bad_sample_limit")
"""What a resumed run may do differently: nothing of it decides a step."""


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the values that decide steps and differ."""
    names = []
    for key in sorted(before.keys() | after.keys()):
        path = f"{prefix}{key}"
        old, new = before.get(key), after.get(key)
        if path in MAY_CHANGE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names += differences(old, new, f"{path}.")
        else:
            names.append(path)
    return names


def plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def build_module(config: RunConfig, tokenizer: TextTokenizer, talk: Collectives) -> CrossViewTraining:
    """Build the network, alike on every rank (from the seed and, for an affine stem, the first global batch)."""
    seed_initialisation(config.seed)
    model = CCLMModel(model_config(asdict(config.model), tokenizer))
    if config.model.vision.stem_norm == "affine" and config.data.image_text is not None:
        first = StepDataset(config.data, tokenizer, seed=config.seed)[0].image_text
        assert first is not None
        model.calibrate_stem(first.images_BCHW)
    return CrossViewTraining(model, config.objectives, talk)


def build_engine(
    config: RunConfig, module: CrossViewTraining, topology: Topology, ds_config: dict[str, Any] | None
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
        return PlainEngine(module, config.optimizer, seed=config.seed, device=topology.device)
    from cclm.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        module,
        config.optimizer,
        ds_config=ds_config,
        topology=topology,
        seed=config.seed,
        uses_all_parameters=config.data.image_text is not None,
        config_hash=config_hash(config),
    )


def config_hash(config: RunConfig) -> str:
    """Hash of everything that decides a step."""
    return hashlib.sha256(yaml.safe_dump(plain(asdict(config)), sort_keys=True).encode()).hexdigest()[:16]


def resume(engine: Engine, folder: Path) -> int:
    """Load the newest complete checkpoint; returns the first step to do."""
    path = newest_complete(folder)
    return 0 if path is None else int(load_checkpoint(engine, path)["step"])


def make_batches(config: RunConfig, tokenizer: TextTokenizer, topology: Topology, start_step: int) -> Iterable[Batch]:
    """Batches of this rank from `start_step` to the end."""
    dataset = StepDataset(config.data, tokenizer, seed=config.seed, rank=topology.rank, world_size=topology.world_size)
    return make_loader(
        dataset,
        start_step=start_step,
        stop_step=config.steps,
        num_workers=config.data.num_workers,
        pin_memory=topology.device.type == "cuda",
    )
