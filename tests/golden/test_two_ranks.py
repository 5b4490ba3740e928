"""Case `itc2` cut in halves over two ranks: the published losses, and gradients for both settings of the gather.

The published gather loses 1/W of the features' gradient and none of the temperature's. Ours with `grad_scale` 1/W does
the same; with 1 it gives the true gradient, which is the sum of what the published ranks had before averaging.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.distributed.collectives import collectives
from cclm.pretrained.published_names import to_published
from tests.golden.cases import Runner
from tests.golden.sets import GoldenSet, golden_set
from tests.ranks.spawn import on_ranks

pytestmark = pytest.mark.slow

WORLD = 2
GRADIENT, TEMPERATURE_GRADIENT = 1e-4, 5e-4
Result = dict[str, Any]


def train_half(folder: str) -> Result:
    """On one rank, for its half: all losses as published, and the first text's contrastive loss alone, both ways."""
    golden, talk = golden_set(Path(folder)), collectives()
    record = golden.tensors("world2")
    inputs = {name: value[half_of(value, talk.rank)] for name, value in golden.inputs("itc2").items()}
    first, second = record[f"rank{talk.rank}.neg_idx"].chunk(2)
    result: Result = {}
    for name, scale, only_itc in (("all", 1 / WORLD, False), ("itc", 1 / WORLD, True), ("true_itc", 1.0, True)):
        model = golden.model()
        given = {key: value for key, value in inputs.items() if not (only_itc and key.endswith("_2"))}
        outcome = Runner(model, talk, grad_scale=scale).run("itc2", given, (first, second))
        losses = outcome.losses
        (losses["loss_itc"] if only_itc else outcome.total()).backward()
        ours = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        result[name] = {
            "losses": {key: talk.sum(value).item() / WORLD for key, value in losses.items()},
            "own": {key: value.item() for key, value in losses.items()},
            "gradients": {key: value.clone() for key, value in to_published(ours, golden.weights).items()},
        }
    return result


def half_of(value: Tensor, rank: int) -> slice:
    """This rank's rows."""
    size = value.shape[0] // WORLD
    return slice(rank * size, (rank + 1) * size)


@pytest.fixture(scope="module")
def results() -> dict[str, list[Result]]:
    """By folder; filled by `ranks_of`, because the ranks take seconds to start."""
    return {}


def ranks_of(golden: GoldenSet, results: dict[str, list[Result]]) -> tuple[dict[str, Tensor], list[Result]]:
    """The recorded numbers and ours."""
    record, folder = golden.tensors("world2"), str(golden.folder)
    if folder not in results:
        results[folder] = on_ranks(train_half, WORLD, folder, timeout_s=120)
    return record, results[folder]


def test_losses(golden: GoldenSet, results: dict[str, list[Result]]) -> None:
    record, ranks = ranks_of(golden, results)
    for rank, result in enumerate(ranks):
        for name in ("loss_itc", "loss_ttc"):  # over all ranks: the mean of both is what every published rank had
            expected = record[f"rank{rank}.loss.{name}"].item()
            assert result["all"]["losses"][name] == pytest.approx(expected, abs=1e-5, rel=1e-4)
        for name in ("loss_itm", "loss_mlm"):  # each rank's own
            expected = record[f"rank{rank}.loss.{name}"].item()
            assert result["all"]["own"][name] == pytest.approx(expected, abs=1e-5, rel=1e-4)


def averaged(ranks: list[Result], what: str, name: str) -> Tensor:
    """What a data-parallel run would have after averaging."""
    return torch.stack([result[what]["gradients"][name] for result in ranks]).mean(0)


def published(record: dict[str, Tensor], prefix: str, name: str) -> Tensor:
    """The same of the recorded ranks."""
    return torch.stack([record[f"rank{rank}.{prefix}grad.{name}"] for rank in range(WORLD)]).mean(0)


def expect_gradient(ours: Tensor, theirs: Tensor, name: str) -> None:
    allowed = (TEMPERATURE_GRADIENT if name == "temp" else GRADIENT) * theirs.abs().max().item()
    worst = (ours - theirs).abs().max().item()
    assert worst <= allowed, f"{name}: off by {worst:.2e}, allowed {allowed:.2e}"


def test_published_gradients(golden: GoldenSet, results: dict[str, list[Result]]) -> None:
    record, ranks = ranks_of(golden, results)
    names = [key.removeprefix("rank0.grad.") for key in record if key.startswith("rank0.grad.")]
    assert "temp" in names
    assert len(names) >= 5
    for name in names:
        expect_gradient(averaged(ranks, "all", name), published(record, "", name), name)


def test_true_gradients_of_the_contrastive_loss(golden: GoldenSet, results: dict[str, list[Result]]) -> None:
    record, ranks = ranks_of(golden, results)
    assert ranks[0]["itc"]["losses"]["loss_itc"] == pytest.approx(record["rank0.itc_only.loss"].item(), rel=1e-4)
    prefix = "rank0.itc_only.grad."
    for name in (key.removeprefix(prefix) for key in record if key.startswith(prefix)):
        expected = published(record, "itc_only.", name)
        expect_gradient(averaged(ranks, "itc", name), expected, name)
        factor = 1 if name == "temp" else WORLD
        expect_gradient(averaged(ranks, "true_itc", name), expected * factor, name)
