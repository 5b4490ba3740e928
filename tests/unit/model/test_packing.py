from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cclm.model.modeling_cclm import CCLMModel
from cclm.model.packing import (
    GroupedLayout,
    PackedLayout,
    PaddedLayout,
    concatenate_padded,
    gather_rows,
    grouped_layout,
    masked_mean,
    packed_layout,
    text_layout,
)
from tests.unit.model.tiny import LENGTHS, tiny_images, tiny_model, tiny_texts
from tests.waits import waits_on_cpu

LAYOUTS = ("padded", "packed", "grouped")


@pytest.mark.parametrize("name", LAYOUTS)
def test_rectangle_to_rows_and_back_keeps_real_tokens_and_zeroes_padding(name: str) -> None:
    _, mask_BL = tiny_texts(columns=11)
    layout = text_layout(mask_BL, name)
    states_BLD = torch.randn(*mask_BL.shape, 3)
    assert torch.equal(layout.to_rectangle(layout.to_rows(states_BLD)), states_BLD * mask_BL[..., None])


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_are_taken_in_the_order_of_the_rows(name: str) -> None:
    ids_BL, mask_BL = tiny_texts()
    layout = text_layout(mask_BL, name)
    as_rows = layout.to_rows(ids_BL[..., None].double())[:, 0]
    assert torch.equal(layout.take_ids(ids_BL), as_rows.long())


@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_hold_whole_sequences_and_can_be_undone(name: str) -> None:
    ids_BL, mask_BL = tiny_texts()
    layout = text_layout(mask_BL, name)
    rows_TD = layout.to_rows(torch.randn(*mask_BL.shape, 4) * mask_BL[..., None])
    blocks = layout.to_blocks(rows_TD)
    assert len(blocks) == len(layout.block_masks())
    assert torch.equal(layout.from_blocks(blocks), rows_TD)
    sequences = layout.split_sequences(layout.sort_sequences(torch.arange(len(LENGTHS))))
    for block, rows_B in zip(layout.to_blocks(layout.to_rows(ids_BL[..., None].double())), sequences, strict=True):
        for tokens, row in zip(block[..., 0].long(), rows_B, strict=True):
            assert torch.equal(tokens[: LENGTHS[row]], ids_BL[row, : LENGTHS[row]])


