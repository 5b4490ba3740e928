"""Batches of the image-text view: the same for any number of ranks, and with or without a memory of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from cclm.data.tokens import TextTokenizer
from cclm.views.image_text.options import ImageTextConfig
from cclm.views.image_text.view import ImageTextBatch, ImageTextSource
from tests.left_to_long import left_to_slow
from tests.tiny_batches import hidden, texts
from tests.tiny_views import Views, change, open_dataset


def batch_of(views: Views, step: int, rank: int = 0, world_size: int = 1) -> ImageTextBatch:
    return cast(ImageTextBatch, open_dataset(views, rank=rank, world_size=world_size)[step].views["image_text"])


def content(batch: ImageTextBatch, first_row: int = 0) -> dict[str, list[Any]]:
    """All that a batch holds, without the padding."""
    return {
        "images": batch.images_BCHW.flatten(1).tolist(),
        "texts": texts(batch.text),
        "second texts": [] if batch.second_text is None else texts(batch.second_text),
        "identity": batch.identity_R.tolist(),
        "rows": (batch.matching_row_F + first_row).tolist(),
        "noise": batch.noise_second_FG.tolist(),
        "noise_first": batch.noise_first_FG.tolist(),
        "masked": hidden(batch.masked),
        "ledger": batch.ledger_S.tolist(),
    }


@pytest.mark.parametrize("captions", [1, 2])
@pytest.mark.parametrize("world_size", left_to_slow([2, 4], 4))
def test_the_ranks_shares_make_the_same_global_batch(views: Views, world_size: int, captions: int) -> None:
    views = change(views, "image_text", captions_per_image=captions)
    for step in (0, 7):
        shares = [
            content(batch_of(views, step, rank, world_size), rank * 16 // world_size) for rank in range(world_size)
        ]
        joined = {name: [item for share in shares for item in share[name]] for name in shares[0]}
        assert joined == content(batch_of(views, step))
        assert len(joined["second texts"]) == 16 * (captions - 1)


def test_the_parts_fit_together(views: Views) -> None:
    batch = batch_of(views, 2)
    assert batch.images_BCHW.shape == (16, 3, 8, 8) and batch.images_BCHW.dtype == torch.float32
    assert batch.matching_row_F.tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert batch.noise_first_FG.shape == batch.noise_second_FG.shape == (8, 4)
    assert not torch.equal(batch.noise_first_FG, batch.noise_second_FG)
    plain = texts(batch.text)
    for (seen, slots), row in zip(hidden(batch.masked), batch.matching_row_F, strict=True):
        original, columns = plain[row], {column for column, _ in slots}
        assert slots and all(original[column] == label for column, label in slots)
        assert all(seen[at] == original[at] for at in range(len(original)) if at not in columns)


def test_captions_of_one_language_only(views: Views, tokenizer: TextTokenizer) -> None:
    german = batch_of(change(views, "image_text", languages=("de",)), 0)
    assert {row[1] for row in texts(german.text)} == set(tokenizer.encode(["ab"], 8)[0][1:2])


@pytest.mark.parametrize("cache_bytes", [0, 3000, 1 << 20])
def test_remembered_images_change_no_sample(views: Views, tokenizer: TextTokenizer, cache_bytes: int) -> None:
    config = cast(ImageTextConfig, views["image_text"])

    def source(size: int) -> ImageTextSource:
        view = replace(config, transform=replace(config.transform, cache_bytes=size))
        return ImageTextSource("image_text", view, tokenizer, 1)

    remembering, plain = source(cache_bytes), source(0)
    walked = [remembering.sample(step, index)[1] for step in range(12) for index in (0, 9)]
    straight = [plain.sample(step, index)[1] for step in (10, 11) for index in (0, 9)]
    for first, second in zip(walked[-4:], straight, strict=True):
        assert first.ledger == second.ledger and (first.pixels_CHW == second.pixels_CHW).all()


def test_images_and_texts_are_counted_by_source_and_language(views: Views, images: Path, more_images: Path) -> None:
    dataset = open_dataset(views)
    keys = [f"image_text/{folder.name}" for folder in (images, more_images)]
    languages = [f"{key}/{language}" for key in keys for language in ("de", "en")]
    assert [key for key in dataset.counted if key.startswith("image_text/")] == [*keys, *languages]
    seen = dict(dataset[0].samples_seen)
    assert sum(seen.get(key, 0) for key in keys) == sum(seen.get(key, 0) for key in languages) == 16
