"""Batches of the region view, its settings' meeting with the network, and what is counted of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from cclm.errors import ConfigError
from cclm.model.modeling_cclm import CCLMModel
from cclm.views.regions.view import RegionBatch, RegionView
from tests.tiny_batches import texts
from tests.tiny_views import REGIONS, Views, open_dataset, sources


@pytest.fixture
def regions(boxes: Path) -> Views:
    return {"regions": replace(REGIONS, sources=sources(boxes))}


def batch_of(views: Views, step: int, rank: int = 0, world_size: int = 1) -> RegionBatch:
    return cast(RegionBatch, open_dataset(views, rank=rank, world_size=world_size)[step].views["regions"])


def test_the_ranks_batches_make_the_global_one(regions: Views) -> None:
    whole, first, second = batch_of(regions, 3), *(batch_of(regions, 3, rank, 2) for rank in (0, 1))
    for name in (
        *("images_BCHW", "mask_RN", "box_R4", "whole_R", "identity_R"),
        *("noise_first_FG", "noise_second_FG", "ledger_S"),
    ):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(first, name), getattr(second, name)])), name
    assert texts(whole.text) == texts(first.text) + texts(second.text)
    assert texts(whole.masked.tokens) == texts(first.masked.tokens) + texts(second.masked.tokens)
    assert torch.equal(whole.image_of_R, torch.cat([first.image_of_R, second.image_of_R + len(first.images_BCHW)]))
    assert torch.equal(whole.matching_row_F, torch.cat([first.matching_row_F, second.matching_row_F + 8]))
    assert whole.images_BCHW.shape[1:] == (3, 16, 16) and whole.mask_RN.shape == (16, 17)
    assert len(whole.images_BCHW) == len(set(whole.image_of_R.tolist())), "no image that no row is about"
    assert whole.mask_RN[:, 0].all() and whole.mask_RN[:, 1:].any(1).all()


def test_a_groups_texts_are_about_its_own_images(regions: Views) -> None:
    batch = batch_of(regions, 1)
    assert batch.image_of_R.view(2, 8).min(1).values.tolist()[1] >= 5 > batch.image_of_R.view(2, 8).max(1).values[0]


def test_a_record_without_regions_is_replaced_and_told(regions: Views) -> None:
    dataset = open_dataset(regions)
    bad = [sample for step in range(4) for sample in dataset[step].bad_samples]
    assert {(sample.view, sample.key, sample.reason) for sample in bad} == {("regions", "r7", "region_missing")}


def test_images_are_counted_by_source(regions: Views, boxes: Path) -> None:
    dataset = open_dataset(regions)
    assert dataset.counted == [f"regions/{boxes.name}"], "which languages a group takes is drawn later"
    assert dataset[0].samples_seen == ((f"regions/{boxes.name}", 10),)


class OneGrid:
    """Stands for a network whose image tower has a grid of 2 × 2."""

    def pool_regions(self, whole_BND: torch.Tensor, image_of_R: torch.Tensor, mask_RN: torch.Tensor) -> torch.Tensor:
        return whole_BND[image_of_R]


def test_masks_of_another_grid_are_refused(regions: Views) -> None:
    view, batch = RegionView("regions", REGIONS), batch_of(regions, 0)
    model = cast(CCLMModel, OneGrid())
    with pytest.raises(ConfigError, match=r"views\.regions\.patch_grid: expected masks of 1 \+ 4 .*, got 1 \+ 16"):
        view.image_states(model, batch, torch.zeros(10, 5, 3))
    states_RND, mask_RN = view.image_states(model, batch, torch.zeros(10, 17, 3))
    assert states_RND.shape == (16, 17, 3) and torch.equal(mask_RN, batch.mask_RN)