@pytest.mark.parametrize("multiple", [1, 4, 8, 32, 100])
def test_packed_rows_are_filled_up_to_a_round_number(multiple: int) -> None:
    ids_BL, mask_BL = tiny_texts()
    layout = packed_layout(mask_BL, multiple=multiple)
    rows, real = layout.take_ids(ids_BL), int(mask_BL.sum())
    assert len(rows) == min(-(-real // multiple) * multiple, mask_BL.numel())
    assert torch.equal(rows[:real], ids_BL[mask_BL]) and (rows[real:] == 1).all()
    states_BLD = torch.randn(*mask_BL.shape, 3)
    assert torch.equal(layout.to_rectangle(layout.to_rows(states_BLD)), states_BLD * mask_BL[..., None])
    assert layout.starts is not None
    lengths = layout.starts.diff()
    assert lengths[: len(LENGTHS)].tolist() == list(LENGTHS) and int(lengths.sum()) == len(rows)
    others = packed_layout(torch.ones_like(mask_BL), multiple=multiple).starts
    assert others is not None and len(others) == len(layout.starts), "as many whatever the texts"
    assert int(lengths.max()) <= layout.length


@pytest.mark.parametrize("multiple", [8, 32])
def test_filling_up_changes_no_output_and_no_gradient(multiple: int) -> None:
    found = []
    for number in (1, multiple):
        model = tiny_model(token_layout="packed").double()
        model.text_encoder.token_multiple = model.fusion_encoder.token_multiple = number
        ids_BL, mask_BL = tiny_texts()
        text_BLD = model.encode_texts(ids_BL, mask_BL)
        fused_BLD = model.fuse(text_BLD, mask_BL, model.encode_images(tiny_images().double()))
        (fused_BLD.square().sum() + text_BLD.sum()).backward()
        found.append({"texts": text_BLD, "fused": fused_BLD} | {n: p.grad for n, p in model.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-12)


def test_grouped_blocks_have_no_padding() -> None:
    _, mask_BL = tiny_texts()
    layout = grouped_layout(mask_BL)
    assert (layout.group_lengths, layout.group_sizes) == ((1, 2, 5, 9), (1, 1, 2, 1))
    assert layout.order_B.tolist() == [1, 4, 0, 3, 2]
    assert layout.index_T.shape == (sum(LENGTHS),)


def test_masks_need_not_be_left_aligned() -> None:
    mask_BL = torch.tensor([[False, True, True], [True, False, True], [False, False, True]])
    states_BLD = torch.randn(3, 3, 2)
    for name in LAYOUTS:
        layout = text_layout(mask_BL, name)
        assert torch.equal(layout.to_rectangle(layout.to_rows(states_BLD)), states_BLD * mask_BL[..., None])


def test_who_knows_the_number_of_tokens_gets_the_same_layout_without_waiting() -> None:
    for mask_BL in (tiny_texts(columns=11)[1], torch.tensor([[False, True], [True, False]]), torch.ones(2, 3).bool()):
        asked, real = packed_layout(mask_BL), mask_BL.flatten().nonzero()[:, 0]
        with waits_on_cpu() as waits:
            told = packed_layout(mask_BL, num_tokens=len(real))
        assert not waits.found
        for layout in (asked, told):
            assert torch.equal(layout.index_T, real)
            assert torch.equal(layout.inverse_R[real], torch.arange(len(real)))
            assert (layout.inverse_R[~mask_BL.flatten()] == len(real)).all()


@pytest.mark.parametrize("name", ["packed", "grouped"])
def test_gradients_of_the_movements_are_the_true_ones(name: str) -> None:
    _, mask_BL = tiny_texts((2, 1, 3, 2))
    layout = text_layout(mask_BL, name)
    states = torch.randn(*mask_BL.shape, 2, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    rows = layout.to_rows(states).detach().requires_grad_()
    assert torch.autograd.gradcheck(layout.to_rows, (states,))
    assert torch.autograd.gradcheck(layout.to_rectangle, (rows,))
    assert torch.autograd.gradcheck(lambda x: layout.from_blocks(layout.to_blocks(x)), (rows,))
    assert torch.autograd.gradcheck(layout.sort_sequences, (memory,))


def test_gather_rows_gives_zeros_past_the_end_in_both_directions() -> None:
    rows = torch.arange(6.0).view(3, 2).requires_grad_()
    more = gather_rows(rows, torch.tensor([2, 3, 0, 1]), torch.tensor([2, 3, 0]))
    assert more.tolist() == [[4.0, 5.0], [0.0, 0.0], [0.0, 1.0], [2.0, 3.0]]
    fewer = gather_rows(rows, torch.tensor([1]), torch.tensor([1, 0, 1]))
    (more.sum() + 10 * fewer.sum()).backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[1.0, 1.0], [11.0, 11.0], [1.0, 1.0]]


def test_auto_groups_on_a_cpu() -> None:
    _, mask_BL = tiny_texts()
    assert type(text_layout(mask_BL, "auto")) is GroupedLayout
    assert type(text_layout(mask_BL, "packed")) is PackedLayout
    assert type(text_layout(mask_BL, "padded")) is PaddedLayout
    assert type(packed_layout(mask_BL)) is PackedLayout


def test_masked_mean_ignores_padding() -> None:
    _, mask_BL = tiny_texts()
    states_BLD = torch.randn(*mask_BL.shape, 3)
    expected = torch.stack([row[:length].mean(0) for row, length in zip(states_BLD, LENGTHS, strict=True)])
    torch.testing.assert_close(masked_mean(states_BLD, mask_BL), expected)


def test_concatenate_padded_pads_to_the_longest() -> None:
    short, long = tiny_texts((2, 1)), tiny_texts((4, 3, 1))
    ids, mask = concatenate_padded([short, long], value=1)
    assert ids.dtype == torch.int64
    assert torch.equal(ids[:2, 2:], torch.ones(2, 2, dtype=torch.int64))
    assert torch.equal(ids[2:], long[0])
    assert ids.shape == mask.shape == (5, 4)
    assert torch.equal(ids[:2, :2], short[0])
    assert torch.equal(mask.sum(1), torch.tensor([2, 1, 4, 3, 1]))
    states, _ = concatenate_padded([(torch.ones(2, 2, 3), short[1]), (torch.ones(3, 4, 3), long[1])])
    assert states.shape == (5, 4, 3)
    assert states[:2, 2:].abs().sum() == 0
    assert states.sum() == 2 * 2 * 3 + 3 * 4 * 3


@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)])
def test_concatenate_padded_takes_any_trailing_dimensions(trailing: tuple[int, ...]) -> None:
    """States (B, L, D) are memories, (B, L, H, D) would be keys by head."""
    masks = [torch.ones(2, 4, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)]
    parts = [(torch.randn(*mask.shape, *trailing, requires_grad=True), mask) for mask in masks]
    joined, mask = concatenate_padded(parts, value=-5.0)
    assert joined.shape == (3, 4, *trailing)
    assert torch.equal(joined[:2], parts[0][0])
    assert torch.equal(joined[2:, :2], parts[1][0])
    assert torch.equal(joined[2:, 2:], torch.full((1, 2, *trailing), -5.0))
    assert mask.tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]
    joined.sum().backward()  # type: ignore[no-untyped-call]
    assert all(cells.grad is not None and torch.equal(cells.grad, torch.ones_like(cells)) for cells, _ in parts)


class TextTower(nn.Module):
    """What people export: token ids and their mask to unit vectors."""

    def __init__(self, model: CCLMModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        return self.model.get_text_features(ids_BL, mask_BL)


@pytest.mark.slow
@pytest.mark.parametrize("token_layout", ["auto", "packed", "grouped"])
def test_a_text_tower_can_be_exported_and_traced_for_texts_of_other_lengths(token_layout: str) -> None:
    tower = TextTower(tiny_model(token_layout=token_layout)).eval()
    with torch.no_grad():
        given, other = tiny_texts(), tiny_texts((3, 7, 1), columns=8)
        batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=12)
        shapes = {"ids_BL": {0: batch, 1: length}, "mask_BL": {0: batch, 1: length}}
        exported = torch.export.export(tower, given, dynamic_shapes=shapes).module()
        traced = torch.jit.trace(tower, given, check_trace=False)
        for texts in (given, other):
            torch.testing.assert_close(exported(*texts), tower(*texts), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(traced(*texts), tower(*texts), atol=1e-5, rtol=1e-4)
        ids_BL, mask_BL = given
        inputs = {"pixel_values": tiny_images(2), "input_ids": ids_BL, "attention_mask": mask_BL}
        whole = torch.export.export(tower.model, (), inputs).module()
        expected = tower.model(**inputs).logits_per_image
        torch.testing.assert_close(whole(**inputs).logits_per_image, expected, atol=1e-4, rtol=1e-4)
