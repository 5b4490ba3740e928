"""Memories that several texts read give what a copy for each text gives, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cclm.model.packing import PackedLayout, PaddedLayout, text_layout
from cclm.model.reading import Reading, SharedReading, plan_reading
from tests.unit.model.tiny import tiny_model, tiny_texts

MEMORY_OF_B = torch.tensor([3, 0, 3, 5, 3])
"""Six memories, three of them read by nobody."""


def memories() -> tuple[Tensor, Tensor]:
    """States of six memories and which are real: long ones, short ones, one with holes."""
    torch.manual_seed(3)
    mask_MN = torch.arange(10) < torch.tensor([10, 10, 10, 9, 2, 3])[:, None]
    mask_MN[3, :4] = False
    return torch.randn(6, 10, 16, dtype=torch.float64, requires_grad=True), mask_MN


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("null_memory", [True, False])
@pytest.mark.parametrize("token_layout", ["grouped", "packed", "padded"])
def test_a_shared_memory_is_a_copy_for_each_reader(token_layout: str, null_memory: bool, masked: bool) -> None:
    model = tiny_model(token_layout=token_layout, fusion={"null_memory": null_memory}).double()
    ids_BL, mask_BL = tiny_texts()
    text_BLD = model.encode_texts(ids_BL, mask_BL).detach().requires_grad_()
    memory_MND, mask_MN = memories()
    has_memory_B = torch.tensor([True, False, True, True, True])
    found = []
    for is_shared in (True, False):
        given = (memory_MND, mask_MN) if is_shared else (memory_MND[MEMORY_OF_B], mask_MN[MEMORY_OF_B])
        fused_BLD = model.fuse(
            text_BLD,
            mask_BL,
            given[0],
            given[1] if masked else None,
            has_memory_B,
            MEMORY_OF_B if is_shared else None,
        )
        weight = torch.linspace(-1, 1, fused_BLD.numel(), dtype=torch.float64).view_as(fused_BLD)
        wanted = [text_BLD, memory_MND, *model.fusion_encoder.parameters()]
        found.append([fused_BLD, *torch.autograd.grad((fused_BLD * weight).sum(), wanted)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_plan_pads_a_memory_to_similar_ones_only() -> None:
    _, mask_BL = tiny_texts()
    _, mask_MN = memories()
    plan = plan_reading(text_layout(mask_BL, "grouped"), mask_MN, MEMORY_OF_B)
    assert isinstance(plan, SharedReading)
    assert sorted({length for _, _, length in plan.shapes}) == [2, 3, 9, 10]
    assert sum(size for size, _, _ in plan.shapes) == 6
    rows_of = {0: 1, 3: 5 + 9 + 2, 5: 5}
    cells = [bag for size, bag, _ in plan.shapes for _ in range(size)]
    assert sum(cells) >= sum(rows_of.values())
    assert max(cells) == rows_of[3]
    assert [mask is None for mask, (_, _, length) in zip(plan.masks, plan.shapes, strict=True) if length < 9] == [
        True,
        True,
    ]


@pytest.mark.parametrize("token_layout", ["packed", "padded"])
def test_other_layouts_pick_keys_and_values_by_the_index(token_layout: str) -> None:
    _, mask_BL = tiny_texts()
    layout = text_layout(mask_BL, token_layout)
    assert isinstance(layout, PackedLayout if token_layout == "packed" else PaddedLayout)
    plan = plan_reading(layout, None, MEMORY_OF_B)
    assert type(plan) is Reading
    ((query, memory, mask),) = plan.blocks(layout.to_rows(torch.randn(*mask_BL.shape, 4)), torch.arange(6)[:, None])
    assert query.shape == (5, 9, 4)
    assert memory[:, 0].tolist() == MEMORY_OF_B.tolist()
    assert mask is None
