"""The published layouts and modern towers in training: ZeRO-3 on two ranks against the plain engine, by recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from torch import nn

from cclm.distributed.collectives import Collectives
from cclm.distributed.topology import Topology
from tests.ranks.harness import (
    Case,
    History,
    drive,
    ds_config,
    gradient_errors,
    make_deepspeed,
    on_ranks,
    train_plain,
)
from tests.tiny_run import LAYERS, recipe, write_corpus, write_recipe
from tests.tiny_training import batch_of, module_on_one_thread
from tests.unit.model.hf_texts import CONFIGS as TEXT_CONFIGS
from tests.unit.model.hf_towers import CONFIGS

pytestmark = pytest.mark.slow
TEMPERATURE_GRADIENT = 1e-4
"""Relative to the largest gradient of all: its terms cancel, so rounding shows (5e-4 in the published vectors)."""
BERT = {**LAYERS, "norm_position": "post"}
MODEL: dict[str, Any] = {
    "width": 16,
    "projection_width": 16,
    "matching_width": 32,
    "text": {**BERT, "max_positions": 12, "pooling": "cls", "token_type": True},
    "fusion": {**BERT, "norm_eps": 1e-12},
}
SWIN = {"architecture": "swin", "patch_size": 2, "window": 2, "stage_layers": [2, 1], "stage_heads": [1, 2]}
BEIT = {"architecture": "beit", "patch_size": 8}


def model(vision: dict[str, Any], **text: Any) -> dict[str, Any]:
    return {**MODEL, "text": {**MODEL["text"], **text}, "vision": {**LAYERS, "image_size": 16, **vision}}


def tower(name: str, **changes: Any) -> dict[str, Any]:
    """A tower of the transformers library, without what it draws itself; SigLIP's positions are stretched."""
    values = {**json.loads(CONFIGS[name].to_json_string(use_diff=False)), **changes}
    return model({"architecture": "hf", "tower": values}, position_rule="ids")


def text_tower(name: str, **changes: Any) -> dict[str, Any]:
    """A text tower of the transformers library, of the width of its words and without dropout."""
    values = {**json.loads(TEXT_CONFIGS[name].to_json_string(use_diff=False)), **changes}
    text = {"architecture": "hf", "tower": values, "max_positions": 12, "pooling": "cls"}
    vision = {**LAYERS, "image_size": 16, "stem_channels": [8, 16], "stem_norm": "layer"}
    return {**MODEL, "width": TEXT_CONFIGS[name].hidden_size, "text": text, "vision": vision}


MODELS = {
    "swin": model(SWIN),
    "beit": {**model(BEIT, position_rule="ids"), "tie_decoder": False, "masked_lm_norm_eps": 1e-5},
    "siglip": tower("siglip", image_size=8, patch_size=4),
    "siglip2": tower("siglip2", num_patches=4, patch_size=4),
    "dinov3": {**tower("dinov3", pos_embed_rescale=None), "temperature_form": "log"},
    "swinv2": tower("swinv2", drop_path_rate=0.0),
    "modernbert": text_tower("modernbert"),
    "mdeberta": text_tower("mdeberta", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
}


def make_sharded(path: str, talk: Collectives) -> nn.Module:
    """As a run does it: no rank ever has the whole network."""
    from cclm.engine.deepspeed.construction import sharded_construction

    with sharded_construction(ds_config(case_of(path), 2), Topology.from_environment(device="cpu")):
        return module_on_one_thread(path, talk)


def case_of(path: str) -> Case:
    return Case(
        make_module=partial(module_on_one_thread, path),
        make_batch=partial(batch_of, path),
        num_steps=2,
        keeps_gradients=True,
    )


def train_each(paths: dict[str, str]) -> dict[str, History]:
    """On one rank: every layout in turn, because starting ranks costs more than these steps."""
    histories = {}
    for layout, path in paths.items():
        case = replace(case_of(path), make_module=partial(make_sharded, path))
        histories[layout] = drive(make_deepspeed(case), case, range(case.num_steps))
    return histories


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A recipe for each layout."""
    folder = tmp_path_factory.mktemp("families")
    corpus = write_corpus(folder / "corpus")
    return {
        layout: str(write_recipe(folder / f"{layout}.yaml", recipe(corpus, folder / layout, model=options)))
        for layout, options in MODELS.items()
    }


@pytest.fixture(scope="module")
def trained(paths: dict[str, str]) -> dict[str, History]:
    """What the first of two ranks saw."""
    first: dict[str, History] = on_ranks(train_each, 2, paths)[0]
    return first


@pytest.mark.parametrize("layout", list(MODELS))
def test_two_steps_agree(paths: dict[str, str], trained: dict[str, History], layout: str) -> None:
    plain, sharded = train_plain(case_of(paths[layout])), trained[layout]
    assert max(abs(a - b) for a, b in zip(plain.losses, sharded.losses, strict=True)) < 1e-5
    for ours, reference in zip(sharded.gradients, plain.gradients, strict=True):
        errors = gradient_errors(ours, reference)
        assert errors.pop("model.temperature.value") < TEMPERATURE_GRADIENT
        assert max(errors.values()) < 1e-5
    unused = [name for name, gradient in plain.gradients[0].items() if not gradient.any()]
    assert unused == []
