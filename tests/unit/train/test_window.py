"""Means between two lines of the log."""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor, nn

from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from cclm.train.recorder import WindowMeans

ENGINE = PlainEngine[None](nn.Linear(1, 1), OptimizerConfig(total_steps=1))
LOSSES = [2.3456789, 3.1415927, 0.0001234, 17.5, 4.7182817, 9.25]
BESIDE = {"bad_share": torch.tensor(0.25)}


def step(loss: float, **others: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in {"loss": loss, **others}.items()}


def test_one_step_is_its_own_mean_bit_by_bit() -> None:
    window = WindowMeans()
    window.add(step(LOSSES[0]), is_good=True)
    assert window.means(ENGINE, BESIDE) == {"loss": float(torch.tensor(LOSSES[0])), "bad_share": 0.25}


def test_views_that_take_turns_have_means_over_their_own_steps() -> None:
    window = WindowMeans()
    window.add(step(1.0, itc=4.0), is_good=True)
    window.add(step(2.0, ttc=8.0), is_good=True)
    window.add(step(6.0, itc=2.0), is_good=True)
    window.add_value("grad_norm", 5.0)
    window.add_value("grad_norm", 7.0)
    assert window.means(ENGINE, {}) == {"grad_norm": 6.0, "loss": 3.0, "itc": 3.0, "ttc": 8.0}


def test_a_window_that_a_stop_has_cut_has_the_same_means() -> None:
    whole = WindowMeans()
    for loss in LOSSES:
        whole.add(step(loss), is_good=True)
    for cut in range(1, len(LOSSES)):
        first, second = WindowMeans(), WindowMeans()
        for loss in LOSSES[:cut]:
            first.add(step(loss), is_good=True)
        first.means(ENGINE, {})
        second.restore(json.loads(json.dumps(first.state())))
        for loss in LOSSES[cut:]:
            second.add(step(loss), is_good=True)
        assert second.means(ENGINE, {}) == whole.means(ENGINE, {}), cut


def test_bad_steps_count_only_where_there_is_no_other() -> None:
    window = WindowMeans()
    window.add(step(math.nan), is_good=False)
    assert math.isnan(window.means(ENGINE, {})["loss"])
    window.add(step(2.0), is_good=True)
    assert window.means(ENGINE, {}) == {"loss": 2.0}
    window.close()
    assert window.means(ENGINE, BESIDE) == {"bad_share": 0.25}
