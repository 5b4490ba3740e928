"""Towers that are named by a Hugging Face model: `vision.source` and `text.source` become plain numbers.

    model.vision.source: google/siglip2-base-patch16-256 ─ config.json ─▶ vision.tower, image_size
                                                         └ preprocessor_config.json ─▶ transform.mean, transform.std
    model.text.source: FacebookAI/xlm-roberta-large ────── config.json ─▶ width, heads, feed-forward, positions, epsilon
                       with architecture "hf" ──────────── config.json ─ is it an encoder? ─▶ text.tower, positions

What comes out names no source any more: a run folder and an exported model carry the numbers. Whether tokens of a text
tower see each other in both directions is tried out, on one layer with random weights: a configuration does not say it
(EuroBERT's is a Llama's, a BERT may be a decoder).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from cclm.data.options import ImageTransformConfig, Triple
from cclm.errors import ConfigError
from cclm.model.hf_text import TextTower, build_text_tower, tower_config
from cclm.model.hf_vision import tower_width
from cclm.model.options import LayerOptions, ModelOptions, TextOptions
from cclm.pretrained.options import Reach

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
PROBE_TOKENS = 4
PADDING = 1e-4
"""Largest difference that padding may make to a token's state (some are norms of one): rounding is below it."""
NO_ENCODER = (
    *(AssertionError, AttributeError, KeyError, NotImplementedError, RuntimeError, StrictDataclassError),
    *(TypeError, ValueError),
)
"""What models that are no text encoders raise when they are built or called as one."""


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
        return _with_text_tower(options, config, _plain_values(config), source)
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


def _with_text_tower(
    options: ModelOptions, config: PreTrainedConfig, values: dict[str, Any], source: str
) -> ModelOptions:
    """Take a text tower from its source's configuration; `values` are what our own carries of it (ConfigError: no
    encoder, or one whose texts or words do not fit the options).
    """
    text = options.text
    values = _changed(values, config, text.tower or {})
    # Of the vocabulary the tokenizer tells; only a pad id may count in positions (as in RoBERTa).
    told = {name for name in values if name == "vocab_size" or name.endswith("_token_id")} - {"pad_token_id"}
    values = {name: value for name, value in values.items() if name not in told}
    tower, longest = _probe(values, source)
    if text.max_positions == TextOptions().max_positions:
        text = replace(text, max_positions=longest)
    if text.max_positions > longest or text.position_offset:
        raise ConfigError(
            where="model.text.max_positions",
            expected=f"at most {longest}, as {source} has them, and position_offset 0",
            got=f"{text.max_positions} and {text.position_offset}",
            do="Leave both out.",
        )
    if options.masked_lm_head and options.tie_decoder and tower.words_width != options.width:
        raise ConfigError(
            where="model.tie_decoder",
            expected=f"model.width {tower.words_width}, the width of the words of {source}, or an untied decoder",
            got=f"width {options.width} and tie_decoder: true",
            do=f"Set model.width to {tower.words_width}, or model.tie_decoder to false.",
        )
    return replace(options, text=replace(text, tower=values, source=None))


def _changed(values: dict[str, Any], config: PreTrainedConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """The source's values but for the recipe's; lists with an entry for each layer are cut with the layers."""
    changed, number = {**values, **changes}, config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    before, after = values.get(number), changed.get(number)
    if before != after:
        lists = {name: value for name, value in values.items() if isinstance(value, list) and len(value) == before}
        changed |= {name: value[:after] for name, value in lists.items() if name not in changes}
    return changed


def _probe(values: dict[str, Any], source: str) -> tuple[TextTower, int]:
    """One layer of the tower, which has shown that an earlier token sees a later one, and the longest text."""
    try:
        config = tower_config(values)
        if config.is_encoder_decoder:
            raise ValueError("an encoder with a decoder")
        if getattr(config, "num_hidden_layers", 0) > 1:
            config.num_hidden_layers = 1
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            tower = build_text_tower(config)
            model = tower.model.eval()
            words_BLE = torch.randn(1, PROBE_TOKENS, tower.words_width)
            later_BLE = words_BLE.clone()
            later_BLE[:, -1] = torch.randn(tower.words_width)
            padded_BLE = torch.cat([words_BLE, torch.randn_like(words_BLE)], 1)
            mask_BL = torch.ones(1, PROBE_TOKENS, dtype=torch.long)
            padded_mask_BL = torch.cat([mask_BL, torch.zeros_like(mask_BL)], 1)
            first, second, beside = (
                model(inputs_embeds=given, attention_mask=mask).last_hidden_state[:, 0]
                for given, mask in ((words_BLE, mask_BL), (later_BLE, mask_BL), (padded_BLE, padded_mask_BL))
            )
            model.train()(inputs_embeds=words_BLE, attention_mask=mask_BL)
            tower_width(model.config)
        longest = _longest_text(tower)
        if longest < 1:
            raise ValueError("no number of positions")
        if not torch.allclose(first, beside, atol=PADDING):
            raise ValueError("tokens that see the padding, so that a text would depend on its neighbours")
    except NO_ENCODER as error:
        raise _refusal(source, f"{values['model_type']}: {' '.join(str(error).split())[:200]}") from error
    if torch.equal(first, second):
        raise _refusal(source, f"{values['model_type']}, whose tokens see only what stands before them")
    return tower, longest


def _refusal(source: str, got: str) -> ConfigError:
    return ConfigError(
        where=source,
        expected="a text encoder that transformers builds without remote code, whose tokens see each other both ways",
        got=got,
        do="Name one such as jhu-clsp/mmBERT-base, or update transformers if it knows the model since a later version.",
    )


def _longest_text(tower: TextTower) -> int:
    """Tokens that the tower has positions for; some count them from behind the padding's id (RoBERTa's kin)."""
    first = 0
    for name, module in tower.model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None:
            first = module.padding_idx + 1
    return int(tower.model.config.max_position_embeddings) - first


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
