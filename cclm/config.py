"""The configuration of a training run: one frozen tree, and the rules between its parts. No torch.

The rules of a part stand beside the part; `cclm.recipe` reads the tree from files and command lines and asks them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cclm.checkpoint.options import CheckpointConfig
from cclm.data.config import DataConfig, Views, rank_errors
from cclm.data.options import TeacherConfig
from cclm.engine.ds_config import EngineFacts
from cclm.engine.options import LoraOptions, OptimizerConfig
from cclm.errors import ConfigError
from cclm.model.options import ModelOptions
from cclm.objectives.options import ObjectiveConfig
from cclm.ops.options import KernelConfig
from cclm.pretrained.options import StartConfig
from cclm.types import (
    MOST_EPOCHS,
    Bounds,
    Count,
    Language,
    LocalPath,
    NotNegative,
    PathText,
    Positive,
    Precision,
    Protocol,
    Share,
    TextOrNothing,
    View,
)


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """What to write down."""

    every_steps: Positive = 50
    """Write metrics after every so many steps."""
    tensorboard: bool = True
    """Also write TensorBoard events."""
    csv: bool = False
    """Also write `log.csv`."""
    services: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """Who gets the lines of the log, too; each is an extra of that name."""
    project: str = "cclm"
    """What services file the run under."""
    profile_steps: Count = 0
    """Steps of each attempt, from its fourth on, that torch's profiler records: `RUN/profile/rank_N.json.gz`."""


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """When a step is bad, how many may be, and what happens then (docs/health.md). A bad step is skipped: no weight,
    moment or average changes, while data, ledger and step number go on."""

    max_loss: Annotated[float, Bounds(above=0)] = 1e5
    """A step is bad if its loss, on any rank, is not below this; or if its gradient is not finite."""
    max_norm_ratio: Annotated[float, Bounds(above=1)] | None = None
    """A step is bad, too, if its gradient norm is above so many times the median of the last 100; null: no limit."""
    max_skipped: Count = 10
    """Of the last `window` steps so many may be bad; with one more the run rolls back to a healthy checkpoint."""
    window: Positive = 100
    """Steps over which bad ones are counted."""
    suspect_steps: Count = 10
    """So many steps before the first bad one are suspected of having led there: a checkpoint among them is not healthy,
    and after a rollback their batches are left out as those of the bad steps are."""
    max_rollbacks: Count = 2
    """So often, in all attempts together, a run may roll back; then it ends with code 70. 0: it ends at once."""


