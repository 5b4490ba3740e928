"""Towers that are named by a Hugging Face model: `vision.source` and `text.source` become plain numbers.

    model.vision.source: google/siglip2-base-patch16-256 ─ config.json ─▶ vision.tower, image_size
                                                         └ preprocessor_config.json ─▶ transform.mean, transform.std
    model.text.source: FacebookAI/xlm-roberta-large ────── config.json ─▶ width, heads, feed-forward, positions, epsilon
                       with architecture "hf" ──────────── config.json ─▶ text.tower (`text_towers`)

What comes out names no source any more: a run folder and an exported model carry the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig, PreTrainedConfig

from cclm.data.options import ImageTransformConfig, Triple
from cclm.errors import ConfigError
from cclm.model.hf_vision import tower_width
from cclm.model.options import LayerOptions, ModelOptions
from cclm.pretrained.options import Reach
from cclm.pretrained.text_towers import with_text_tower

OptionsType = TypeVar("OptionsType", bound="LayerOptions | ModelOptions")

TEXT_TYPES = ("xlm-roberta", "roberta", "camembert", "data2vec-text")
"""`model_type`s with XLM-R's layers: BERT's, positions counted from the padding id."""
BERT = "bert"
"""The `model_type` of multilingual BERT, LaBSE, MiniLM and E5: the same layers, positions from 0."""
PIXEL_VALUES = ("preprocessor_config.json", "processor_config.json")
"""Where mean and deviation stand: alone, or since transformers 5 inside the processor's file."""
LEFT_OUT = (
    "architectures",
    "auto_map",
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "id2label",
    "label2id",
)
"""Entries of a model's config.json that say nothing about the tower."""


def with_towers(options: ModelOptions, reach: Reach = "auto") -> ModelOptions:
    """Read the sources that the options name; without any the options come back as they are.

    A field that is still at its default takes the source's value, another value must agree with it. The fusion encoder
    has its own sizes where the text source fills the text encoder alone (`reach`: "text").

    Raises:
        ConfigError: a source that cannot be read or is of another kind, or a field that contradicts it.
    """
    if options.vision.source is not None:
        options = _with_vision(options, options.vision.source)
    if options.text.source is not None:
        options = _with_text(options, options.text.source, fits_fusion=reach != "text")
    return options


def read_config(source: str) -> PreTrainedConfig:
    """The configuration of a Hugging Face model by name or folder; nothing that stands beside it is run."""
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            where=source,
            expected="a Hugging Face model: its name, or a folder with config.json",
            got=" ".join(str(error).split())[:200],
            do="Check the name; without network give a folder. Remote code is not run: if the model comes with its "
            "own, update transformers, which may know it by now.",
        ) from error


def _with_vision(options: ModelOptions, source: str) -> ModelOptions:
    if options.vision.architecture != "hf":
        raise ConfigError(
            where="model.vision.source",
            expected='architecture "hf"',
            got=repr(options.vision.architecture),
            do='Set model.vision.architecture to "hf", or leave the source out and start from its weights only.',
        )
    config = read_config(source)
    config = getattr(config, "vision_config", config)  # of a two-tower model only the image half
    values = _plain_values(config)
    try:
        tower_width(config)
    except AttributeError as error:
        raise ConfigError(
            where=source,
            expected="an image model",
            got=f"{values['model_type']}, whose configuration tells no width",
            do="Name an image model, or a two-tower model with one (CLIP, SigLIP).",
        ) from error
    size = values.get("image_size")
    size = size[0] if isinstance(size, list) else size
    default = type(options.vision)().image_size
    if isinstance(size, int) and options.vision.image_size == default:
        options = replace(options, vision=replace(options.vision, image_size=size))
    return replace(options, vision=replace(options.vision, tower=values, source=None))


def _plain_values(config: PreTrainedConfig) -> dict[str, Any]:
    """What our own configuration carries of a tower's."""
    plain = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in plain.items() if name not in LEFT_OUT}


def _with_text(options: ModelOptions, source: str, *, fits_fusion: bool) -> ModelOptions:
    config = read_config(source)
    if options.text.architecture == "hf":
        return with_text_tower(options, config, _plain_values(config), source)
    if config.model_type not in (*TEXT_TYPES, BERT) or config.hidden_act != "gelu":
        raise ConfigError(
            where=source,
            expected="a text model with XLM-R's or BERT's layers: " + ", ".join((*TEXT_TYPES, BERT)),
            got=f"{config.model_type} with {getattr(config, 'hidden_act', 'no')} activation",
            do='Name one of these, or set model.text.architecture to "hf" (any encoder of transformers).',
        )
    is_bert = config.model_type == BERT
    layers = {
        "num_heads": config.num_attention_heads,
        "feedforward_width": config.intermediate_size,
        "norm_position": "post",
        "norm_eps": config.layer_norm_eps,
        "initializer_range": config.initializer_range,
    }
    positions = {
        "max_positions": config.max_position_embeddings,
        "position_rule": "column" if is_bert else "ids",
        "position_offset": 0 if is_bert else config.pad_token_id + 1,
        "token_type": True,
        "source": None,
    }
    text = _settle("model.text", replace(options.text, source=None), {**layers, **positions}, source)
    fusion = _settle("model.fusion", options.fusion, layers, source) if fits_fusion else options.fusion
    options = _settle("model", options, {"width": config.hidden_size}, source)
    try:
        return replace(options, text=text, fusion=fusion)  # no longer named: now the sizes are checked
    except ValueError as error:
        do = f"Choose other sizes: {source} has the width {config.hidden_size}."
        raise ConfigError(where="model", expected="sizes that fit each other", got=str(error), do=do) from error


def _settle(where: str, options: OptionsType, wanted: Mapping[str, Any], source: str) -> OptionsType:
    """Fields at their default take the wanted values; others must have them."""
    default = type(options)()
    for name, value in wanted.items():
        given = getattr(options, name)
        if given not in (getattr(default, name), value):
            raise ConfigError(
                where=f"{where}.{name}",
                expected=f"{value!r}, as {source} has it",
                got=repr(given),
                do="Leave it out, or name another source.",
            )
    return replace(options, **wanted)


def with_pixel_values(transform: ImageTransformConfig, source: str) -> ImageTransformConfig:
    """Fields that are still at their default take the source's values; a source that says nothing changes nothing
    (ConfigError: the source's file cannot be read).
    """
    found = pixel_values(source)
    if found is None:
        return transform
    default, (mean, std) = ImageTransformConfig(), found
    if transform.mean == default.mean:
        transform = replace(transform, mean=mean)
    return replace(transform, std=std) if transform.std == default.std else transform


def pixel_values(source: str) -> tuple[Triple, Triple] | None:
    """Mean and deviation that a Hugging Face model's images are normalised with; None where no file says so
    (ConfigError: its file is not what `transformers` writes).
    """
    from transformers.utils.hub import cached_file

    for name in PIXEL_VALUES:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if found is None:
            continue
        path = Path(found)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content = content.get("image_processor", content)
            if not content.get("do_normalize", True):
                return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
            if "image_mean" in content and "image_std" in content:
                return triple(content["image_mean"]), triple(content["image_std"])
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                where=str(path),
                expected="image_mean and image_std with a number for each of three channels",
                got=f"{type(error).__name__}: {error}",
                do="Correct the file, or remove it and set transform.mean and transform.std in the recipe.",
            ) from error
    return None


def triple(value: Any) -> Triple:
    """Return a value for each channel; a number counts for all three."""
    red, green, blue = [float(value)] * 3 if isinstance(value, int | float) else map(float, value)
    return red, green, blue
