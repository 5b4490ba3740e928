"""The last fusion layer on wanted tokens only: states and gradients are those of a layer of all tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.model.modeling_cclm import CCLMModel
from tests.left_to_long import left_to_slow
from tests.unit.model.tiny import LENGTHS, tiny_model, tiny_texts

WANTED_W = torch.tensor([0, 2, 2, 2, 3, 4]) * max(LENGTHS) + torch.tensor([0, 8, 0, 3, 1, 0])
"""None of text 1; of text 2 not in reading order."""
MEMORY_OF_B = torch.tensor([3, 0, 3, 2, 3])


def memories(kind: str) -> tuple[Any, ...]:
    """What texts read: arguments of `fuse` behind the mask."""
    torch.manual_seed(3)
    states_MND = torch.randn(5, 10, 16, dtype=torch.float64, requires_grad=True)
    mask_MN = torch.arange(10) < torch.tensor([10, 10, 9, 2, 3])[:, None]
    has_memory_B = torch.tensor([True, False, True, True, False])
    return {
        "none": (None,),
        "own": (states_MND, mask_MN),
        "shared": (states_MND, mask_MN, None, MEMORY_OF_B),
        "shared, all real": (states_MND, None, None, MEMORY_OF_B),
        "some": (states_MND, mask_MN, has_memory_B, MEMORY_OF_B),
        "two": ([states_MND, states_MND.flip(0)],),
    }[kind]


def model_of(kind: str, **changes: Any) -> CCLMModel:
    """A network in float64 for such memories."""
    fusion = {"num_memories": 2 if kind == "two" else 1, **changes.pop("fusion", {})}
    return tiny_model(fusion=fusion, **changes).double()


def results(model: CCLMModel, kind: str, wanted_W: Tensor, is_plain: bool) -> list[Tensor]:
    """Wanted states, and the gradients of a loss of them."""
    ids_BL, mask_BL = tiny_texts()
    text_BLD = model.encode_texts(ids_BL, mask_BL).detach().requires_grad_()
    memory = memories(kind)
    if is_plain:
        fused_WD = model.fuse(text_BLD, mask_BL, *memory).flatten(0, 1)[wanted_W]
    else:
        fused_WD = model.fuse(text_BLD, mask_BL, *memory, wanted_W=wanted_W)
    weight = torch.linspace(-1, 1, fused_WD.numel(), dtype=torch.float64).view_as(fused_WD)
    inputs = [text_BLD, *model.fusion_encoder.parameters()]
    gradients = torch.autograd.grad((fused_WD * weight).sum(), inputs, allow_unused=kind == "none")
    return [fused_WD, *(gradient for gradient in gradients if gradient is not None)]


def check(model: CCLMModel, kind: str, wanted_W: Tensor = WANTED_W) -> None:
    """Compare them with those of all tokens."""
    plain, found = (results(model, kind, wanted_W, is_plain) for is_plain in (True, False))
    for one, other in zip(plain, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("token_layout", ["grouped", "packed", "padded"])
@pytest.mark.parametrize(
    "kind", left_to_slow(["none", "own", "shared", "shared, all real", "some", "two"], "own", "some")
)
def test_states_and_gradients_are_those_of_all_tokens(kind: str, token_layout: str) -> None:
    check(model_of(kind, token_layout=token_layout), kind)


@pytest.mark.parametrize("token_layout", ["grouped", "packed"])
@pytest.mark.parametrize("changes", [{"norm_position": "post"}, {"null_memory": True}, {"num_layers": 1}])
def test_of_every_form_of_layers(changes: dict[str, Any], token_layout: str) -> None:
    model = model_of("some", token_layout=token_layout, fusion=changes)
    check(model, "some")
    model.fusion_encoder.token_multiple = 8
    check(model, "some")


def test_nothing_or_everything_may_be_wanted() -> None:
    model, (_, mask_BL) = model_of("some"), tiny_texts()
    check(model, "some", mask_BL.flatten().nonzero()[:, 0])
    gradients = results(model, "some", torch.zeros(0, dtype=torch.int64), is_plain=False)
    assert gradients[0].shape == (0, 16)
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("token_layout", ["grouped", "packed", "padded"])
def test_the_last_layer_computes_no_others(token_layout: str) -> None:
    model, rows = model_of("some", token_layout=token_layout), dict[str, int]()
    for name, module in model.fusion_encoder.stack.named_modules():
        if name.endswith(("self_attention.output", "cross_attention.query", "feedforward.widen")):
            module.register_forward_pre_hook(lambda _, inputs, name=name: rows.update({name: len(inputs[0])}))
    results(model, "some", WANTED_W, is_plain=False)
    every = 5 * max(LENGTHS) if token_layout == "padded" else sum(LENGTHS)
    assert {name: count for name, count in rows.items() if name.startswith("layers.0.")} == {
        f"layers.0.{part}": every for part in ("self_attention.output", "cross_attention.query", "feedforward.widen")
    }
    assert {count for name, count in rows.items() if name.startswith("layers.1.")} == {len(WANTED_W)}
