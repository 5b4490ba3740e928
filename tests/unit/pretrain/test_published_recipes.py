"""The recipes of the published models: the family's network, the published optimizer groups and sizes."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from torch import nn

from cclm.config import RunConfig, validate_ranks
from cclm.data.config import rank_blocks, rows_of_rank
from cclm.engine.optimizer import parameter_groups
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.pretrained.families import FAMILIES
from cclm.pretrained.published_names import published_weights
from cclm.recipe.read import read_recipe

RECIPES = {
    "cclm_3m": ("cclm-3m", 8, 1024, 83_160, 2_500),
    "cclm_4m": ("cclm-4m", 8, 1024, 146_640, 2_500),
    "cclm_x2vlm_base": ("cclm-x2vlm-base", 8, 480, 406_614, 1_000),
    "cclm_x2vlm_large": ("cclm-x2vlm-large", 16, 480, 406_614, 1_000),
}
"""Family, ranks, batch, iterations, warm-up."""
PARAMETERS = {"cclm_4m": 525_677_393, "cclm_x2vlm_base": 615_540_825, "cclm_x2vlm_large": 1_225_073_817}
VOCABULARY = 250_002


@cache
def read(name: str) -> RunConfig:
    return read_recipe(["--recipe", name])


@cache
def network(name: str) -> nn.Module:
    """The network without memory, as the training module holds it."""
    options = read(name).model
    options = replace(options, text=replace(options.text, vocab_size=VOCABULARY))
    with torch.device("meta"):
        return nn.ModuleDict({"model": CCLMModel(CCLMConfig(**asdict(options)))})


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_is_the_familys(name: str) -> None:
    options, family = read(name).model, FAMILIES[RECIPES[name][0]]
    assert replace(options, text=replace(options.text, vocab_size=VOCABULARY), box_head=True) == family
    assert options.box_head == (name != "cclm_3m"), "the 3M file carries a box head that nothing trained"


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_dry_build_has_the_published_number_of_parameters(name: str) -> None:
    assert sum(value.numel() for value in network(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_are_the_published_ones(name: str) -> None:
    config, (_, ranks, batch, steps, warmup) = read(name), RECIPES[name]
    validate_ranks(config, ranks)
    assert (config.steps, config.optimizer.warmup_steps) == (steps, warmup)
    for view in config.views.values():
        assert (view.batch_size, view.matching_rows) == (batch, batch)
        assert view.negative_group == batch // ranks, "negatives are drawn among what a published rank held"
    assert config.objectives.contrastive_grad_scale == 1 / ranks
    factor = config.optimizer.learning_rate_factor
    assert (factor(0), factor(warmup), factor(steps)) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("name", [*RECIPES, "template", "demo"])
def test_a_recipe_starts_on_1_to_64_ranks_at_its_batch_and_on_1024_at_a_larger_one(name: str) -> None:
    config = read(name)
    for world_size in range(1, 65):
        validate_ranks(config, world_size)
    few = min(view.batch_size for view in config.views.values())
    factor = -(-1024 // few)
    views = {
        key: replace(view, batch_size=factor * view.batch_size, matching_rows=factor * view.matching_rows)
        for key, view in config.views.items()
    }
    large = replace(config, views=views)
    assert list(large.validation_errors()) == []
    validate_ranks(large, 1024)
    for view in large.views.values():
        rows = [len(rows_of_rank(view.batch_size, rank, 1024)) for rank in range(1024)]
        assert sum(rows) == view.batch_size and max(rows) - min(rows) <= 1
        assert max(map(len, rank_blocks(view.batch_size, view.negative_group, 1024))) <= 128


def rates(name: str) -> dict[str, float]:
    """Learning rate by published name of the parameter."""
    config, module = read(name), network(name)
    names = {id(value): key.removeprefix("model.") for key, value in module.named_parameters()}
    theirs = {weight.ours: weight.theirs for weight in published_weights(FAMILIES[RECIPES[name][0]])}
    found = {}
    for group in parameter_groups(module, config.optimizer):
        for value in group["params"]:
            for published in theirs[names[id(value)]]:
                found[published] = group["multiplier"] * config.optimizer.learning_rate
    return found


@pytest.mark.parametrize(("name", "count"), [("cclm_3m", 71), ("cclm_4m", 77)])
def test_new_parameters_learn_twice_as_fast(name: str, count: int) -> None:
    """Six cross-attentions of ten tensors, two projections, temperature, matching head, and in 4M the box head."""
    fast = {published for published, rate in rates(name).items() if rate == pytest.approx(2e-4)}
    assert len(fast) == count
    heads = ("vision_proj", "text_proj", "itm_head", "temp", "bbox_head", "crossattention")
    assert all(any(part in published for part in heads) for published in fast)
    assert set(map(float, rates(name).values())) == {1e-4, 2e-4}


@pytest.mark.parametrize(
    ("name", "vision", "text", "rest"), [("cclm_x2vlm_base", 2e-5, 8e-5, 4e-5), ("cclm_x2vlm_large", 1e-5, 6e-5, 3e-5)]
)
def test_towers_have_rates_of_their_own(name: str, vision: float, text: float, rest: float) -> None:
    found = rates(name)
    for published, rate in found.items():
        expected = {"vision_encoder": vision, "text_encoder": text}.get(published.partition(".")[0], rest)
        if published in (
            "mlm_head.predictions.bias",
            "mlm_head.predictions.decoder.weight",
            "mlm_head.predictions.decoder.bias",
        ):
            expected = 2 * rest
        assert rate == pytest.approx(expected), published
