from __future__ import annotations

import math
from pathlib import Path

import pytest

from cclm.errors import Cause, CclmError
from cclm.run.checkpoints import FileRecord, Marker, step_folder, write_marker
from cclm.train.recorder import FEW_SKIPPED, LOSS_LIMIT, MOST_SKIPPED, Health


def after(*skipped: bool, folder: Path = Path("nowhere")) -> Health:
    health = Health(run_folder=folder)
    for one in skipped:
        health.add([one])
    return health


@pytest.mark.parametrize(
    ("health", "is_saved"),
    [
        (after(False), True),
        (after(False, True), True),  # an odd batch
        (after(True), False),  # all of them
        (after(True, True), False),
        (after(False, *[True] * FEW_SKIPPED), False),
        (after(*[True] * 5, False), True),
    ],
)
def test_a_state_after_skipped_updates_is_not_saved(health: Health, is_saved: bool) -> None:
    if is_saved:
        health.check_updates(7)
        return
    with pytest.raises(CclmError) as caught:
        health.check_updates(7)
    assert (caught.value.cause, caught.value.where) == (Cause.DIVERGED, "step 7")


def test_what_counts_is_what_came_since_the_last_checkpoint() -> None:
    health = after(False, False, True)
    assert health.has_changed
    health.saved()
    assert not health.has_changed
    health.add([True])
    with pytest.raises(CclmError):
        health.check_updates(4)


def test_many_skipped_updates_in_a_row_end_it_without_waiting_for_a_checkpoint() -> None:
    assert not after(*[True] * (MOST_SKIPPED - 1)).is_lost
    assert after(*[True] * MOST_SKIPPED).is_lost
    assert not after(*[True] * MOST_SKIPPED, False).is_lost


@pytest.mark.parametrize("loss", [math.nan, math.inf, LOSS_LIMIT, 1.7e11])
def test_an_exploded_loss_is_told_with_the_values_that_exploded(loss: float) -> None:
    health = after(False)
    health.check_values(3, {"loss": 20.0, "bad_share": 0.0})
    with pytest.raises(CclmError) as caught:
        health.check_values(3, {"loss": loss, "itc": 2.0, "mlm": loss})
    assert caught.value.cause is Cause.DIVERGED
    assert caught.value.got == f"loss {loss:.3g}, mlm {loss:.3g}"


def test_the_advice_names_the_checkpoint_it_goes_on_from(tmp_path: Path) -> None:
    advice = []
    for step in (0, 10):
        if step:
            step_folder(tmp_path, step).mkdir(parents=True)
            write_marker(step_folder(tmp_path, step), Marker(step=step, world_size=1, files=dict[str, FileRecord]()))
        with pytest.raises(CclmError) as caught:
            after(True, folder=tmp_path).check_updates(12)
        advice.append(caught.value.do)
    assert "There is no checkpoint" in advice[0]
    assert str(step_folder(tmp_path, 10)) in advice[1] and "remove this checkpoint" in advice[1]
