"""The published layouts in training: ZeRO-3 on two ranks against the plain engine, by recipe."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cclm.data.batch import Batch
from cclm.data.loader import StepDataset
from cclm.data.tokens import load_tokenizer
from cclm.dist.collectives import Collectives
from pretrain.build import build_module
from pretrain.config import RunConfig
from pretrain.recipe import read_config
from tests.ranks.harness import Case, gradient_errors, train_plain, train_ranks
from tests.tiny_run import LAYERS, recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow
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


MODELS = {
    "swin": model(SWIN),
    "beit": {**model(BEIT, position_rule="ids"), "tie_decoder": False, "masked_lm_norm_eps": 1e-5},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@cache
def read(path: str) -> RunConfig:
    return read_config(["--recipe", path])


@cache
def dataset(path: str, rank: int, world_size: int) -> StepDataset:
    return StepDataset(read(path).data, load_tokenizer(read(path).data.tokenizer), 7, rank, world_size)


def make_module(path: str, talk: Collectives) -> nn.Module:
    torch.set_num_threads(1)
    return build_module(read(path), load_tokenizer(read(path).data.tokenizer), talk)


def joint(path: str, step: int, rank: int, world_size: int) -> Batch:
    return dataset(path, rank, world_size)[step]


@pytest.mark.parametrize("layout", list(MODELS))
def test_three_steps_agree(corpus: Path, tmp_path: Path, layout: str) -> None:
    path = str(write_recipe(tmp_path / "recipe.yaml", recipe(corpus, tmp_path / "run", model=MODELS[layout])))
    case = Case(
        make_module=partial(make_module, path), make_batch=partial(joint, path), num_steps=3, keeps_gradients=True
    )
    plain, ranks = train_plain(case), train_ranks(case)
    assert max(abs(a - b) for a, b in zip(plain.losses, ranks[0].losses, strict=True)) < 1e-5
    for ours, reference in zip(ranks[0].gradients, plain.gradients, strict=True):
        assert max(gradient_errors(ours, reference).values()) < 1e-5
    unused = [name for name, gradient in plain.gradients[0].items() if not gradient.any()]
    assert unused == []
