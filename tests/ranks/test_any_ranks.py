"""Nothing that a step computes depends on how its rows are assigned: 1 to 16 ranks, one micro-batch or several.

Without dropout. Negative groups of 6 and 3 rows span ranks in most of these cases; some ranks hold no row that goes
through the fusion encoder, and one of the groups of texts shows one thing only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from cclm.data.batch import Batch
from cclm.data.config import rank_blocks
from cclm.data.counts import SamplesSeen
from cclm.data.options import Schedule
from cclm.distributed.collectives import collectives
from cclm.train.recorder import ledger_sums
from cclm.train.step import CrossViewTraining
from cclm.train.updates import merge_metrics, updates_of, with_features_of_all
from tests.ranks.harness import gradient_errors, on_ranks
from tests.tiny_run import recipe, with_regions, write_corpus, write_recipe
from tests.tiny_teacher import WIDTH, write_teacher
from tests.tiny_training import dataset_of, module_of, read

pytestmark = pytest.mark.slow
STEP = 5
"""Hard negatives, and fusion losses that reach the encoders."""


@dataclass(frozen=True)
class Found:
    """What one rank has after a step; the same on all."""

    metrics: dict[str, float]
    gradients: dict[str, Tensor]
    ledger: list[int]
    seen: dict[str, int]


class Bare:
    """As much of an engine as micro-batches need."""

    def __init__(self, module: CrossViewTraining) -> None:
        self.module = module

    def survey(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            known: dict[str, Tensor] = self.module(batch).metrics
        return known


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    settings = with_regions(recipe(write_corpus(folder), folder / "run"), folder)
    for name, group, matching in (("image_text", 6, 8), ("regions", 6, 24), ("text_pair", 3, 16)):
        sizes = {"batch_size": 24, "negative_group": group, "matching_rows": matching, "num_lanes": 6}
        settings["views"][name] |= sizes
    return str(write_recipe(folder / "recipe.yaml", settings))


def one_identity(batch: Batch) -> Batch:
    """Let the first group of sentences be about one thing: none of them is another's negative."""
    pairs = batch.views["text_pair"]
    changes = dict[str, Any]()
    for name in ("identity_S", "identity_P"):
        identity = getattr(pairs, name)
        row_S = pairs.row_R.repeat_interleave(len(identity) // len(pairs.row_R))
        changes[name] = torch.where(row_S < 3, 77, identity)
    return replace(batch, views={**batch.views, "text_pair": replace(pairs, **changes)})


def step(path: str, parts: int, schedule: Schedule, dtype: torch.dtype) -> Found:
    """Do a step with `parts` micro-batches on this rank."""
    torch.set_num_threads(1)
    ranks, config = collectives(), read(path)
    config = replace(config, data=replace(config.data, micro_batches=parts, schedule=schedule))
    for view in config.views.values():
        ranks.prepare(rank_blocks(view.batch_size // parts, view.negative_group, ranks.world_size))
    module = module_of(config, ranks).eval().to(dtype)
    dataset = dataset_of(config, ranks.rank, ranks.world_size)
    batch = dataset[STEP]
    metrics = []
    batches = [one_identity(part.normalised().each(as_type(dtype))) for part in batch.parts]
    for update in zip(*(updates_of(part, config.data.schedule) for part in batches), strict=True):
        found = []
        for part in with_features_of_all(Bare(module), update):  # type: ignore[arg-type]
            losses = module(part)
            losses.total.backward()
            found.append(losses.metrics)
        metrics.append({name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]})
    share = ranks.world_size * parts
    gradients = {
        name: ranks.sum(torch.zeros_like(value) if value.grad is None else value.grad) / share
        for name, value in module.named_parameters()
    }
    seen = SamplesSeen(dataset.counted)
    seen.add(batch.samples_seen)
    return Found(
        metrics={name: float(ranks.sum(value)) / ranks.world_size for name, value in merge_metrics(metrics).items()},
        gradients=gradients,
        ledger=[int(ranks.sum(torch.tensor(number))) for number in ledger_sums(batch).values()],
        seen=seen.gather(ranks.sum),
    )


def as_type(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda values: values.to(dtype) if values.is_floating_point() else values


@cache
def expected(path: str, schedule: Schedule, dtype: torch.dtype = torch.float64) -> Found:
    """One process that holds everything."""
    return step(path, 1, schedule, dtype)


def expect_same(found: Found, reference: Found, tolerance: float) -> None:
    assert found.metrics.keys() == reference.metrics.keys()
    for name, value in reference.metrics.items():
        assert found.metrics[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
    errors = gradient_errors(found.gradients, reference.gradients)
    assert max(errors.values()) < 10 * tolerance, max(errors, key=lambda name: errors[name])
    assert found.ledger == reference.ledger and found.seen == reference.seen


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_on_one_process(path: str, parts: int, schedule: Schedule) -> None:
    expect_same(step(path, parts, schedule, torch.float64), expected(path, schedule), 1e-6)


@pytest.mark.parametrize(
    ("world_size", "parts", "schedule"),
    [
        *((2, 1, "joint"), (3, 1, "joint"), (4, 1, "alternate"), (8, 1, "joint"), (16, 1, "joint")),
        *((2, 2, "joint"), (3, 2, "alternate"), (5, 2, "joint"), (4, 4, "joint")),
    ],
)
def test_ranks_and_micro_batches(path: str, world_size: int, parts: int, schedule: Schedule) -> None:
    for found in on_ranks(step, world_size, path, parts, schedule, torch.float64):
        expect_same(found, expected(path, schedule), 1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"views": {"text_pair": {"tlm": True}, "image_text": {"captions_per_image": 2}}},
        {"objectives": {"label_smoothing": 0.1, "contrastive_grad_scale": 0.25, "text_temperature_factor": 3.0}},
        {"objectives": {"fusion_warmup_steps": STEP + 1}},
    ],
)
def test_variants(path: str, tmp_path: Path, change: dict[str, dict[str, Any]]) -> None:
    settings = yaml.safe_load(Path(path).read_text())
    settings["model"]["text"]["max_positions"] = 16
    for block, changes in change.items():
        for key, value in changes.items():
            settings[block][key] = {**settings[block][key], **value} if isinstance(value, dict) else value
    own = str(write_recipe(tmp_path / "recipe.yaml", settings))
    for found in on_ranks(step, 3, own, 2, "joint", torch.float64):
        expect_same(found, expected(own, "joint"), 1e-6)


@pytest.mark.parametrize("form", [{"contrastive_hardness": 0.4}, {"contrastive": "sigmoid"}])
@pytest.mark.parametrize(("world_size", "parts"), [(1, 2), (2, 1), (3, 2)])
def test_forms_of_the_contrastive_loss(
    path: str, tmp_path: Path, world_size: int, parts: int, form: dict[str, Any]
) -> None:
    settings = yaml.safe_load(Path(path).read_text())
    settings["objectives"] = {**settings.get("objectives", {}), **form}
    if "contrastive" in form:
        settings["model"]["similarity_bias"] = -3.0
    own = str(write_recipe(tmp_path / "recipe.yaml", settings))
    reference = step(own, 1, "joint", torch.float64)
    if "contrastive" in form:
        assert reference.gradients["model.similarity_bias.value"].abs().item() > 1e-3
    if world_size == 1:
        expect_same(step(own, parts, "joint", torch.float64), reference, 1e-6)
        return
    for found in on_ranks(step, world_size, own, parts, "joint", torch.float64):
        expect_same(found, reference, 1e-6)


@pytest.mark.parametrize("form", [{}, {"contrastive_hardness": 0.4}, {"contrastive": "sigmoid"}])
def test_matryoshka_widths(path: str, tmp_path: Path, form: dict[str, Any]) -> None:
    """In micro-batches, and on ranks that hold different numbers of rows; the narrow losses reach the parameters."""
    settings = yaml.safe_load(Path(path).read_text())
    settings["objectives"] = {**settings.get("objectives", {}), **form}
    if "contrastive" in form:
        settings["model"]["similarity_bias"] = -3.0
    whole = step(str(write_recipe(tmp_path / "whole.yaml", settings)), 1, "joint", torch.float64)
    settings["objectives"] |= {"matryoshka_widths": [3, 8], "matryoshka_weight": 0.5}
    own = str(write_recipe(tmp_path / "recipe.yaml", settings))
    reference = step(own, 1, "joint", torch.float64)
    assert {name: reference.metrics[name] for name in whole.metrics if name != "loss"} == {
        name: value for name, value in whole.metrics.items() if name != "loss"
    }
    narrow = [value for name, value in reference.metrics.items() if name.endswith(("tc_3", "tc_8"))]
    assert len(narrow) == 6
    assert reference.metrics["loss"] == pytest.approx(whole.metrics["loss"] + 0.5 * sum(narrow), rel=1e-9)
    assert max(gradient_errors(reference.gradients, whole.gradients).values()) > 1e-2
    expect_same(step(own, 2, "joint", torch.float64), reference, 1e-6)
    for found in on_ranks(step, 3, own, 2, "joint", torch.float64):
        expect_same(found, reference, 1e-6)


@pytest.mark.parametrize(
    ("world_size", "parts", "forms"), [(2, 1, ("relational", "cosine")), (4, 2, ("cosine", "relational"))]
)
def test_features_of_a_teacher(path: str, tmp_path: Path, world_size: int, parts: int, forms: tuple[str, str]) -> None:
    """Of images, captions and both sides of pairs, some of which it does not know; one form through a linear map."""
    settings, corpus = yaml.safe_load(Path(path).read_text()), Path(path).parent
    folder = str(write_teacher(tmp_path / "teacher", [corpus / "images", corpus / "pairs"]))
    for view, form in zip(("image_text", "text_pair"), forms, strict=True):
        settings["views"][view]["teacher"] = {"path": folder, "width": WIDTH, "form": form, "temperature": 0.2}
    settings["data"]["cache"] = {"folder": str(tmp_path / "cache")}
    own = str(write_recipe(tmp_path / "recipe.yaml", settings))
    reference = step(own, 1, "joint", torch.float64)
    sides = (
        "image_text/teacher_image",
        "image_text/teacher_text",
        "text_pair/teacher_first",
        "text_pair/teacher_second",
    )
    assert all(reference.metrics[side] > 0.1 and 0.5 < reference.metrics[f"{side}_known"] < 1 for side in sides)
    mapped = "text_pair" if forms[1] == "cosine" else "image_text"
    assert reference.gradients[f"teacher_maps.{mapped}.weight"].any()
    for found in on_ranks(step, world_size, own, parts, "joint", torch.float64):
        expect_same(found, reference, 1e-6)


def step_in_blocks(path: str, parts: int) -> Found:
    """The same, where groups of more than four rows are large."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("data.collate", "train.sharing"):
            patch.setattr(f"cclm.{module}.LARGEST_GROUP_WITH_NOISE", 4)
        patch.setattr("cclm.ops.hard_negatives.COLUMNS_PER_BLOCK", 5)
        return step(path, parts, "joint", torch.float64)


@pytest.mark.parametrize(("group", "world_size", "parts"), [(0, 3, 1), (6, 2, 2)])
def test_negatives_of_large_groups_and_of_the_whole_batch(
    path: str, tmp_path: Path, group: int, world_size: int, parts: int
) -> None:
    settings = yaml.safe_load(Path(path).read_text())
    for view in settings["views"].values():
        view["negative_group"] = group
    own = str(write_recipe(tmp_path / "recipe.yaml", settings))
    assert [view.negative_group for view in read(own).views.values()] == [group or 24] * 3
    reference = step_in_blocks(own, 1)
    assert reference.metrics != step(own, 1, "joint", torch.float64).metrics, "other random numbers"
    for found in on_ranks(step_in_blocks, world_size, own, parts):
        expect_same(found, reference, 1e-6)


def test_float32(path: str) -> None:
    """As it trains: losses differ by rounding only."""
    for found in on_ranks(step, 3, path, 2, "joint", torch.float32):
        expect_same(found, expected(path, "joint"), 2e-6)


def calls(path: str) -> tuple[Counter[str], Counter[str]]:
    """Collectives of a joint step, forward and backward."""
    torch.set_num_threads(1)
    ranks, config, counts = collectives(), read(path), (Counter[str](), Counter[str]())
    for view in config.views.values():
        ranks.prepare(rank_blocks(view.batch_size, view.negative_group, ranks.world_size))
    module, batch = module_of(config, ranks), dataset_of(config, ranks.rank, ranks.world_size)[STEP]
    now = counts[0]
    for name in ("all_gather", "all_reduce", "all_to_all_single", "all_gather_object", "broadcast"):
        original = getattr(torch.distributed, name)

        def counted(*arguments: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            now[name] += 1
            return original(*arguments, **options)

        setattr(torch.distributed, name, counted)
    losses = module(batch)
    now = counts[1]
    losses.total.backward()
    return counts


def test_a_step_needs_few_collectives(path: str) -> None:
    """Two, where ranks hold whole groups; besides, states and masks of both sides where they share them, and back."""
    for forward, backward in on_ranks(calls, 2, path):
        assert forward == {"all_gather": 2} and not backward
    for forward, backward in on_ranks(calls, 3, path):
        assert forward == {"all_gather": 2 + 3 * 4} and backward == {"all_to_all_single": 3 * 2}


def test_rows_without_a_negative_do_not_count(path: str) -> None:
    """One group of sentences is about one thing, and two of its rows are matched."""
    metrics = expected(path, "joint").metrics
    assert metrics["text_pair/ttm_rows"] == pytest.approx(14 / 16) and metrics["image_text/itm_rows"] == 1
