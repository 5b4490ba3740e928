"""What makes a step bad, how many may be, and what is written down about them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cclm.config import HealthConfig
from cclm.errors import Cause, CclmError
from cclm.run.checkpoints import FileRecord, Marker, step_folder, write_marker
from cclm.train.health import FEW_SKIPPED, FEWEST_NORMS, LAG, Health, Why, why
from cclm.train.updates import SkippedUpdate

BUDGET = HealthConfig(max_skipped=3, window=10)


def after(*applied: bool, folder: Path = Path("nowhere"), config: HealthConfig = BUDGET) -> Health:
    health = Health(run_folder=folder, config=config)
    for step, one in enumerate(applied):
        health.add(step, [one])
    return health


@pytest.mark.parametrize(
    ("health", "is_saved"),
    [
        (after(True), True),
        (after(True, False), True),  # an odd batch
        (after(False), False),  # all of them
        (after(False, False), False),
        (after(True, *[False] * FEW_SKIPPED), False),
        (after(*[False] * 5, True), True),
    ],
)
def test_a_state_after_skipped_updates_is_not_saved(health: Health, is_saved: bool) -> None:
    assert health.is_doubtful is not is_saved
    if is_saved:
        health.check_updates(7)
        return
    with pytest.raises(CclmError) as caught:
        health.check_updates(7)
    assert (caught.value.cause, caught.value.where) == (Cause.DIVERGED, "step 7")


def test_what_counts_is_what_came_since_the_last_checkpoint() -> None:
    health = after(True, True, False)
    assert health.has_changed
    health.saved()
    assert not health.has_changed
    health.add(3, [False])
    assert health.is_doubtful
    health.add(4, ())  # left out: the number of steps goes on, so there is something to save
    health.saved()
    health.add(5, ())
    assert health.has_changed


def test_the_budget_is_of_the_last_steps() -> None:
    health = after(*[False] * BUDGET.max_skipped)
    health.check(2)
    health.add(3, [False])
    with pytest.raises(CclmError) as caught:
        health.check(3)
    assert caught.value.cause is Cause.DIVERGED and caught.value.got == "4, the first of them step 0"
    for step in range(4, 11):
        health.add(step, [True])
    assert health.bad_steps == [1, 2, 3]  # step 0 is out of the window of ten
    health.check(10)


def test_one_of_a_steps_updates_makes_it_bad() -> None:
    health = Health(run_folder=Path("nowhere"), config=BUDGET)
    health.add(4, [True, False, True])
    assert health.bad_steps == [4] and health.num_bad == 1 and not health.is_doubtful


def test_a_spike_is_measured_by_the_median_of_norms_that_have_certainly_arrived() -> None:
    health = Health(run_folder=Path("nowhere"), config=HealthConfig(max_norm_ratio=4.0))
    for step in range(FEWEST_NORMS):
        assert health.max_norm(step, 0) == math.inf, "too few are known"
        health.add_norms(step, [1.0 + step % 3])
    last = FEWEST_NORMS - 1
    assert health.max_norm(last + LAG, 0) == 8.0
    health.add_norms(last + 1, [1000.0])  # was skipped: no norm to compare others with
    health.add_norms(last + 2, [math.inf])
    assert health.max_norm(last + LAG + 2, 0) == 8.0
    again = Health(run_folder=Path("nowhere"), config=health.config)
    again.restore(json.loads(json.dumps(health.state())))
    assert again.max_norm(last + LAG + 2, 0) == 8.0 and again.max_norm(last + LAG, 1) == math.inf
    off = Health(run_folder=Path("nowhere"))
    off.add_norms(0, [1.0] * 50)
    assert off.state()["norms"] == {} and off.max_norm(99, 0) == math.inf


def test_a_checkpoint_knows_the_bad_steps_before_it() -> None:
    health = after(True, False, False)
    again = Health(run_folder=Path("nowhere"), config=BUDGET)
    again.restore(json.loads(json.dumps(health.state())))
    assert again.bad_steps == [1, 2] and not again.has_changed
    again.restore({})  # of an older version
    assert again.bad_steps == []


@pytest.mark.parametrize(
    ("losses", "norm", "found"),
    [
        ({"loss": None, "mlm": 3e5}, math.inf, Why.LOSS_NOT_FINITE),
        ({"loss": 3e5}, math.inf, Why.LOSS_TOO_LARGE),
        ({}, math.inf, Why.GRADIENT_NOT_FINITE),
        ({}, 40.0, Why.GRADIENT_TOO_LARGE),
    ],
)
def test_why_a_step_was_bad(losses: dict[str, float | None], norm: float, found: Why) -> None:
    skipped = [SkippedUpdate(number=1, views=("image_text",), bad_gradients=())]
    assert why(sorted(losses), [{}, losses], [1.0, norm], skipped) is found


def test_the_advice_names_the_checkpoint_it_goes_on_from(tmp_path: Path) -> None:
    advice = []
    for step in (0, 10):
        if step:
            step_folder(tmp_path, step).mkdir(parents=True)
            write_marker(step_folder(tmp_path, step), Marker(step=step, world_size=1, files=dict[str, FileRecord]()))
        with pytest.raises(CclmError) as caught:
            after(False, folder=tmp_path).check_updates(12)
        advice.append(caught.value.do)
    assert "There is no checkpoint" in advice[0]
    assert str(step_folder(tmp_path, 10)) in advice[1] and "remove this checkpoint" in advice[1]
