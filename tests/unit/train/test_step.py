"""The step's own arithmetic: rows, slots, groups and means (the whole is compared in tests/parity)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from cclm.data.batch import Batch
from cclm.distributed.collectives import SINGLE
from cclm.model.kernels import PLAIN, Kernels, use_kernels
from cclm.objectives.options import ObjectiveConfig
from cclm.ops.contrastive import contrastive_loss
from cclm.ops.linear_cross_entropy import linear_cross_entropy
from cclm.train.step import CrossViewTraining
from cclm.views.images import ImageBatch
from tests.tiny_run import recipe, with_regions, write_corpus
from tests.tiny_training import as_config, dataset_of, module_of

Training = tuple[CrossViewTraining, Batch]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Three views in a joint step."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    config = as_config(with_regions(recipe(folder, folder / "run"), folder))
    return module_of(config).eval(), dataset_of(config)[0]


class Calls:
    """Counts how often each direct child of a module runs."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.counts: dict[str, int] = {}
        self.handles = [child.register_forward_hook(self._count(name)) for name, child in module.named_children()]

    def _count(self, name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self.counts[name] = self.counts.get(name, 0) + 1

        return hook


def test_every_module_runs_exactly_once(training: Training) -> None:
    module, batch = training
    calls = Calls(module.model)
    module(batch)
    for handle in calls.handles:
        handle.remove()
    assert calls.counts == dict.fromkeys((name for name, _ in module.model.named_children()), 1)


def test_losses_of_one_view_do_not_depend_on_the_others(training: Training) -> None:
    module, batch = training
    both = module(batch).metrics
    alone = {name: module(replace(batch, views={name: view})).metrics for name, view in batch.views.items()}
    assert {*both} == {name for metrics in alone.values() for name in metrics}
    for name, value in both.items():
        if name not in ("loss", "temperature"):
            torch.testing.assert_close(alone[name.partition("/")[0]][name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both["loss"], torch.stack([metrics["loss"] for metrics in alone.values()]).sum())


LOSSES = {
    "itc": ("image_text/itc", "regions/itc"),
    "itm": ("image_text/itm", "regions/itm"),
    "ttc": ("text_pair/ttc",),
    "ttm": ("text_pair/ttm",),
    "mlm": ("image_text/mlm", "regions/mlm", "text_pair/mlm"),
    "box": ("regions/box",),
    "giou": ("regions/giou",),
}
"""Which losses a weight belongs to."""


def test_every_weight_moves_its_losses_in_the_total(training: Training) -> None:
    """A weight that is dropped, or taken for another, fails: all are different, and none is the default."""
    module, batch = training
    weights = {name: 1.3 + 0.3 * number for number, name in enumerate(LOSSES)}
    given: dict[str, Any] = {f"{name}_weight": weight for name, weight in weights.items()}
    options = ObjectiveConfig(**given)
    losses = CrossViewTraining(module.model, module.views, options, SINGLE)(batch)
    metrics = losses.metrics
    expected = sum(weights[name] * metrics[loss] for name, own in LOSSES.items() for loss in own)
    torch.testing.assert_close(losses.total.detach(), expected)
    counted = {loss for own in LOSSES.values() for loss in own}
    assert set(metrics) == counted | {"loss", "temperature"} | {
        *(f"{view}/mlm_accuracy" for view in batch.views),
        *(f"{loss}_{what}" for loss in (*LOSSES["itm"], *LOSSES["ttm"]) for what in ("accuracy", "rows")),
    }
    assert all(0 <= value <= 1 for name, value in metrics.items() if name.endswith("_accuracy"))


def test_a_run_computes_with_its_kernels(training: Training) -> None:
    """Those of the network and that of the loss, to the same numbers."""
    module, batch = training
    calls = Counter[str]()

    def counted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return kernel(*arguments, **options)

        return call

    expected = module(batch).metrics
    network = Kernels(attention=counted("attention", PLAIN.attention), layer_norm=counted("norm", PLAIN.layer_norm))
    fused = counted("masked lm", linear_cross_entropy), counted("contrastive", contrastive_loss)
    try:
        found = CrossViewTraining(module.model, module.views, module.objectives, SINGLE, network, *fused)(batch).metrics
    finally:
        use_kernels(module.model, PLAIN)
    assert calls["attention"] > 1 and calls["norm"] > 1
    assert calls["masked lm"] == 1, "one gradient as large as the vocabulary"
    assert calls["contrastive"] == len(batch.views)
    assert {*found} == {*expected}
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_masked_lm_predicts_the_masked_slots_given_the_other_view(training: Training) -> None:
    """The same loss by the book: text encoder, fusion with the row's own image, full logits, plain cross-entropy."""
    module, batch = training
    images = cast(ImageBatch, batch.views["image_text"])
    model = module.model
    masked = images.masked
    states = model.encode_texts(masked.tokens.ids_BL, masked.tokens.mask_BL)
    memory = model.encode_images(images.images_BCHW)[images.matching_row_F]
    fused = model.fuse(states, masked.tokens.mask_BL, memory)
    hidden = model.masked_lm_states(fused.flatten(0, 1)[masked.slot_T])
    logits = model.decode_with(hidden, torch.nn.functional.linear)
    expected = torch.nn.functional.cross_entropy(logits, masked.label_T)
    torch.testing.assert_close(module(batch).metrics["image_text/mlm"], expected, rtol=1e-5, atol=1e-5)


def test_during_the_warm_up_fusion_losses_do_not_reach_the_encoders(training: Training) -> None:
    module, batch = training
    options = replace(module.objectives, itc_weight=0.0, ttc_weight=0.0, fusion_warmup_steps=1)
    warming = CrossViewTraining(module.model, module.views, options, SINGLE)
    reached: dict[int, set[str]] = {}
    for step in (0, 1):
        module.model.zero_grad()
        warming(replace(batch, step=step)).total.backward()
        reached[step] = {name for name, p in module.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any("vision" in name or "text_encoder.stack" in name for name in reached[0])
    assert any("fusion_encoder" in name for name in reached[0])
    assert any("vision" in name for name in reached[1])
    module.model.zero_grad()


def test_an_affine_stem_is_calibrated_alike_on_every_rank(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    settings = recipe(tmp_path, tmp_path / "run")
    settings["model"]["vision"]["stem_norm"] = "affine"
    config = as_config(settings)
    first, second = (module_of(config).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    scales = [value for name, value in first.items() if "stem" in name and value.ndim == 1 and name.endswith("weight")]
    assert scales
    assert all((scale != 1).any() for scale in scales)


def test_patches_are_drawn_by_step_sample_and_seed_and_by_nothing_else(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = training
    seen: list[torch.Tensor] = []
    encode = module.model.encode_images
    monkeypatch.setattr(module.model, "keep_patches", 0.5)
    monkeypatch.setattr(module.model, "encode_images", lambda images, key_B: seen.append(key_B) or encode(images))
    for seed, one in ((0, batch), (0, batch), (1, batch), (0, replace(batch, step=batch.step + 1))):
        CrossViewTraining(module.model, module.views, module.objectives, SINGLE, seed=seed)(one)
    first, again, other_seed, later = seen
    assert torch.equal(first, again)
    assert not (first == other_seed).any() and not (first == later).any()
    ledger_S = torch.cat([view.ledger_S for view in batch.views.values() if view.images is not None])
    assert torch.equal(first ^ first[0], ledger_S ^ ledger_S[0]), "the rest is the sample's"
