"""Regions, two captions and TLM through the training step, each against the same thing by the book."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.nn import functional

from cclm.data.batch import Batch, ViewBatch
from cclm.distributed.collectives import Collectives
from cclm.errors import ConfigError
from cclm.objectives.boxes import box_losses
from cclm.train.step import CrossViewTraining
from cclm.views.image_text.view import ImageTextBatch
from cclm.views.regions.view import RegionBatch
from tests.left_to_long import left_to_slow
from tests.tiny_run import recipe, with_regions, write_corpus
from tests.tiny_training import as_config, dataset_of, module_of

VIEWS = ("image_text", "regions", "text_pair")
Made = tuple[CrossViewTraining, Batch]
Make = Callable[..., Made]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def make(corpus: Path, tmp_path: Path) -> Make:
    """The tiny run with regions: `views` to keep, and changes of their settings."""

    def made(*views: str, **changes: dict[str, Any]) -> Made:
        settings = with_regions(recipe(corpus, tmp_path / "run"), corpus)
        settings["model"]["text"]["max_positions"] = 16
        settings["views"] = {name: settings["views"][name] | changes.get(name, {}) for name in views or VIEWS}
        config = as_config(settings)
        return module_of(config).eval(), dataset_of(config)[3]

    return made


def only(batch: Batch, name: str, view: ViewBatch | None = None) -> Batch:
    """One view of a batch, or another in its place."""
    return replace(batch, views={name: batch.views[name] if view is None else view})


def calls(module: CrossViewTraining, batch: Batch) -> dict[str, int]:
    counts = dict.fromkeys((name for name, _ in module.model.named_children()), 0)

    def hook(name: str) -> Any:
        def count(*_: object) -> None:
            counts[name] += 1

        return count

    handles = [child.register_forward_hook(hook(name)) for name, child in module.model.named_children()]
    module(batch)
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"text_pair": {"tlm": True}, "image_text": {"captions_per_image": 2}}])
def test_every_module_runs_once_with_all_views(make: Make, changes: dict[str, dict[str, Any]]) -> None:
    module, batch = make(**changes)
    assert set(calls(module, batch).values()) == {1}
    module(batch).total.backward()
    unused = [name for name, value in module.named_parameters() if value.grad is None or not value.grad.any()]
    assert unused == []


@pytest.mark.parametrize("tlm", [True, False])
def test_views_do_not_depend_on_each_other(make: Make, tlm: bool) -> None:
    module, batch = make(text_pair={"tlm": tlm})
    together = module(batch).metrics
    alone: dict[str, torch.Tensor] = {}
    for view in VIEWS:
        metrics = module(only(batch, view)).metrics
        alone.update({name: value for name, value in metrics.items() if name.startswith(view)})
    assert {"regions/itc", "regions/itm", "regions/mlm", "regions/box", "regions/giou"} < set(alone)
    assert ("text_pair/ttm" in alone) == (not tlm)
    assert alone.keys() == together.keys() - {"loss", "temperature"}
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_regions_by_the_book(make: Make) -> None:
    module, batch = make("regions")
    regions, model = cast(RegionBatch, batch.normalised().views["regions"]), module.model
    image_BND = model.encode_images(regions.images_BCHW)
    region_RND = model.pool_regions(image_BND, regions.image_of_R, regions.mask_RN)
    states = model.encode_texts(regions.text.ids_BL, regions.text.mask_BL)
    row_F = regions.matching_row_F
    fused = model.fuse(states[row_F], regions.text.mask_BL[row_F], image_BND[regions.image_of_R[row_F]])
    boxes = model.locate_boxes(fused, regions.text.mask_BL[row_F])
    (distance_F, overlap_F), part_F = box_losses(boxes, regions.box_R4[row_F]), ~regions.whole_R[row_F]
    assert 0 < part_F.sum() < len(row_F), "some rows are captions of whole images"
    metrics = module(batch).metrics
    torch.testing.assert_close(metrics["regions/box"], distance_F[part_F].mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics["regions/giou"], overlap_F[part_F].mean(), rtol=1e-5, atol=1e-6)

    masked = regions.masked
    masked_states = model.encode_texts(masked.tokens.ids_BL, masked.tokens.mask_BL)
    fused = model.fuse(masked_states, masked.tokens.mask_BL, region_RND[row_F], regions.mask_RN[row_F])
    torch.testing.assert_close(metrics["regions/mlm"], plain_mlm(module, fused, masked), rtol=1e-5, atol=1e-5)

    features = model.project_images(region_RND), model.project_texts(states, regions.text.mask_BL)
    similarity = features[0] @ features[1].T / model.temperature()
    same = (regions.identity_R[:, None] == regions.identity_R[None]).float()
    target = same / same.sum(1, keepdim=True)
    itc = -0.5 * ((target * similarity.log_softmax(1)).sum(1) + (target * similarity.T.log_softmax(1)).sum(1)).mean()
    torch.testing.assert_close(metrics["regions/itc"], itc, rtol=1e-5, atol=1e-5)


def plain_mlm(module: CrossViewTraining, fused: torch.Tensor, masked: Any) -> torch.Tensor:
    hidden = module.model.masked_lm_states(fused.flatten(0, 1)[masked.slot_T])
    return functional.cross_entropy(module.model.decode_with(hidden, functional.linear), masked.label_T)


@pytest.mark.slow
def test_boxes_are_learned(make: Make) -> None:
    module, batch = make("regions")
    regions = replace(batch, step=9)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    first = module(regions).metrics
    for _ in range(60):
        optimizer.zero_grad()
        module(regions).total.backward()
        optimizer.step()
    last = module(regions).metrics
    assert last["regions/box"] < 0.7 * first["regions/box"]
    assert last["regions/giou"] < 0.9 * first["regions/giou"]


def test_a_mask_for_another_grid_is_refused(make: Make) -> None:
    module, batch = make("regions")
    regions = cast(RegionBatch, batch.views["regions"])
    with pytest.raises(ConfigError, match=r"expected masks of 1 \+ 16 image tokens, got 1 \+ 9\. Set patch_grid"):
        module(only(batch, "regions", replace(regions, mask_RN=regions.mask_RN[:, :10])))


def test_two_captions_by_the_book(make: Make) -> None:
    module, batch = make("image_text", image_text={"captions_per_image": 2})
    images, model = cast(ImageTextBatch, batch.views["image_text"]), module.model
    assert images.second_text is not None
    assert not torch.equal(images.text.ids_BL, images.second_text.ids_BL)
    metrics = module(batch).metrics
    swapped = module(only(batch, "image_text", replace(images, text=images.second_text, second_text=None))).metrics
    first = module(only(batch, "image_text", replace(images, second_text=None))).metrics
    torch.testing.assert_close(metrics["image_text/itc"], (first["image_text/itc"] + swapped["image_text/itc"]) / 2)
    for name in ("image_text/itm", "image_text/mlm"):
        torch.testing.assert_close(metrics[name], first[name], msg=name)
    features = [
        model.project_texts(model.encode_texts(text.ids_BL, text.mask_BL), text.mask_BL)
        for text in (images.text, images.second_text)
    ]
    similarity = features[0] @ features[1].T / model.temperature()
    same = (images.identity_R[:, None] == images.identity_R[None]).float()
    target = same / same.sum(1, keepdim=True)
    ttc = -0.5 * ((target * similarity.log_softmax(1)).sum(1) + (target * similarity.T.log_softmax(1)).sum(1)).mean()
    torch.testing.assert_close(metrics["image_text/ttc"], ttc, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        metrics["loss"], sum(metrics[f"image_text/{name}"] for name in ("itc", "ttc", "itm", "mlm"))
    )


def test_tlm_by_the_book(make: Make) -> None:
    module, batch = make("text_pair", text_pair={"tlm": True})
    pairs, model = batch.views["text_pair"], module.model
    metrics = module(batch).metrics
    assert {name for name in metrics if "/" in name} == {"text_pair/ttc", "text_pair/mlm", "text_pair/mlm_accuracy"}
    tokens = pairs.masked.tokens
    fused = model.fuse(model.encode_texts(tokens.ids_BL, tokens.mask_BL), tokens.mask_BL, None)
    torch.testing.assert_close(metrics["text_pair/mlm"], plain_mlm(module, fused, pairs.masked), rtol=1e-5, atol=1e-5)
    counts = calls(module, batch)
    assert counts["fusion_encoder"] == 1 and counts["matching_head"] == 0


def test_published_means_are_those_of_each_rank(make: Make) -> None:
    """One process holds one rank's share: both kinds of means are the same there, whatever the other ranks have."""
    module, batch = make()

    class WithNobody(Collectives):
        """A second rank with no rows at all."""

        def gather_packed(self, tensors: Sequence[torch.Tensor], rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
            return list(tensors)

    alone = module(batch).metrics
    halves = {
        means: CrossViewTraining(
            module.model,
            module.views,
            replace(module.objectives, means=means),
            WithNobody(world_size=2),
        )(batch).metrics
        for means in ("global", "per_rank")
    }
    torch.testing.assert_close(halves["per_rank"]["image_text/mlm"], alone["image_text/mlm"])
    torch.testing.assert_close(halves["global"]["image_text/mlm"], 2 * alone["image_text/mlm"])
    for means in halves.values():  # as published, where every rank computed the contrastive loss of all ranks
        torch.testing.assert_close(means["image_text/itc"], 2 * alone["image_text/itc"])


def test_a_text_without_memory_reads_nothing(make: Make) -> None:
    """Rows that skip the cross-attention equal a call without memory, whatever stands in their memory."""
    module, _ = make("text_pair")
    model = module.model
    torch.manual_seed(1)
    query, memory = torch.randn(4, 5, 16), torch.randn(4, 3, 16)
    mask = torch.arange(5) < torch.tensor([[5], [3], [4], [2]])
    has_memory = torch.tensor([True, False, True, False])
    mixed = model.fuse(query, mask, memory, torch.ones(4, 3, dtype=torch.bool), has_memory)
    torch.testing.assert_close(mixed[has_memory], model.fuse(query, mask, memory)[has_memory])
    torch.testing.assert_close(mixed[~has_memory], model.fuse(query, mask, None)[~has_memory])


def all_states(fuse: Callable[..., torch.Tensor], seen: list[torch.Tensor | None]) -> Callable[..., torch.Tensor]:
    """The slow twin of `fuse(…, wanted_W=…)`: every state is computed, then some are picked."""

    def call(*arguments: Any, wanted_W: torch.Tensor | None = None, **named: Any) -> torch.Tensor:
        seen.append(wanted_W)
        fused = fuse(*arguments, **named)
        return fused if wanted_W is None else fused.flatten(0, 1)[wanted_W]

    return call


@pytest.mark.parametrize("token_layout", left_to_slow(["grouped", "packed", "padded"], "packed"))
@pytest.mark.parametrize(("pooling", "tlm"), [("cls", False), ("cls", True), ("mean", False)])
def test_losses_and_gradients_are_those_of_a_last_layer_of_all_tokens(
    make: Make, monkeypatch: pytest.MonkeyPatch, token_layout: str, pooling: str, tlm: bool
) -> None:
    module, batch = make(text_pair={"tlm": tlm})
    model, found, seen = module.model, [], list[torch.Tensor | None]()
    monkeypatch.setattr(model.fusion_encoder, "token_layout", token_layout)
    monkeypatch.setattr(model, "pooling", ("mean", pooling))
    for fuse in (model.fuse, all_states(model.fuse, seen)):
        monkeypatch.setattr(model, "fuse", fuse)
        module.zero_grad()
        losses = module(batch)
        losses.total.backward()
        gradients = {f"gradient of {name}": value.grad for name, value in module.named_parameters()}
        found.append({**losses.metrics, **gradients})
    assert [wanted is None for wanted in seen] == [pooling == "mean"], "means read every state"
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6, msg=name)
