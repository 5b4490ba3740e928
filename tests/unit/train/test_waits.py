"""A step lets the host run ahead of a GPU: what would make it wait, forward and backward, is listed here with a reason.

Seen on a CPU (`tests/waits.py`), in the layout that a GPU takes; `tests/gpu` looks at a GPU itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cclm.data.batch import Batch
from cclm.train.step import CrossViewTraining
from tests.tiny_run import recipe, with_regions, write_corpus
from tests.tiny_training import as_config, dataset_of, module_of
from tests.waits import waits_on_cpu

ALLOWED = {
    ("is_nonzero", "cclm/ops/contrastive_blocks.py:_fixed_shift"): "looked at on a CPU only",
    ("_local_scalar_dense", "cclm/ops/linear_cross_entropy_operator.py:_differentiate"): "looked at on a CPU only",
    ("_local_scalar_dense", "cclm/model/packing.py:text_layout"): "looked at on a CPU only",
    ("tolist", "cclm/model/reading.py:plan_wanted"): "looked at on a CPU only",
    ("_local_scalar_dense", "cclm/model/packing.py:packed_layout"): (
        "of the fusion encoder: how long the wrong texts are that were drawn, only the device knows"
    ),
}
PER_VIEW = {"_fixed_shift": 2}
"""Forward and backward of each view's contrastive loss."""


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[CrossViewTraining, Batch]:
    """Three views in a joint step, as dropout and a GPU's layout want it."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    settings = with_regions(recipe(folder, folder / "run"), folder)
    settings["model"]["token_layout"] = "packed"
    for part in ("text", "fusion"):
        settings["model"][part] = {**settings["model"][part], "dropout": 0.1, "attention_dropout": 0.1}
    settings["model"]["vision"] = {**settings["model"]["vision"], "drop_path": 0.1}
    config = as_config(settings)
    batch = dataset_of(config)[0]
    batch.normalised()  # a run's first step puts the pixel scales on the device
    return module_of(config), batch


@pytest.mark.parametrize(
    "views", [("image_text",), ("regions",), ("text_pair",), ("image_text", "regions", "text_pair")]
)
def test_a_step_waits_only_where_there_is_a_reason(
    training: tuple[CrossViewTraining, Batch], views: tuple[str, ...]
) -> None:
    module, batch = training
    part = replace(batch, views={name: batch.views[name] for name in views})
    with waits_on_cpu() as waits:
        module(part).total.backward()
    assert not waits.found.keys() - ALLOWED.keys(), "the host would wait for the GPU here"
    most = {key: PER_VIEW.get(key[1].rpartition(":")[2], 0) * len(views) or 2 for key in ALLOWED}
    assert {key: count for key, count in waits.found.items() if count > most[key]} == {}


def test_the_list_holds_nothing_that_is_gone(training: tuple[CrossViewTraining, Batch]) -> None:
    module, batch = training
    with waits_on_cpu() as waits:
        module(batch).total.backward()
    assert ALLOWED.keys() == waits.found.keys()


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("_local_scalar_dense", lambda x: x.sum().item()),
        ("_local_scalar_dense", lambda x: float(x[0])),
        ("_local_scalar_dense", lambda x: bool((x > 0).all())),
        ("nonzero", lambda x: (x > 0).nonzero()),
        ("boolean index", lambda x: x[x > 0]),
        ("boolean index", lambda x: x.masked_fill(x > 0, 1.0).clone().__setitem__(x > 0, torch.zeros(()))),
        ("masked_select", lambda x: x.masked_select(x > 0)),
        ("_unique2", lambda x: x.unique()),
        ("isin", lambda x: torch.isin(x.long(), x.long())),
        ("equal", lambda x: torch.equal(x, x)),
        ("repeat_interleave", lambda x: x.repeat_interleave(x.long())),
        ("tolist", lambda x: x.tolist()),
        ("numpy", lambda x: x.numpy()),
        ("tensor", lambda x: torch.tensor([1.0], device=x.device)),
        ("new_tensor", lambda x: x.new_tensor([1.0])),
    ],
)
def test_what_would_wait_is_seen(name: str, work: Callable[[Tensor], object]) -> None:
    values = torch.ones(4)
    with waits_on_cpu() as waits:
        work(values)
    assert [what for what, _ in waits.found] == [name]


def test_what_does_not_wait_is_not_seen() -> None:
    values, places = torch.rand(4, requires_grad=True), torch.tensor([2, 0])
    with waits_on_cpu() as waits:
        (values[places].softmax(0) * torch.full((2,), 3.0)).sum().backward()  # type: ignore[no-untyped-call]
        values.detach().clone().masked_fill_(values > 0, 0.0)
        torch.tensor([1.0])
    assert not waits.found
