"""The updates of a step, and what they add up to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.data.loader import StepDataset
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from cclm.model.kernels import PLAIN, Kernels, use_kernels
from cclm.ops.choice import choose_model_kernels
from cclm.ops.options import KernelConfig
from cclm.train.recorder import WindowMeans
from cclm.train.updates import guarded, merge_metrics, samples_read, updates_of, with_features_of_all
from tests.engine_values import full_gradients
from tests.tiny_run import recipe, with_regions, write_corpus
from tests.tiny_training import as_config, dataset_of, module_of
from tests.waits import waits_on_cpu

ORDER = ("text_pair", "regions", "image_text")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    return as_config(with_regions(recipe(folder, folder / "run"), folder, schedule="alternate"))


@pytest.fixture(scope="module")
def dataset(config: RunConfig) -> StepDataset:
    return dataset_of(config)


def test_a_joint_step_is_one_update(dataset: StepDataset) -> None:
    batch = dataset[0]
    assert updates_of(batch, "joint") == [batch]


def test_an_alternating_step_has_an_update_for_each_view(dataset: StepDataset) -> None:
    for step in range(6):
        batch = dataset[step]
        parts = updates_of(batch, "alternate")
        assert [list(part.views) for part in parts] == [[name] for name in ORDER if name in batch.views]
        assert all(part.views[name] is batch.views[name] for part in parts for name in part.views)
        assert [part.update for part in parts] == list(range(len(parts)))
        assert {part.step for part in parts} == {step}
    assert [len(updates_of(dataset[step], "alternate")) for step in range(3)] == [3, 2, 2]


@pytest.mark.parametrize("kernels", [PLAIN, choose_model_kernels(KernelConfig(), torch.device("cpu")).kernels])
def test_both_passes_of_a_micro_batch_drop_the_same(
    config: RunConfig, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the features that the others contrast theirs with were not those that are trained."""
    model = config.model
    text = replace(model.text, dropout=0.3, attention_dropout=0.2)
    vision = replace(model.vision, dropout=0.3)
    parts = replace(config, data=replace(config.data, micro_batches=2), model=replace(model, text=text, vision=vision))
    module = module_of(parts).train()
    use_kernels(module.model, kernels)
    engine = PlainEngine(module, OptimizerConfig(total_steps=1), accumulation_steps=2)
    told = list[dict[str, torch.Tensor]]()
    whole = module._contributions

    def contributions(batch: Batch) -> Any:
        found = whole(batch)
        told.append({name: value.detach() for name, value in found[-1].items()})
        return found

    monkeypatch.setattr(module, "_contributions", contributions)
    batches = [replace(part, views={"text_pair": part.views["text_pair"]}) for part in dataset_of(parts)[0].parts]
    for batch in with_features_of_all(engine, batches):
        engine.backward(engine.forward(batch))
    first, second, first_again, second_again = told
    for before, after in ((first, first_again), (second, second_again)):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(first["text_pair/memory"], second["text_pair/memory"])


def test_losses_of_a_step_add_up() -> None:
    parts = [{"loss": torch.tensor(2.0), "text_pair/ttc": torch.tensor(2.0), "temperature": torch.tensor(0.1)}]
    parts.append({"loss": torch.tensor(3.0), "image_text/itc": torch.tensor(3.0), "temperature": torch.tensor(0.2)})
    merged = {name: round(value.item(), 4) for name, value in merge_metrics(parts).items()}
    assert merged == {"loss": 5.0, "text_pair/ttc": 2.0, "image_text/itc": 3.0, "temperature": 0.2}


def test_samples_are_counted_as_they_were_read(config: RunConfig, dataset: StepDataset) -> None:
    total = 0
    for step in range(12):
        total += sum(len(view.ledger_S) for view in dataset[step].views.values())
        assert samples_read(config.views, dataset.schedule, step + 1) == total


def test_unused_parameters_are_moved_by_their_momentum_as_published(config: RunConfig, dataset: StepDataset) -> None:
    """After an image update the vision encoder has momentum; the text update of the next step moves it by the published
    rule with a gradient of zeros: m ← β1 m, v ← β2 v, p ← p - lr·√(1-β2ᵗ)/(1-β1ᵗ)·m/(√v + eps), then decay."""
    optimizer = OptimizerConfig(
        total_steps=9, learning_rate=1e-2, schedule="constant", decay_rule="published", update_rule="published"
    )
    module = module_of(config)
    engine = PlainEngine(module, optimizer)
    for part in updates_of(dataset[0], "alternate"):
        engine.backward(engine.forward(part))
        engine.update(0)
    name = next(name for name, value in module.named_parameters() if "vision_encoder" in name and value.ndim == 2)
    parameter = dict(module.named_parameters())[name]
    state = engine.optimizer.state[parameter]
    value, mean, square = (tensor.clone() for tensor in (parameter.detach(), state["exp_avg"], state["exp_avg_sq"]))
    count = int(state["step"])
    assert count == 3 and mean.any()
    text = updates_of(dataset[1], "alternate")[0]
    assert list(text.views) == ["text_pair"]
    engine.backward(engine.forward(text))
    assert not full_gradients(engine)[name].any()
    engine.update(1)
    mean, square, count = mean * 0.9, square * 0.98, count + 1
    size = 1e-2 * (1 - 0.98**count) ** 0.5 / (1 - 0.9**count)
    value = (value - size * mean / (square.sqrt() + 1e-8)) * (1 - 1e-2 * 0.01)
    torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_loss_in_range_is_guarded_bit_by_bit(dtype: torch.dtype) -> None:
    plain, guarded_one = (torch.tensor([2.3, -0.7, 5.1], dtype=dtype, requires_grad=True) for _ in range(2))
    total = (plain**3).sum()
    total.backward()
    same = guarded((guarded_one**3).sum(), 1e3)
    same.backward()
    assert same.dtype == dtype and torch.equal(same, total)
    assert plain.grad is not None and guarded_one.grad is not None and torch.equal(plain.grad, guarded_one.grad)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e5, 3e7])
def test_a_loss_out_of_range_has_no_finite_gradient(value: float) -> None:
    x = torch.ones(3, requires_grad=True)
    guarded(x.sum() / 3 * value, 1e5).backward()
    assert x.grad is not None and not x.grad.isfinite().any()


def test_nobody_waits_for_a_loss_or_a_mean() -> None:
    x, window = torch.ones(3, requires_grad=True), WindowMeans()
    with waits_on_cpu() as waits:
        guarded(x.sum(), 1e5).backward()
        window.add({"loss": x.detach().sum(), "itc": x.detach().mean()}, is_good=True)
        window.add({"loss": x.detach().sum(), "itc": x.detach().mean()}, is_good=True)
    assert not waits.found
