"""Compiled blocks: the same names and values, whole graphs, and none anew for other lengths of texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from cclm.model.blocks import blocks_of, checkpoint_activations, compile_blocks
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from tests.unit.model.test_checkpointing import OURS

ONE_LAYER = replace(
    OURS, token_layout="packed", text=replace(OURS.text, num_layers=1), fusion=replace(OURS.fusion, num_layers=1)
)
ENCODERS = ("text_encoder", "fusion_encoder")


@pytest.fixture
def graphs() -> list[fx.GraphModule]:
    return []


@pytest.fixture
def model(graphs: list[fx.GraphModule]) -> CCLMModel:
    """Texts are compiled by a backend that only writes down what it was given."""

    def backend(graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = network()
    for name in ENCODERS:
        compile_blocks(getattr(model, name), backend)  # type: ignore[arg-type]
        checkpoint_activations(getattr(model, name), "full")
    return model


def network() -> CCLMModel:
    torch.manual_seed(0)
    return CCLMModel(CCLMConfig(**asdict(ONE_LAYER))).train()


def step(model: CCLMModel, lengths: tuple[int, ...]) -> Tensor:
    """A loss of texts that read images; the same noise and dropout each time."""
    torch.manual_seed(1)
    ids, images = torch.randint(3, 20, (len(lengths), max(lengths))), torch.randn(3, 5, model.config.width)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    texts = model.encode_texts(ids.masked_fill(~mask, 1), mask)
    fused = model.fuse(texts, mask, images, memory_of_B=torch.arange(len(lengths)) % 3)
    return fused.square().mean() + texts.square().mean()


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_the_network_as_it_is(model: CCLMModel) -> None:
    plain = network()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert list(model.state_dict()) == list(plain.state_dict())
    losses = [step(one, (5, 2, 7, 7)) for one in (plain, model)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for ours, reference in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (reference.grad is None)
        if ours.grad is not None and reference.grad is not None:
            torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_block_is_one_graph_whatever_the_lengths(model: CCLMModel, graphs: list[fx.GraphModule]) -> None:
    for lengths in ((5, 2, 7, 7), (3, 9, 1), (2, 6, 6, 4, 8)):
        step(model, lengths).backward()
        assert len(graphs) == len(ENCODERS)
    step(model, (4, 4)).backward()
    assert len(graphs) == 2 * len(ENCODERS), "nothing is padded: other gathers"


def test_evaluation_runs_as_it_is(model: CCLMModel, graphs: list[fx.GraphModule]) -> None:
    with torch.no_grad():
        expected = step(network().eval(), (5, 2, 7))
        torch.testing.assert_close(step(model.eval(), (5, 2, 7)), expected)
    assert not graphs


def test_blocks_are_gathered_whole_by_zero3(model: CCLMModel) -> None:
    assert model.text_encoder.zero3_leaf_modules == blocks_of(model.text_encoder)
