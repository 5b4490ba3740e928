"""Both published layouts, tiny, with weights that are not trivial; and their published state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from cclm.hub.open import build_model
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions, TextOptions, VisionOptions
from cclm.pretrained.families import published_options
from cclm.pretrained.published_names import published_buffers, published_ties, published_weights, to_published

TEXT = TextOptions(vocab_size=30, max_positions=20, num_layers=2, num_heads=2, feedforward_width=24)
TINY_SWIN = published_options(
    width=16,
    projection_width=8,
    vision=VisionOptions(
        architecture="swin",
        image_size=32,
        patch_size=4,
        window=4,
        stage_layers=(2, 2),
        stage_heads=(1, 2),
        num_heads=2,
        feedforward_width=64,
        drop_path=0.1,
    ),
    text=TEXT,
    fusion_layers=2,
)
TINY_BEIT = published_options(
    width=16,
    projection_width=8,
    vision=VisionOptions(
        architecture="beit",
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        feedforward_width=64,
        drop_path=0.1,
    ),
    text=TEXT,
    fusion_layers=1,
)
TINY = {"swin": TINY_SWIN, "beit": TINY_BEIT}


def wavy_model(options: ModelOptions) -> CCLMModel:
    """A model whose weights are sines of their place: the same on every machine and with every torch."""
    model = CCLMModel(CCLMConfig(**asdict(options)))
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * (1.0 + 0.37 * number) + number)
            start = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_((start + 0.3 * wave).view(parameter.shape))
        if model.temperature is not None:
            model.temperature.value.fill_(0.07)
    return model.eval()


def filled_model(options: ModelOptions, state: Mapping[str, Tensor]) -> CCLMModel:
    """The model whose parameters are these tensors."""
    return build_model(CCLMConfig.from_options(options), state, "test")


def published_state(model: CCLMModel) -> dict[str, Tensor]:
    """What the research code would have saved: parameters, tied ones twice, and buffers."""
    options = model.config.options()
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    state = to_published(parameters, published_weights(options))
    types = {"int64": torch.int64, "float32": torch.float32}
    for name, (shape, dtype) in published_buffers(options).items():
        state[name] = torch.zeros(shape, dtype=types[dtype])
    for alias, name in published_ties(options).items():
        state[alias] = state[name].clone()
    return state
