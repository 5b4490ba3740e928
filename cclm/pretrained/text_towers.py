"""Text towers of the transformers library ("hf"), from a source's config.json.

    model.text.source: jhu-clsp/mmBERT-base ─ config.json ─ is it an encoder? ─▶ text.tower, max_positions

Whether tokens see each other in both directions is tried out, on one layer with random weights: a configuration does
not say it (EuroBERT's is a Llama's, a BERT may be a decoder).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig

from cclm.errors import ConfigError
from cclm.model.hf_text import TextTower, build_text_tower, tower_config
from cclm.model.hf_vision import tower_width
from cclm.model.options import ModelOptions, TextOptions

PROBE_TOKENS = 4
PADDING = 1e-4
"""Largest difference that padding may make to a token's state (some are norms of one): rounding is below it."""
NO_ENCODER = (
    *(AssertionError, AttributeError, KeyError, NotImplementedError, RuntimeError, StrictDataclassError),
    *(TypeError, ValueError),
)
"""What models that are no text encoders raise when they are built or called as one."""


def with_text_tower(
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
