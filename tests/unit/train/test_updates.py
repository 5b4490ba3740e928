"""The updates of a step, and what they add up to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cclm.config import RunConfig
from cclm.data.loader import StepDataset, view_schedule
from cclm.data.tokens import load_tokenizer
from cclm.distributed.collectives import SINGLE
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from cclm.recipe.read import read_recipe
from cclm.train.updates import merge_metrics, samples_read, updates_of
from pretrain.build import build_module
from tests.tiny_run import recipe, with_regions, write_corpus, write_recipe


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    settings = with_regions(recipe(folder, folder / "run"), folder, schedule="alternate")
    return read_recipe(["--recipe", str(write_recipe(folder / "r.yaml", settings))])


@pytest.fixture(scope="module")
def dataset(config: RunConfig) -> StepDataset:
    return StepDataset(config.data, load_tokenizer(config.data.tokenizer), seed=config.seed)


def test_a_joint_step_is_one_update(dataset: StepDataset) -> None:
    batch = dataset[0]
    assert updates_of(batch, "joint") == [batch]


def test_an_alternating_step_has_an_update_for_each_view(dataset: StepDataset) -> None:
    for step in range(6):
        batch = dataset[step]
        parts = updates_of(batch, "alternate")
        held = [[name for name in ("text_pair", "regions", "image_text") if getattr(part, name)] for part in parts]
        assert held == [[name] for name in ("text_pair", "regions", "image_text") if getattr(batch, name)]
        assert [part.update for part in parts] == list(range(len(parts)))
        assert {part.step for part in parts} == {step}
    assert [len(updates_of(dataset[step], "alternate")) for step in range(3)] == [3, 2, 2]


def test_losses_of_a_step_add_up() -> None:
    parts = [{"loss": torch.tensor(2.0), "text_pair/ttc": torch.tensor(2.0), "temperature": torch.tensor(0.1)}]
    parts.append({"loss": torch.tensor(3.0), "image_text/itc": torch.tensor(3.0), "temperature": torch.tensor(0.2)})
    merged = {name: round(value.item(), 4) for name, value in merge_metrics(parts).items()}
    assert merged == {"loss": 5.0, "text_pair/ttc": 2.0, "image_text/itc": 3.0, "temperature": 0.2}


def test_samples_are_counted_as_they_were_read(config: RunConfig, dataset: StepDataset) -> None:
    schedule, total = view_schedule(config.data, config.seed), 0
    for step in range(12):
        batch = dataset[step]
        total += 0 if batch.image_text is None else batch.image_text.ledger_B.shape[0]
        total += 0 if batch.regions is None else batch.regions.ledger_B.shape[0]
        total += 0 if batch.text_pair is None else batch.text_pair.ledger_S.shape[0]
        assert samples_read(config.data, schedule, step + 1) == total


def test_which_runs_use_every_parameter(config: RunConfig) -> None:
    joint = replace(config, data=replace(config.data, schedule="joint"))
    assert joint.uses_all_parameters
    assert not config.uses_all_parameters
    assert not replace(joint, data=replace(joint.data, regions=None)).uses_all_parameters, "the box head"
    assert not replace(joint, data=replace(joint.data, image_text=None, regions=None)).uses_all_parameters
    alone = replace(config.data, image_text=None, text_pair=None)
    assert replace(config, data=alone).uses_all_parameters, "one view, one update"


def test_unused_parameters_are_moved_by_their_momentum_as_published(config: RunConfig, dataset: StepDataset) -> None:
    """After an image update the vision encoder has momentum; the text update of the next step moves it by the published
    rule with a gradient of zeros: m ← β1 m, v ← β2 v, p ← p - lr·√(1-β2ᵗ)/(1-β1ᵗ)·m/(√v + eps), then decay."""
    optimizer = OptimizerConfig(
        total_steps=9, learning_rate=1e-2, schedule="constant", decay_rule="published", update_rule="published"
    )
    module = build_module(config, dataset.tokenizer, SINGLE)
    engine = PlainEngine(module, optimizer)
    for part in updates_of(dataset[0], "alternate"):
        engine.backward(engine.forward(part))
        engine.update(0)
    name = next(name for name, value in module.named_parameters() if "vision_encoder" in name and value.ndim == 2)
    parameter = dict(module.named_parameters())[name]
    state = engine._optimizer.state[parameter]
    value, mean, square = (tensor.clone() for tensor in (parameter.detach(), state["exp_avg"], state["exp_avg_sq"]))
    count = int(state["step"])
    assert count == 3 and mean.any()
    text = updates_of(dataset[1], "alternate")[0]
    assert text.text_pair is not None and text.image_text is None
    engine.backward(engine.forward(text))
    assert not engine.full_gradients()[name].any()
    engine.update(1)
    mean, square, count = mean * 0.9, square * 0.98, count + 1
    size = 1e-2 * (1 - 0.98**count) ** 0.5 / (1 - 0.9**count)
    value = (value - size * mean / (square.sqrt() + 1e-8)) * (1 - 1e-2 * 0.01)
    torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-7)