ALL = "all"
"""The mean over all languages of a set that are measured."""
MEAN_RECALL = "mean_recall"
"""The mean over R@1, R@5 and R@10 of both directions."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Zero-shot retrieval while a run pre-trains, as `cclm evaluate` measures it: an image's query in a language is its
    first caption there, and all images of the set are the gallery."""

    every_steps: Positive
    """Evaluate after every so many steps, and always after the last."""
    sets: Mapping[str, PathText]
    """Image-text shard sets, folders or URLs, by names of your choice; none of them should be trained on."""
    groups: Mapping[str, tuple[Language, ...]] = field(default_factory=dict)
    """Groups of languages by names of your choice: their means are told, too, and only their languages are measured;
    none: every language that a set has."""
    measure: TextOrNothing = ""
    """What is "best": SET/GROUP/NUMBER, with a group, a language or `all`, and with mean_recall, t2i_r1, t2i_r5,
    t2i_r10, i2t_r1, i2t_r5 or i2t_r10, also behind `reranked_`. Empty: the mean over the sets of all/mean_recall."""
    rerank_top_k: Count = 0
    """Candidates of each query that the matching head orders anew, by its log-odds alone; 0: none."""
    batch_size: Positive = 64
    """Rows at a time. The same on any number of ranks, so that every number is, too."""

    @property
    def languages(self) -> list[Language]:
        """The languages of all groups, each once; none: all that a set has."""
        return list(dict.fromkeys(one for members in self.groups.values() for one in members))

    @property
    def numbers(self) -> list[str]:
        """What is measured in each language and group."""
        plain = [MEAN_RECALL, *(f"{way}_r{k}" for way in ("t2i", "i2t") for k in (1, 5, 10))]
        return plain + ([f"reranked_{name}" for name in plain] if self.rerank_top_k else [])

    def validation_errors(self) -> Iterator[str]:
        """Yield names that cannot be, and a measure that is not measured."""
        if not self.sets:
            yield "sets: none is given"
        for name in [one for one in self.sets if "/" in one or not one]:
            yield f"sets.{name}: a name without /"
        for name, members in self.groups.items():
            if name in (ALL, *self.languages) or "/" in name:
                yield f"groups.{name}: a name without /, neither {ALL} nor that of a language"
            if not members:
                yield f"groups.{name}: no language is given"
        if self.measure:
            of_set, group, number = [*self.measure.split("/"), "", ""][:3]
            groups = [*self.groups, *self.languages, ALL]
            if of_set not in self.sets or number not in self.numbers or (self.groups and group not in groups):
                names = " or ".join(self.sets), " or ".join(groups if self.groups else (ALL, "a language"))
                yield f"measure: expected {names[0]}, {names[1]} and {', '.join(self.numbers)} with / between them"


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """When a rank that does not go on ends itself, with code 76 (docs/runbook.md, section 3). 0 seconds: never."""

    start_s: NotNegative = 3600.0
    """So long the start may take, and the first step, save and evaluation: nobody knows yet how long they take. 0: as
    long as they like."""
    step_s: NotNegative = 300.0
    """A later step may take so long once its batch is there, or `factor` times the slowest of the first `num_first`, if
    that is more. Until the batches of all ranks are there it may take data.batch_timeout_s longer."""
    save_s: NotNegative = 1800.0
    """The same of the time that training waits for a checkpoint."""
    evaluate_s: NotNegative = 3600.0
    """The same of an evaluation, between two of its batches."""
    factor: Annotated[float, Bounds(least=1)] = 10.0
    """How many times slower than its slowest first one a step, save or evaluation may be."""
    num_first: Positive = 10
    """How many of the first ones count."""
    silent_s: NotNegative = 120.0
    """The job ends when a rank has given the others no sign of life for so long: its process or machine is gone."""


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """How a pre-trained model is fine-tuned for a task, and what is measured afterwards (`python -m finetune`)."""

    task: str
    """The task, one of `python -m finetune --help`: what is measured, and how it is called in the results."""
    epochs: Annotated[int, Bounds(least=0, most=MOST_EPOCHS)] | None = None
    """How often every training row is shown: decides optimizer.total_steps. null: that decides. 0: nothing is trained;
    the model is measured as it comes, and no training data are read."""
    warmup_share: Share | None = None
    """Warm-up as a share of all steps: decides optimizer.warmup_steps. null: that decides."""
    first_evaluation: Positive = 1
    """The first epoch, counted from 1, behind which the model is evaluated on dev."""
    evaluate_every: Positive = 1
    """Evaluate again behind every so many epochs; the last one always is."""
    evaluation_batch: Positive = 64
    """Rows at a time. The same on any number of ranks, so that every number is, too."""
    data: LocalPath = "."
    """Retrieval: where dev_sets, test_sets and images lie: they are relative to it."""
    images: tuple[PathText, ...] = ("images", "flickr30k-images")
    """Retrieval: folders with the images that annotation files name."""
    dev_sets: Mapping[str, PathText] = field(default_factory=dict)
    """Retrieval: what the best epoch is chosen on: image-text shard sets by names of your choice, or folders with the
    published annotation files of the benchmark that the name is of (xflickrco, wit, multi30k, mscoco)."""
    test_sets: Mapping[str, PathText] = field(default_factory=dict)
    """Retrieval: what is measured when the run is done, in all of its languages; as dev_sets (also xtd10, xm3600)."""
    test_languages: tuple[Language, ...] | None = None
    """Retrieval: the languages in which test_sets are measured; null: all that they have. few-shot: the one that was
    shown."""
    rerank_top_k: Count = 128
    """Retrieval: candidates of each query that the matching head orders anew, as published (COCO: 256); its numbers
    stand beside those of features alone. 0: none."""
    captions_per_image: Positive | None = None
    """Retrieval: how many captions of an image ask and are found in dev and test; null: all, as published."""
    select_on: Literal["dev", "test"] = "dev"
    """Where the best epoch is chosen. "test": the published habit, which marks every result as chosen on the test."""
    protocol: Protocol
    """What the training and test data are; stands in every result. With no epochs it is no-fine-tuning."""
    lora: LoraOptions | None = None
    """Train adapters of low rank in place of whole encoders, which the export has merged; null: all weights."""
    shots: TextOrNothing = ""
    """few-shot: how many, as the files are called ("48", "10x2"); stands for {shots} in paths of the views."""
    benchmark: TextOrNothing = ""
    """What the task is called in results; empty: `task`. For data of your own in a task's form, whose numbers must
    not stand beside those that are published of the task."""
    name: TextOrNothing = ""
    """What the model is called in tables, the same for all seeds; empty: as what it starts from."""


