"""Retrieval trained from annotation files: every caption once an epoch, the same batch on any ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.data.ledger import identity_hash
from cclm.errors import DataError
from cclm.objectives.contrastive import contrastive
from cclm.recipe.epochs import steps_per_epoch
from cclm.views.annotated.options import RetrieveConfig
from cclm.views.images import ImageBatch
from finetune.stand_in import write_rows
from tests.tiny_finetune import alone, stand_in, write_tokenizer
from tests.tiny_training import as_config, dataset_of, module_of

HEADS = {"num_classes": 0, "pretraining_heads": True, "projection_width": 8, "matching_width": 16}


def config_of(tmp_path: Path, **view: Any) -> RunConfig:
    """Six images with two captions each."""
    write_tokenizer(tmp_path)
    data = stand_in("xflickrco", tmp_path / "data")
    settings = alone(data, tmp_path)
    things = [path.stem for path in sorted((data / "images").iterdir())]
    rows = [{"img_path": f"{name}.png", "sentences": [name.split("_")[0], "very old"]} for name in things]
    write_rows(data / "two.jsonl", rows)
    own = {"sources": {"en": {"path": "two.jsonl"}}, "folder": str(data), "batch_size": 6, "negative_group": 6}
    own |= {"matching_rows": 6, "max_tokens": 8, "transform": {"method": "affine", "size": 16}}
    return as_config({**settings, "views": {"retrieve": {**own, **view}}, "model": {**settings["model"], **HEADS}})


def part(batch: Batch) -> ImageBatch:
    found = batch.views["retrieve"]
    assert isinstance(found, ImageBatch)
    return found


def test_an_epoch_shows_every_caption_once(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert steps_per_epoch(config) == 2
    shown = [part(dataset_of(config)[step]) for step in range(2)]
    identities = Counter(number for batch in shown for number in batch.identity_R.tolist())
    assert set(identities.values()) == {2}, "both captions of each image"
    assert identity_hash("red_box") in identities
    ledgers = [number for batch in shown for number in batch.ledger_S.tolist()]
    assert len(set(ledgers)) == len(ledgers), "captions of one image are told apart"


@pytest.mark.parametrize("groups", [1, 2])
def test_the_batch_is_the_same_on_any_number_of_ranks(tmp_path: Path, groups: int) -> None:
    config = config_of(tmp_path, negative_group=6 // groups, matching_rows=2)
    whole = part(dataset_of(config)[1])
    shares = [part(dataset_of(config, rank, 3)[1]) for rank in range(3)]
    for name in ("identity_R", "ledger_S", "row_R", "images_BCHW"):
        assert torch.cat([getattr(share, name) for share in shares]).equal(getattr(whole, name)), name
    counted = [row for share in shares for row in share.row_R[share.matching_row_F[share.counted_F > 0]].tolist()]
    assert counted == whole.row_R[whole.matching_row_F].tolist() == [0, 1] if groups == 1 else [0, 3]
    noise = torch.cat([share.noise_first_FG[share.counted_F > 0] for share in shares])
    assert noise.equal(whole.noise_first_FG)


def test_captions_of_one_image_are_no_rivals_in_its_losses(tmp_path: Path) -> None:
    config = config_of(tmp_path, batch_size=12, negative_group=12, matching_rows=12)
    module, batch = module_of(config).eval(), dataset_of(config)[0]
    losses, own = module(batch), part(batch)
    expected = {"loss", "temperature", *(f"retrieve/{name}" for name in ("itc", "itm", "itm_accuracy", "itm_rows"))}
    assert set(losses.metrics) == expected
    model: Any = module.model
    images = model.get_image_features(own.normalised().images)
    texts = model.get_text_features(own.text.ids_BL, own.text.mask_BL)
    same = own.identity_R
    direct = contrastive(images, texts, same, same, model.temperature())
    assert losses.metrics["retrieve/itc"] == pytest.approx(direct.item() / 12, rel=1e-5)
    other = contrastive(images, texts, torch.arange(12), torch.arange(12), model.temperature())
    assert direct.item() != pytest.approx(other.item(), rel=1e-3), "identities count"


def test_settings_that_cannot_work_are_named(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    view = config.views["retrieve"]
    assert isinstance(view, RetrieveConfig) and not list(view.validation_errors())
    (error,) = replace(view, negative_group=4).validation_errors()
    assert error.startswith("batch_size 6")
    (error,) = view.model_errors(replace(config.model, pretraining_heads=False), 1)
    assert "pretraining_heads" in error
    with pytest.raises(DataError) as caught:
        marvl = stand_in("marvl", tmp_path / "marvl")
        dataset_of(config_of(tmp_path, folder=str(marvl), sources={"en": {"path": "nlvr2/annotations/train.jsonl"}}))
    assert caught.value.reason == "line_broken"
