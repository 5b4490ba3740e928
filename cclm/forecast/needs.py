"""What a run will need: its configuration, its shard sets and its network on the meta device, as one `Forecast`.

configuration ── data ──► samples, epochs, languages       ── memory ──► bytes of a rank, of a checkpoint
              ── costs of its network ──► FLOPs, hours
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cclm.config import RunConfig, named_sets
from cclm.costs.network import parameters_by_part
from cclm.costs.recipe import XLM_R_WORDS, Counter
from cclm.data.loader import StepDataset
from cclm.data.tokens import TextTokenizer, load_tokenizer
from cclm.engine.ds_config import resolve_ds_file
from cclm.forecast.data import SourceForecast, sources_of, text_fill
from cclm.forecast.machines import CPU, Gpu, Sharding
from cclm.forecast.memory import Case, Memory, checkpoint_bytes, memory_of
from cclm.hub.open import model_config
from cclm.shardfile.options import is_remote
from cclm.train.network import names_towers, with_named_towers
from cclm.views.table import make_views
from cclm.views.view import open_dataset


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will need."""

    ranks: int
    device: str
    precision: str
    stage: int | None
    """Of ZeRO; None: the plain engine."""
    steps: int
    parameters: Mapping[str, int]
    trained: int
    sources: Sequence[SourceForecast]
    text_fill: Mapping[str, float]
    """By view: mean length of its first texts, as a share of the longest; a view that is missing has remote sets."""
    memory: Memory
    memory_bytes: float
    checkpoint_bytes: float
    checkpoints_kept: int
    """At most at once, with the one that is being written."""
    free_bytes: int
    """Where the run folder will be."""
    flops: float
    """Of a step, all ranks together."""
    mfu: float
    hours: float | None
    """Of the whole run at that MFU; None: on a CPU."""
    deepspeed: Mapping[str, Any] | None
    """Its JSON, as the engine gets it."""
    notes: Sequence[str]


def forecast(
    config: RunConfig, ranks: int, gpu: Gpu | None, mfu: float, notes: Sequence[str] = (), *, has_data: bool = True
) -> Forecast:
    """Compute what a configuration needs on so many ranks; without its data (`has_data` false) what that takes is
    assumed, or missing. Raise ConfigError if data, network and steps do not go together."""
    if names_towers(config):
        config = with_named_towers(config)
    dataset, fill = None, dict[str, float]()
    if has_data:
        tokenizer = load_tokenizer(config.data.tokenizer, config.data.normalise)
        dataset = _open(config, tokenizer, ranks)
        remote = {one.view for one in named_sets(config.views) if is_remote(one.path)}
        fill = {name: text_fill(source, ranks) for name, source in dataset.sources.items() if name not in remote}
        config = replace(config, model=model_config(config.model, tokenizer).options())
    else:
        text = replace(config.model.text, vocab_size=XLM_R_WORDS)
        config = replace(config, model=replace(config.model, text=text))
        notes = [*notes, f"without data: a vocabulary of {XLM_R_WORDS:,} and half of max_tokens a text are assumed"]
    resolved: dict[str, Any] = {}
    if config.engine == "deepspeed":
        resolved = resolve_ds_file(config.deepspeed, config.engine_facts(ranks))
    case = Case.of(config, Counter(config), Sharding.of(resolved, config.precision), fill)
    memory = memory_of(case, ranks, device=CPU if gpu is None else "cuda")
    best = 0 if config.evaluation is None else 2 * config.checkpoint.keep_best
    keep_every, folder = config.checkpoint.keep_every, Path(config.run_folder).absolute()
    return Forecast(
        ranks=ranks,
        device=CPU if gpu is None else gpu.name,
        precision=config.precision,
        stage=case.sharding.stage if resolved else None,
        steps=config.steps,
        parameters=parameters_by_part(case.counter.model),
        trained=case.num_trained,
        sources=[] if dataset is None else list(sources_of(dataset, config.steps)),
        text_fill=fill,
        memory=memory,
        memory_bytes=memory.total,
        checkpoint_bytes=checkpoint_bytes(case),
        checkpoints_kept=config.checkpoint.keep + 1 + best + (config.steps // keep_every if keep_every else 0),
        free_bytes=shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free,
        flops=case.flops,
        mfu=mfu,
        hours=None if gpu is None else config.steps * case.flops / (ranks * gpu.peak(config.precision) * mfu) / 3600,
        deepspeed=resolved or None,
        notes=[*notes, *_warnings(memory, gpu)],
    )


def _open(config: RunConfig, tokenizer: TextTokenizer, ranks: int) -> StepDataset:
    views = {
        name: view if view.teacher is None else replace(view, teacher=None)  # type: ignore[call-arg]
        for name, view in config.views.items()
    }
    dataset = open_dataset(make_views(views), config.data, tokenizer, config.seed, 0, ranks)
    dataset.check_steps(config.steps)
    return dataset


def _warnings(memory: Memory, gpu: Gpu | None) -> Iterator[str]:
    if gpu is not None and memory.total > gpu.memory_bytes:
        yield (
            f"memory: {memory.total / 1e9:.1f} GB do not fit into the {gpu.memory_bytes / 1e9:.0f} GB of a {gpu.name}: "
            "more ranks, a smaller batch_size, data.micro_batches, or activation_checkpointing"
        )
