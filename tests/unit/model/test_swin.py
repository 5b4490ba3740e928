from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.model.options import VisionOptions
from cclm.model.swin import (
    OTHER_SIDE,
    PatchMerging,
    SwinEncoder,
    WindowAttention,
    from_windows,
    grid_index,
    shift_mask,
    to_windows,
)
from tests.unit.model.tiny import tiny_config

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {
    "architecture": "swin",
    "image_size": 32,
    "patch_size": 4,
    "window": 2,
    "stage_layers": (2, 2),
    "stage_heads": (2, 4),
    "num_heads": 4,
    "feedforward_width": 32,
}


def tower(**changes: Any) -> SwinEncoder:
    """With position biases that are not zero."""
    encoder = SwinEncoder(16, VisionOptions(**{**OPTIONS, **changes}))
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias_table"):
            torch.nn.init.normal_(parameter)
    return encoder.eval()


def test_windows_are_blocks_of_the_grid() -> None:
    grid = torch.arange(36.0).view(1, 6, 6, 1)
    windows = to_windows(grid, 3)
    assert windows.shape == (1, 4, 9, 1)
    assert windows[0, 1, :, 0].tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17]
    assert torch.equal(from_windows(windows, 6), grid)


def test_only_neighbours_see_each_other_after_a_shift() -> None:
    mask = shift_mask(4, 2, CPU)
    assert mask.shape == (4, 4, 4)
    assert mask[0].abs().max() == 0, "the first window holds no border"
    rolled = torch.arange(16).view(1, 4, 4, 1).roll((-1, -1), (1, 2))
    cells = to_windows(rolled.float(), 2)[0, :, :, 0].long()
    row, column = cells // 4, cells % 4
    near = ((row[:, :, None] - row[:, None]).abs() <= 1) & ((column[:, :, None] - column[:, None]).abs() <= 1)
    assert torch.equal(mask == 0, near)
    assert set(mask.unique().tolist()) == {0.0, OTHER_SIDE}


def test_the_index_tells_offsets() -> None:
    index = grid_index(3, CPU)
    assert index.shape == (9, 9)
    assert index.unique().numel() == 25
    assert (index.diagonal() == 12).all()
    assert index[0, 1] == index[4, 5] == index[7, 8] == 11, "one to the right"
    assert index[0, 3] == index[5, 8] == 7, "one down"


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_hand(masked: bool) -> None:
    attention = WindowAttention(8, 2, 2)
    torch.nn.init.normal_(attention.position.bias_table)
    windows = torch.randn(3, 4, 4, 8)
    mask = shift_mask(4, 2, CPU) if masked else None
    found = attention(windows, mask)
    index = grid_index(2, CPU)
    for window in range(4):
        query, key, value = attention.query_key_value(windows[1, window]).chunk(3, -1)
        heads = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = query[:, part] @ key[:, part].T / 2 + attention.position.bias_table[index, head]
            if mask is not None:
                scores = scores + mask[window]
            heads.append(scores.softmax(-1) @ value[:, part])
        torch.testing.assert_close(found[1, window], attention.output(torch.cat(heads, -1)))


def test_merging_takes_four_neighbours_down_first() -> None:
    merge = PatchMerging(2, 1e-5)
    grid = torch.randn(1, 4, 4, 2)
    four = torch.cat([grid[0, 2, 0], grid[0, 3, 0], grid[0, 2, 1], grid[0, 3, 1]])
    expected = merge.reduce(merge.norm(four))
    torch.testing.assert_close(merge(grid)[0, 1, 0], expected)


def test_the_tower_ends_at_the_width_with_the_mean_in_front() -> None:
    tokens = tower()(torch.randn(2, 3, 32, 32))
    assert tokens.shape == (2, 1 + 16, 16)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(1))


@pytest.mark.parametrize(("window", "shifts"), [(2, [0, 1, 0, 1]), (4, [0, 2, 0, 0]), (8, [0, 0, 0, 0])])
def test_a_window_as_large_as_the_grid_does_not_shift(window: int, shifts: list[int]) -> None:
    encoder = tower(window=window)
    assert [block.shift for stage in encoder.stages for block in stage.blocks] == shifts


def test_shifted_blocks_join_windows() -> None:
    def changed(encoder: SwinEncoder) -> Tensor:
        """Which first-stage cells feel a change of the top left pixel."""
        images = torch.randn(1, 3, 32, 32)
        other = images.clone()
        other[0, 0, 0, 0] += 1
        blocks = nn.Sequential(*encoder.stages[0].blocks)
        grids = [blocks(encoder.patches(picture)) for picture in (images, other)]
        return (grids[0] - grids[1]).abs().amax((0, 3)) > 0

    encoder = tower(stage_layers=(1, 2))
    assert changed(encoder).sum() == 4, "one window"
    encoder = tower()
    assert changed(encoder).sum() > 4


def test_stochastic_depth_rises_and_acts_only_in_training() -> None:
    encoder = tower(drop_path=0.3)
    drops = [block.drop for stage in encoder.stages for block in stage.blocks]
    assert drops == pytest.approx([0.0, 0.1, 0.2, 0.3])
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(encoder(images), encoder(images))
    encoder.train()
    assert not torch.equal(encoder(images), encoder(images))


def test_gradients_reach_every_parameter() -> None:
    encoder = tower()
    encoder(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


def test_features_learned_after_inference_mode() -> None:
    """The cached index must be usable in training even if the first call was in inference mode."""
    encoder = tower(window=1, image_size=8)
    with torch.inference_mode():
        encoder(torch.randn(1, 3, 8, 8))
    encoder(torch.randn(1, 3, 8, 8)).sum().backward()
    functional.mse_loss(encoder(torch.randn(1, 3, 8, 8)), torch.zeros(1, 2, 16)).backward()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 36}, r"expected a multiple of 8 \(patches of 4, 2 stages\), got 36"),
        ({"image_size": 40}, "its grid of side 5 into windows of side 2"),
        ({"stage_heads": (2,)}, "expected 2 numbers, one per stage, got 1"),
        ({"stage_heads": (3, 4)}, "cut its 8 channels into stage_heads"),
    ],
)
def test_sizes_that_do_not_fit_are_sentences(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny_config(vision={**OPTIONS, **changes})