Checkpointing = Literal["none", "elementwise", "selective", "full"]


@dataclass(frozen=True, kw_only=True)
class ActivationCheckpointing:
    """What each encoder keeps for the backward pass; no number changes. "none": everything; "elementwise": all but the
    values of activation functions, which are computed again; "selective": of every second block its input only, "full":
    of every block, which is then computed twice."""

    vision: Checkpointing = "elementwise"
    """The image encoder."""
    text: Checkpointing = "elementwise"
    """The text encoder."""
    fusion: Checkpointing = "elementwise"
    """The fusion encoder."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. Everything that decides step k is in here."""

    run_folder: LocalPath
    """Where the run lives; started again with the same folder, it resumes."""
    views: Views
    """The kinds of pairs to learn from, by name; null takes one away that stands in a recipe."""
    data: DataConfig
    """How to read them."""
    optimizer: OptimizerConfig
    """How to update; `total_steps` is the length of the run."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """The network; its vocabulary size and pad id are taken from the tokenizer."""
    start: StartConfig = field(default_factory=StartConfig)
    """Weights that a fresh run starts from."""
    objectives: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Loss weights."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Metrics."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """Bad steps."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Ranks that hang."""
    activation_checkpointing: ActivationCheckpointing = field(default_factory=ActivationCheckpointing)
    """Less memory for more time."""
    finetune: FineTuneConfig | None = None
    """Fine-tuning; null: pre-training."""
    evaluation: EvaluationConfig | None = None
    """What is measured while a run pre-trains; null: the losses."""
    engine: Literal["deepspeed", "plain"] = "deepspeed"
    """"plain" is the one-process twin, for debugging."""
    deepspeed: LocalPath = "ds_configs/zero3_cpu.json"
    """DeepSpeed JSON, a path or the name of one in ds_configs/; what our configuration also knows is "auto" in it."""
    precision: Precision = "fp32"
    """What the forward pass computes in. fp16 with DeepSpeed's loss scale (`fp16` in its JSON), whose overflows are bad
    steps."""
    kernels: KernelConfig = field(default_factory=KernelConfig)
    """What computes attention, norms, losses and updates; the defaults take the best that is there."""
    deterministic: bool = False
    """Let torch take kernels alone that give the same bits each time: slower on a GPU; what has no such kernel ends the
    run. A CPU does that anyway."""
    seed: int = 42
    """Seed of initialisation, sample order, masks, crops and draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; "auto" takes a GPU if there is one."""

    @property
    def steps(self) -> int:
        """Optimizer updates in total; none, if nothing is trained."""
        return 0 if self.finetune is not None and self.finetune.epochs == 0 else self.optimizer.total_steps

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts between the parts; each sentence begins with a key."""
        if not self.views:
            yield "views: none is given"
        if self.finetune is not None and self.finetune.protocol == "no-fine-tuning" and self.steps:
            yield "finetune.protocol: no-fine-tuning is of a run that trains nothing (finetune.epochs 0)"
        if self.finetune is not None and self.finetune.lora is not None and self.optimizer.ema_decay:
            yield "finetune.lora: adapters have no moving average (optimizer.ema_decay)"
        if self.finetune is not None and self.evaluation is not None:
            yield "evaluation: of pre-training; finetune says what is measured"
        if self.finetune is not None and not self.checkpoint.keep_best:
            yield "checkpoint.keep_best: at least 1 with finetune, which measures the best weights"
        if self.evaluation is not None and self.evaluation.rerank_top_k and not self.model.pretraining_heads:
            yield "evaluation.rerank_top_k: must be 0 for a model without matching head (model.pretraining_heads)"
        if self.engine == "plain" and self.precision != "fp32":
            yield f"precision: engine plain runs in fp32, not {self.precision}"
        if (self.objectives.contrastive == "sigmoid") != (self.model.similarity_bias is not None):
            yield "model.similarity_bias: a number with objectives.contrastive: sigmoid, null otherwise"
        widest = max(self.objectives.matryoshka_widths, default=0)
        if widest >= self.model.projection_width:
            limit = f"model.projection_width {self.model.projection_width}"
            yield f"objectives.matryoshka_widths: below {limit}, not {widest}"
        turns = [
            name
            for name, view in self.views.items()
            if view.takes_turns_with and view.takes_turns_with[0] in self.views
        ]
        if self.data.schedule == "alternate" and len(turns) > 1:
            yield f"data.schedule: one view can take turns with another, not {len(turns)} ({', '.join(turns)})"
        placed = [name for name, view in self.views.items() if "boxes" in view.trains]
        if self.model.vision.keep_patches < 1 and placed:
            yield f"model.vision.keep_patches: must be 1 with views whose texts are about places ({', '.join(placed)})"
        if self.kernels.compile == "blocks" and self.model.token_layout == "grouped":
            yield "model.token_layout: must be auto, packed or padded with kernels.compile blocks, not grouped"
        for name, view in self.views.items():
            for error in view.model_errors(self.model, self.data.pad_multiple):
                yield f"views.{name}.{error}"

    def engine_facts(self, world_size: int) -> EngineFacts:
        """Return what DeepSpeed's JSON must agree with."""
        first = next(iter(self.views.values()))
        return EngineFacts(
            micro_batch_size=first.batch_size // self.data.micro_batches // world_size,
            accumulation_steps=self.data.micro_batches,
            world_size=world_size,
            max_grad_norm=self.optimizer.max_grad_norm,
            precision=self.precision,
        )


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A shard set that a configuration names."""

    key: str
    """Dotted, in the whole configuration."""
    view: str
    """Name of the view that reads it; "": it is measured on."""
    holds: View
    """What its records must be."""
    path: str
    """Folder or address."""


def named_sets(views: Views) -> Iterator[NamedSet]:
    """Yield every shard set of every view that reads any, in the order that numbers them."""
    for name, view in views.items():
        if (holds := view.record_view) is None:
            continue
        for source, settings in view.ordered_sources.items():
            key = f"views.{name}.sources.{source}.path"
            yield NamedSet(key=key, view=name, holds=holds, path=settings.path)


def evaluated_sets(config: RunConfig) -> Iterator[NamedSet]:
    """Yield the shard sets that a run which pre-trains is measured on."""
    for name, path in {} if config.evaluation is None else config.evaluation.sets.items():
        yield NamedSet(key=f"evaluation.sets.{name}", view="", holds=View.IMAGE_TEXT, path=path)


def named_files(views: Views) -> Iterator[tuple[str, str]]:
    """Yield the key and the path of every annotation file of every view."""
    for name, view in views.items():
        for key, path in view.named_files():
            yield f"views.{name}.{key}", path


def named_teachers(views: Views) -> Iterator[tuple[str, TeacherConfig]]:
    """Yield every teacher of every view, with the key of its path."""
    for name, view in views.items():
        if view.teacher is not None:
            yield f"views.{name}.teacher.path", view.teacher


def validation_errors_for(config: RunConfig, world_size: int) -> list[str]:
    """Return why so many ranks cannot run this configuration, a sentence each, which begins with a key."""
    found = list(rank_errors(config.views, config.data, world_size))
    if config.engine == "plain" and world_size > 1:
        found.append(f"engine: plain is one process, not {world_size} ranks; use engine: deepspeed, or no launcher")
    return found


def validate_ranks(config: RunConfig, world_size: int) -> None:
    """Raise one ConfigError with everything that keeps so many ranks from running this configuration."""
    if problems := validation_errors_for(config, world_size):
        raise ConfigError(
            where="configuration",
            expected=f"batches for {world_size} ranks",
            problems=problems,
            do="Change the batches or the number of ranks; nothing was started.",
        )
