"""Which view when: the same on all ranks without talking, entered anywhere, and no batch of a stream is skipped."""

from __future__ import annotations

import numpy as np
import pytest

from cclm.data.schedule import BLOCK, ViewSchedule

ALL = {"text_pair", "regions", "image_text"}


def alternate(probability: float = 0.5, seed: int = 3, views: set[str] = ALL) -> ViewSchedule:
    return ViewSchedule(views, "alternate", probability, seed)


def test_a_joint_step_holds_every_view_and_its_own_batch() -> None:
    schedule = ViewSchedule(ALL, "joint", 0.5, 0)
    assert schedule.views(7) == ("text_pair", "regions", "image_text")
    assert [schedule.index(view, 7) for view in schedule.views(7)] == [7, 7, 7]


def test_the_first_step_holds_both_kinds_of_pictures_as_published() -> None:
    assert alternate().views(0) == ("text_pair", "regions", "image_text")
    assert alternate(probability=0.0).views(0) == ("text_pair", "regions", "image_text")


@pytest.mark.parametrize("last", [50, BLOCK + 70])
def test_batches_are_counted_over_the_steps_that_hold_the_view(last: int) -> None:
    schedule, counts = alternate(), dict.fromkeys(ALL, 0)
    for step in range(last):
        views = schedule.views(step)
        assert len(views) == (3 if step == 0 else 2)
        for view in views:
            if step > last - 40:
                assert alternate().index(view, step) == counts[view], "a fresh process finds the same"
            counts[view] += 1


def test_the_coin_is_fair_and_belongs_to_the_seed() -> None:
    draws = [np.array(["regions" in alternate(0.3, seed).views(step) for step in range(1, 3000)]) for seed in (1, 1, 2)]
    assert draws[0].mean() == pytest.approx(0.3, abs=0.03)
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_without_regions_every_step_has_text_and_images() -> None:
    schedule = alternate(views={"text_pair", "image_text"})
    assert {schedule.views(step) for step in range(20)} == {("text_pair", "image_text")}
    assert schedule.index("image_text", 19) == 19


def test_regions_alone_are_not_left_to_a_coin() -> None:
    assert {alternate(views={"regions", "text_pair"}).views(step) for step in range(20)} == {("text_pair", "regions")}
