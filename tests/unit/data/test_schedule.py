"""Which view when: the same on all ranks without talking, entered anywhere, and no batch of a stream is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from cclm.config import RunConfig
from cclm.data.config import ViewConfig
from cclm.data.schedule import BLOCK, ViewSchedule
from cclm.engine.options import OptimizerConfig
from cclm.model.options import ModelOptions
from tests.tiny_views import DATA, IMAGE_TEXT, REGIONS, TEXT_PAIR, Views, change, only, open_dataset

ALL: Views = {"image_text": IMAGE_TEXT, "regions": REGIONS, "text_pair": TEXT_PAIR}
NAMES = ("text_pair", "regions", "image_text")


def alternate(step_share: float = 0.5, seed: int = 3, names: Sequence[str] = tuple(ALL)) -> ViewSchedule:
    return ViewSchedule(only(change(ALL, "regions", step_share=step_share), *names), "alternate", seed)


def test_a_joint_step_holds_every_view_and_its_own_batch() -> None:
    schedule = ViewSchedule(ALL, "joint", 0)
    assert schedule.views(7) == NAMES
    assert [schedule.index(view, 7) for view in schedule.views(7)] == [7, 7, 7]


def test_the_first_step_holds_both_kinds_of_images_as_published() -> None:
    assert alternate().views(0) == NAMES
    assert alternate(step_share=0.0).views(0) == NAMES


@pytest.mark.parametrize(("share", "held"), [(0.0, "image_text"), (1.0, "regions")])
def test_a_coin_may_have_one_side(share: float, held: str) -> None:
    schedule = alternate(share)
    assert {schedule.views(step) for step in range(1, 50)} == {("text_pair", held)}
    assert schedule.index(held, 50) == 50
    assert schedule.index({"regions": "image_text", "image_text": "regions"}[held], 50) == 1, "that of step 0"


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


@pytest.mark.slow
def test_the_coin_is_fair_and_belongs_to_the_seed() -> None:
    draws = [np.array(["regions" in alternate(0.3, seed).views(step) for step in range(1, 3000)]) for seed in (1, 1, 2)]
    assert draws[0].mean() == pytest.approx(0.3, abs=0.03)
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_without_regions_every_step_has_text_and_images() -> None:
    schedule = alternate(names=("image_text", "text_pair"))
    assert {schedule.views(step) for step in range(20)} == {("text_pair", "image_text")}
    assert schedule.index("image_text", 19) == 19


def test_regions_alone_are_not_left_to_a_coin() -> None:
    assert {alternate(names=("regions", "text_pair")).views(step) for step in range(20)} == {("text_pair", "regions")}


@dataclass(frozen=True, kw_only=True)
class Tandem(ViewConfig):
    """A view that takes turns with a view of its choice."""

    partner: str
    share: float

    @property
    def takes_turns_with(self) -> tuple[str, float] | None:
        return self.partner, self.share


def test_any_view_can_take_turns_with_any_other() -> None:
    own = Tandem(sources={}, partner="text_pair", share=0.25)
    schedule = ViewSchedule({**only(ALL, "image_text", "text_pair"), "own": own}, "alternate", 3)
    held = [schedule.views(step) for step in range(400)]
    assert held[0] == ("own", "text_pair", "image_text")
    assert set(held[1:]) == {("own", "image_text"), ("text_pair", "image_text")}
    assert held.count(("own", "image_text")) / 400 == pytest.approx(0.25, abs=0.07)
    assert schedule.index("own", 400) + schedule.index("text_pair", 400) == 401, "step 0 holds both"
    joint = ViewSchedule({**only(ALL, "text_pair"), "own": own}, "joint", 3)
    assert joint.views(5) == ("own", "text_pair"), "turns belong to the alternating schedule"


def test_one_view_takes_turns(three_views: Views) -> None:
    own = replace(Tandem(sources={}, partner="text_pair", share=0.25), sources=three_views["text_pair"].sources)
    four = {**three_views, "own": replace(own, negative_group=8, batch_size=16, matching_rows=8)}
    run = RunConfig(
        run_folder="",
        views=four,
        data=DATA,
        optimizer=OptimizerConfig(total_steps=1),
        model=ModelOptions(box_head=True),
    )
    alternating = replace(run, data=replace(DATA, schedule="alternate"))
    assert set(alternating.validation_errors()) - set(run.validation_errors()) == {
        "data.schedule: one view can take turns with another, not 2 (regions, own)"
    }


def test_batches_hold_the_views_of_their_step_in_the_order_of_the_table(three_views: Views) -> None:
    dataset = open_dataset(three_views, replace(DATA, schedule="alternate"))
    for step in range(6):
        batch = dataset[step]
        assert tuple(reversed(list(batch.views))) == dataset.schedule.views(step)
        for name, view in batch.views.items():
            alone = dataset.sources[name].batch(dataset.schedule.index(name, step), dataset.rows(name), [])
            assert view.ledger_S.equal(alone.ledger_S), "the next batch of its stream, and none skipped"
