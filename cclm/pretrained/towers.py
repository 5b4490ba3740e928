"""Sizes of towers that are named by a Hugging Face model: `vision.source` and `text.source` become plain numbers.

    model.vision.source: google/siglip2-base-patch16-256 ─ config.json ─▶ vision.tower, image_size
    model.text.source: FacebookAI/xlm-roberta-large ────── config.json ─▶ width, heads, feed-forward, positions, epsilon

What comes out names no source any more: a run folder and an exported model carry the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from transformers import AutoConfig, PreTrainedConfig

from cclm.errors import ConfigError
from cclm.model.hf_vision import tower_width
from cclm.model.options import LayerOptions, ModelOptions

OptionsType = TypeVar("OptionsType", bound="LayerOptions | ModelOptions")

TEXT_TYPES = ("xlm-roberta", "roberta", "camembert", "data2vec-text")
"""`model_type`s with XLM-R's layers: BERT's, positions counted from the padding id."""
LEFT_OUT = ("architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype", "id2label", "label2id")
"""Entries of an image model's config.json that say nothing about the tower."""


def with_towers(options: ModelOptions) -> ModelOptions:
    """Read the sources that the options name; without any the options come back as they are.

    A field that is still at its default takes the source's value, another value must agree with it.

    Raises:
        ConfigError: a source that cannot be read or is of another kind, or a field that contradicts it.
    """
    if options.vision.source is not None:
        options = _with_vision(options, options.vision.source)
    if options.text.source is not None:
        options = _with_text(options, options.text.source)
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
            do="Check the name; without network give a folder.",
        ) from error


def tower_values(config: PreTrainedConfig) -> dict[str, Any]:
    """An image model's configuration as JSON has it; of a two-tower model only the image half."""
    config = getattr(config, "vision_config", config)
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name not in LEFT_OUT}


def _with_vision(options: ModelOptions, source: str) -> ModelOptions:
    if options.vision.architecture != "hf":
        raise ConfigError(
            where="model.vision.source",
            expected='architecture "hf"',
            got=repr(options.vision.architecture),
            do='Set model.vision.architecture to "hf", or leave the source out and start from its weights only.',
        )
    config = read_config(source)
    values = tower_values(config)
    config = getattr(config, "vision_config", config)
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


def _with_text(options: ModelOptions, source: str) -> ModelOptions:
    config = read_config(source)
    if config.model_type not in TEXT_TYPES or config.hidden_act != "gelu":
        raise ConfigError(
            where=source,
            expected="a text model with XLM-R's layers: " + ", ".join(TEXT_TYPES),
            got=f"{config.model_type} with {getattr(config, 'hidden_act', 'no')} activation",
            do="Name one of these, such as FacebookAI/xlm-roberta-base.",
        )
    if config.type_vocab_size != 1:
        raise ConfigError(
            where=source,
            expected="one token type, as XLM-R has",
            got=str(config.type_vocab_size),
            do="Name a model of the XLM-R or RoBERTa family.",
        )
    layers = {
        "num_heads": config.num_attention_heads,
        "feedforward_width": config.intermediate_size,
        "norm_position": "post",
        "norm_eps": config.layer_norm_eps,
        "initializer_range": config.initializer_range,
    }
    positions = {
        "max_positions": config.max_position_embeddings,
        "position_rule": "ids",
        "position_offset": config.pad_token_id + 1,
        "token_type": True,
        "source": None,
    }
    text = _settle("model.text", replace(options.text, source=None), {**layers, **positions}, source)
    fusion = _settle("model.fusion", options.fusion, layers, source)
    # Width first alone: heads must divide it, and each replacement is checked.
    plain = replace(options, text=replace(text, num_heads=1), fusion=replace(fusion, num_heads=1))
    return replace(_settle("model", plain, {"width": config.hidden_size}, source), text=text, fusion=fusion)


def _settle(where: str, options: OptionsType, wanted: Mapping[str, Any], source: str) -> OptionsType:
    """Fields at their default take the wanted values; others must have them."""
    defaults = {item.name: getattr(type(options)(), item.name) for item in fields(options)}
    for name, value in wanted.items():
        given = getattr(options, name)
        if given not in (defaults[name], value):
            raise ConfigError(
                where=f"{where}.{name}",
                expected=f"{value!r}, as {source} has it",
                got=repr(given),
                do="Leave it out, or name another source.",
            )
    return replace(options, **wanted)
