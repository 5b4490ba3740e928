from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from tests.engine_values import full_gradients, full_parameters
from tests.ranks.harness import Case, make_plain
from tests.ranks.toy import joint_batch, make_toy, mixed_batch

CASE = Case(make_module=make_toy, make_batch=joint_batch, num_steps=1)


pytestmark = pytest.mark.usefixtures("one_thread")


def _gradients(engine: PlainEngine, step: int) -> dict[str, torch.Tensor]:
    losses = engine.forward(CASE.make_batch(step, 0, 1))
    engine.backward(losses)
    return full_gradients(engine)


def test_the_reported_norm_is_before_clipping_and_the_update_after() -> None:
    still = OptimizerConfig(total_steps=10, max_grad_norm=1e-3)
    engine = make_plain(replace(CASE, optimizer=still))
    gradients = _gradients(engine, 0)
    norm = math.sqrt(sum(float(value.square().sum()) for value in gradients.values()))
    assert float(engine.update(0).grad_norm) == pytest.approx(norm, rel=1e-5)
    state = next(iter(engine.optimizer.state.values()))
    first = next(iter(engine.optimizer.param_groups[0]["params"]))
    name = next(name for name, value in engine.module.named_parameters() if value is first)
    expected = gradients[name] * 1e-3 / norm * (1 - still.betas[0])
    torch.testing.assert_close(state["exp_avg"], expected, rtol=1e-4, atol=1e-12)


def test_zero_switches_clipping_off() -> None:
    engine = make_plain(replace(CASE, optimizer=OptimizerConfig(total_steps=10, max_grad_norm=0.0)))
    gradients = _gradients(engine, 0)
    engine.update(0)
    moments = [value["exp_avg"].abs().max() for value in engine.optimizer.state.values()]
    largest = max(value.abs().max() for value in gradients.values())
    assert float(max(moments)) == pytest.approx(float(largest) * 0.1, rel=1e-5)


def test_gradients_are_cleared_by_update_and_zero_where_unused() -> None:
    engine = make_plain(CASE)
    text_only = mixed_batch(2, 0, 1)
    for _ in range(2):
        engine.backward(engine.forward(text_only))
        gradients = full_gradients(engine)
        assert not gradients["model.patches.weight"].any()
        assert gradients["model.words.weight"].any()
        engine.update(0)
        assert not any(value.any() for value in full_gradients(engine).values())


def test_accumulated_gradients_are_the_mean() -> None:
    single = [_gradients(make_plain(CASE), step) for step in (0, 1)]
    engine = make_plain(replace(CASE, accumulation_steps=2))
    _gradients(engine, 0)
    both = _gradients(engine, 1)
    for name, value in both.items():
        torch.testing.assert_close(value, (single[0][name] + single[1][name]) / 2, rtol=1e-4, atol=1e-5)


def test_update_before_all_micro_batches_is_our_bug() -> None:
    engine = make_plain(replace(CASE, accumulation_steps=2))
    _gradients(engine, 0)
    with pytest.raises(AssertionError, match="update before"):
        engine.update(0)
    _gradients(engine, 1)
    with pytest.raises(AssertionError, match="more backward calls"):
        _gradients(engine, 2)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    engine = make_plain(CASE)
    before = full_parameters(engine)
    _gradients(engine, 0)
    next(engine.module.parameters()).grad.view(-1)[0] = math.nan  # type: ignore[union-attr]
    assert float(engine.update(0).grad_norm) == math.inf
    assert all(torch.equal(value, before[name]) for name, value in full_parameters(engine).items())
    assert math.isfinite(float(engine.forward(joint_batch(1, 0, 1)).total.detach()))


def test_reduce_mean_of_one_process_is_the_value() -> None:
    values = {"b": torch.tensor(2.0, requires_grad=True), "a": torch.tensor([1.5])}
    assert list(make_plain(CASE).reduce_mean(values).items()) == [("b", 2.0), ("a", 1.5)]


def test_reduce_mean_takes_every_type_and_none() -> None:
    values = {
        "count": torch.tensor(3),
        "rough": torch.tensor(0.5).bfloat16(),
        "fine": torch.tensor(0.1, dtype=torch.float64),
    }
    assert make_plain(CASE).reduce_mean(values) == {"count": 3.0, "rough": 0.5, "fine": 0.1}
    assert make_plain(CASE).reduce_mean({}) == {}


def test_scalars_are_moved_to_the_engine_before_they_are_stacked() -> None:
    """`meta` stands for a GPU: a stack of host and device tensors would raise."""
    engine = make_plain(CASE)
    engine.device = torch.device("meta")
    with pytest.raises(NotImplementedError, match="meta"):  # only the way back to the host, which it has not
        engine.reduce_mean({"a": torch.tensor(2.0), "b": torch.empty((), device="meta"), "c": torch.tensor([7])})
