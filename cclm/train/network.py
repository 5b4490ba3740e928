"""The network of a run: built alike on every rank, with its first weights, inside its engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.data.tokens import TextTokenizer
from cclm.distributed.collectives import Collectives
from cclm.distributed.topology import Topology
from cclm.engine.deepspeed.engine import DeepSpeedEngine
from cclm.engine.parts import add_lora, freeze
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine, seed_initialisation
from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from cclm.hub.open import model_config
from cclm.model.blocks import checkpoint_activations, compile_blocks
from cclm.model.modeling_cclm import CCLMModel
from cclm.ops.choice import ModelKernels, Network
from cclm.pretrained.initialise import source_weights, start_model
from cclm.pretrained.towers import with_pixel_values, with_towers
from cclm.track.sections import NO_CLOCK, SectionClock
from cclm.train.frozen_texts import FrozenTexts
from cclm.train.step import CrossViewTraining
from cclm.views.image_text.options import ImageViewConfig
from cclm.views.view import View

START_FILE = "start.json"
"""In the run folder: the fate of every key of every source, and the parameters that no source gave."""


def network_of(config: RunConfig) -> Network:
    """Return what the choice of kernels asks about the network."""
    model, texts = config.model, (config.model.text, config.model.fusion)
    return Network(
        feature_width=model.projection_width,
        head_widths=tuple(model.width // part.num_heads for part in texts),
        attention_dropout=max(part.attention_dropout for part in texts),
        precision=config.precision,
    )


def build_module(
    config: RunConfig,
    views: Mapping[str, View[Any, Any]],
    tokenizer: TextTokenizer,
    ranks: Collectives,
    *,
    is_fresh: bool = True,
    construction: AbstractContextManager[None] | None = None,
    kernels: ModelKernels | None = None,
    clock: SectionClock = NO_CLOCK,
) -> CrossViewTraining:
    """Build the network, alike on every rank, and the training module around it.

    A fresh one, into which no checkpoint will be loaded, starts from the seed and, with an affine stem, from the images
    of the first global batch; then from the sources that the configuration names. ZeRO-3 shards the network while it
    is made inside of `construction`, but for one with an affine stem, which looks at whole weights (they are small).
    """
    is_affine = config.model.vision.stem_norm == "affine" and config.steps > 0  # else there are no images to look at
    seed_initialisation(config.seed)
    with nullcontext() if construction is None or is_affine else construction:
        model = CCLMModel(model_config(config.model, tokenizer))
    if is_fresh and is_affine:
        calibrate_stem(config, views, tokenizer, model)
    if is_fresh and config.start.sources:
        start_from_sources(config, model, is_first=ranks.rank == 0)
    kernels, keep = kernels or ModelKernels(), config.activation_checkpointing
    for encoder, mode in (
        (model.vision_encoder, keep.vision),
        (model.text_encoder, keep.text),
        (model.fusion_encoder, keep.fusion),
    ):
        if kernels.compiler:
            compile_blocks(encoder, kernels.compiler)
        checkpoint_activations(encoder, mode)
    for texts in (model.text_encoder, model.fusion_encoder):
        texts.token_multiple = config.kernels.token_multiple
    module = CrossViewTraining(
        model, views, config.objectives, ranks, seed=config.seed, clock=clock, **kernels.arguments
    )
    freeze(module, config.start.freeze)
    if config.finetune is not None and config.finetune.lora is not None and config.steps:
        seed_initialisation(config.seed)  # again: what a source or a stem has drawn says nothing about the adapters
        add_lora(module, config.finetune.lora)
    if config.start.remember_bytes:
        size_bytes = config.start.remember_bytes
        module.frozen_texts = FrozenTexts(model.text_encoder, config.model.width, kernels.kernels, size_bytes)
    return module


def calibrate_stem(
    config: RunConfig, views: Mapping[str, View[Any, Any]], tokenizer: TextTokenizer, model: CCLMModel
) -> None:
    """Let an affine stem look at the first global batch of the first view with images, if there is one."""
    for name, view in views.items():
        if "vision" in view.config.trains:
            source = view.open(tokenizer, config.seed, config.data)
            images_BCHW = source.batch(0, range(view.config.batch_size), []).normalised().images
            assert images_BCHW is not None, f"{name} trains the vision encoder without images"
            model.calibrate_stem(images_BCHW)
            return


def build_engine(
    config: RunConfig,
    module: CrossViewTraining,
    topology: Topology,
    ds_config: dict[str, Any] | None,
) -> Engine[Batch]:
    """Give the module to its engine."""
    options, device, parts = config.optimizer, topology.device, config.data.micro_batches
    wanted: Any = {"seed": config.seed, "kernel": config.kernels.optimizer}
    if ds_config is None:
        return PlainEngine(module, options, device=device, accumulation_steps=parts, **wanted)
    return DeepSpeedEngine(module, options, ds_config=ds_config, topology=topology, **wanted)


def names_towers(config: RunConfig) -> bool:
    """Whether sizes are still to be read from a Hugging Face model, which may ask the network."""
    return config.model.vision.source is not None or config.model.text.source is not None


def with_named_towers(config: RunConfig) -> RunConfig:
    """Put in the sizes of the towers that are named by a model, and how its images were normalised.

    Raises:
        ConfigError: a source that cannot be read or does not fit, or sizes that contradict the data.
    """
    views, source = dict(config.views), config.model.vision.source
    for name, view in config.views.items():
        if source is not None and isinstance(view, ImageViewConfig):
            views[name] = replace(view, transform=with_pixel_values(view.transform, source))
    config = replace(config, views=views, model=with_towers(config.model, config.start.text_fills))
    if problems := list(config.validation_errors()):
        raise ConfigError(
            where="configuration",
            expected="sizes of data and network that agree",
            problems=problems,
            do="Change one side of each; nothing was started.",
        )
    return config


def start_from_sources(config: RunConfig, model: CCLMModel, *, is_first: bool) -> None:
    """Fill `model` from `start.sources`; rank 0 (`is_first`) writes down what came from where.

    Raises:
        CheckpointError: a source that cannot be read or does not fit.
    """
    start = config.start
    state, report = source_weights(start.sources, model.config.options(), start.text_fills, start.text_layers)
    fresh = start_model(model, state)
    if is_first:
        note = {"sources": list(config.start.sources), "fresh": fresh, "keys": json.loads(report.as_json())}
        replace_text(Path(config.run_folder) / START_FILE, json.dumps(note, indent=1) + "\n")
