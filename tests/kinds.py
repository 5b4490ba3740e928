"""Every kind of model, tiny: what one definition covers by configuration, for tests that all of them must pass."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import torch

from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions
from tests.left_to_long import left_to_slow
from tests.tiny_families import TINY_BEIT, TINY_SWIN
from tests.unit.model.hf_texts import text_options
from tests.unit.model.hf_towers import CONFIGS
from tests.unit.model.tiny import tiny_config


def modern(name: str) -> ModelOptions:
    """An image tower of the transformers library, of another width than the texts, with regions."""
    tower = {"architecture": "hf", "tower": json.loads(CONFIGS[name].to_json_string(use_diff=False)), "image_size": 32}
    text = {"max_positions": 20, "norm_position": "post", "position_rule": "ids", "position_offset": 2}
    return tiny_config(vision=tower, text=text, box_head=True, temperature_form="log").options()


KINDS: dict[str, ModelOptions] = {
    "own": tiny_config(vision={"image_size": 32, "stem_channels": [4, 8, 8]}, text={"max_positions": 20}).options(),
    "swin_regions": TINY_SWIN,
    "swin_without_regions": replace(TINY_SWIN, box_head=False),
    "x2vlm_base": TINY_BEIT,
    "x2vlm_large": replace(
        TINY_BEIT,
        width=32,
        vision=replace(TINY_BEIT.vision, num_layers=3, num_heads=4, feedforward_width=128),
        text=replace(TINY_BEIT.text, num_layers=3, num_heads=4),
        fusion=replace(TINY_BEIT.fusion, num_layers=2, num_heads=4),
    ),
    "nlvr_pairs": replace(
        TINY_SWIN,
        box_head=False,
        masked_lm_head=False,
        tie_decoder=False,
        fusion=replace(TINY_SWIN.fusion, num_memories=2),
    ),
    **{name: modern(name) for name in ("siglip", "siglip2", "clip", "dinov3", "swinv2")},
    "modernbert": tiny_config(
        width=32, vision={"image_size": 32, "stem_channels": [4, 8, 8]}, text=text_options("modernbert")
    ).options(),
}
"""All pictures have 32 pixels a side. "large" differs from "base" as the published ones do: wider and deeper."""


EVERY_KIND = left_to_slow(KINDS, "own", "swin_regions", "nlvr_pairs", "modernbert")
"""Names of all, for `parametrize`: those that differ most are quick."""


def with_vocabulary(options: ModelOptions, vocab_size: int, max_positions: int = 40) -> ModelOptions:
    """The same kind of model for another tokenizer."""
    return replace(options, text=replace(options.text, vocab_size=vocab_size, max_positions=max_positions))


def lively_model(options: ModelOptions, seed: int = 3) -> CCLMModel:
    """Weights large enough that every output depends on every input, as after a long training."""
    generator = torch.Generator().manual_seed(seed)
    model = CCLMModel(CCLMConfig(**asdict(options)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter is not model.temperature.value:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
