"""The step's own arithmetic: rows, slots, groups and means (the whole is compared in tests/parity)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cclm.data.batch import Batch
from cclm.data.loader import StepDataset
from cclm.data.tokens import load_tokenizer
from cclm.distributed.collectives import SINGLE
from cclm.recipe.read import read_recipe
from cclm.train.rows import negatives
from cclm.train.step import CrossViewTraining
from pretrain.build import build_module
from tests.tiny_run import recipe, write_corpus, write_recipe


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[CrossViewTraining, Batch]:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    config = read_recipe(["--recipe", str(write_recipe(folder / "r.yaml", recipe(folder, folder / "run")))])
    tokenizer = load_tokenizer(config.data.tokenizer)
    module = build_module(config, tokenizer, SINGLE).eval()
    return module, StepDataset(config.data, tokenizer, seed=7)[0]


class Calls:
    """Counts how often each direct child of a module runs."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.counts: dict[str, int] = {}
        self.handles = [child.register_forward_hook(self._count(name)) for name, child in module.named_children()]

    def _count(self, name: str):  # type: ignore[no-untyped-def]
        def hook(*_: object) -> None:
            self.counts[name] = self.counts.get(name, 0) + 1

        return hook


def test_every_module_runs_exactly_once(training: tuple[CrossViewTraining, Batch]) -> None:
    module, batch = training
    calls = Calls(module.model)
    module(batch)
    for handle in calls.handles:
        handle.remove()
    assert calls.counts == dict.fromkeys((name for name, _ in module.model.named_children()), 1)


def test_losses_of_one_view_do_not_depend_on_the_other(training: tuple[CrossViewTraining, Batch]) -> None:
    module, batch = training
    both = module(batch).metrics
    images = module(Batch(step=0, image_text=batch.image_text, text_pair=None)).metrics
    pairs = module(Batch(step=0, image_text=None, text_pair=batch.text_pair)).metrics
    assert {*images, *pairs} == {*both}
    for name, value in both.items():
        if name.startswith("image_text/"):
            torch.testing.assert_close(images[name], value, rtol=1e-5, atol=1e-6)
        if name.startswith("text_pair/"):
            torch.testing.assert_close(pairs[name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both["loss"], images["loss"] + pairs["loss"])


def test_total_is_the_weighted_sum(training: tuple[CrossViewTraining, Batch]) -> None:
    module, batch = training
    losses = module(batch)
    names = ("image_text/itc", "image_text/itm", "image_text/mlm", "text_pair/ttc", "text_pair/ttm", "text_pair/mlm")
    torch.testing.assert_close(losses.total.detach(), sum((losses.metrics[name] for name in names), torch.zeros(())))
    assert all(0 <= losses.metrics[f"{view}/mlm_accuracy"] <= 1 for view in ("image_text", "text_pair"))


def test_masked_lm_predicts_the_masked_slots_given_the_other_view(training: tuple[CrossViewTraining, Batch]) -> None:
    """The same loss by the book: text encoder, fusion with the row's own image, full logits, plain cross-entropy."""
    module, batch = training
    images = batch.image_text
    assert images is not None
    model = module.model
    masked = images.masked
    states = model.encode_texts(masked.tokens.ids_BL, masked.tokens.mask_BL)
    memory = model.encode_images(images.images_BCHW)[images.matching_row_F]
    fused = model.fuse(states, masked.tokens.mask_BL, memory)
    hidden = model.masked_lm_states(fused.flatten(0, 1)[masked.slot_T])
    logits = model.decode_with(hidden, torch.nn.functional.linear)
    expected = torch.nn.functional.cross_entropy(logits, masked.label_T)
    torch.testing.assert_close(module(batch).metrics["image_text/mlm"], expected, rtol=1e-5, atol=1e-5)


def test_negatives_stay_in_their_group_and_differ_in_identity() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(12, 4, generator=generator), torch.randn(12, 4, generator=generator)
    identity_B = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9])
    row_F = torch.tensor([0, 1, 6, 7])
    noise: Tensor = torch.zeros(4, 6)
    drawn_second, drawn_first = negatives(first, second, identity_B, row_F, (noise, noise), torch.ones(1), 1.0)
    for drawn in (drawn_second, drawn_first):
        assert torch.equal(drawn // 6, row_F // 6)
        assert (identity_B[drawn] != identity_B[row_F]).all()
    similarity = first[row_F] @ second.T
    similarity[:2, 6:] = similarity[2:, :6] = -torch.inf
    similarity[identity_B[row_F][:, None] == identity_B[None]] = -torch.inf
    assert torch.equal(drawn_second, similarity.argmax(1)), "without noise the hardest candidate is drawn"


def test_during_the_warm_up_fusion_losses_do_not_reach_the_encoders(training: tuple[CrossViewTraining, Batch]) -> None:
    module, batch = training
    options = replace(module.objectives, itc_weight=0.0, ttc_weight=0.0, fusion_warmup_steps=1)
    warming = CrossViewTraining(module.model, options, SINGLE)
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
    config = read_recipe(["--recipe", str(write_recipe(tmp_path / "r.yaml", settings))])
    tokenizer = load_tokenizer(config.data.tokenizer)
    first, second = (build_module(config, tokenizer, SINGLE).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    scales = [value for name, value in first.items() if "stem" in name and value.ndim == 1 and name.endswith("weight")]
    assert scales
    assert all((scale != 1).any() for scale in scales)
