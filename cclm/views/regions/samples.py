"""One record with regions → one cropped image with texts, boxes and patch masks; images → a group of texts.

    record ─► a region is drawn ─► a random crop that holds it ─► flip? ─► resize ─► image
                                        │
                                        └─► caption (the whole crop) and regions inside it ─► texts, boxes, masks
    M images ─► their texts in a random order ─► G rows (some twice, if there are too few)

Geometry and order as published (spec §4.2); where it differs, `RegionConfig.reference` says how.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cclm.data.collate import FusionDraws, fusion_draws
from cclm.data.image import cut, finish, photo_size
from cclm.data.ledger import identity_hash, sample_hash
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.types import ImageTextRecord, Language, Region
from cclm.views.captions import choose_caption, names_a_side
from cclm.views.regions.options import RegionConfig

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True, kw_only=True)
class RegionText:
    """A text about a part of an image, or about all of it."""

    ids: Sequence[int]
    box: tuple[float, float, float, float]
    """Centre x, centre y, width, height as shares of the image's sides."""
    mask_N: NDArray[np.bool_]
    """True for the patches that the box touches; token 0 is always True."""
    is_whole: bool
    """Whether it is the image's own caption."""
    identity: int
    """63-bit hash of what it is about: the image, or this region of it (with `reference`, each row is a thing of its
    own)."""


@dataclass(frozen=True, kw_only=True)
class RegionSample:
    """One cropped image with at least one text."""

    pixels_CHW: NDArray[np.uint8]
    texts: Sequence[RegionText]
    ledger: int
    """64-bit hash of the sample: record, crop, flip and choices."""


def region_sample(
    record: ImageTextRecord,
    image: Image.Image | bytes,
    config: RegionConfig,
    tokenizer: TextTokenizer,
    generator: np.random.Generator,
) -> RegionSample:
    """Draw, in this order: the region that the crop must hold, crop, flip, order of regions, texts, augmentation.

    `image`: the record's whole image, encoded or RGB; boxes are in its pixels (the record's bytes are not looked at).

    Raises:
        DataError: `region_missing` (no region inside the image), `caption_missing` (no text in the wanted languages),
            `text_empty`.
    """
    size = photo_size(image)
    regions = usable_regions(record, size)
    centre = regions[int(generator.integers(len(regions)))][1]
    crop = draw_crop(centre, size, generator)
    flip = bool(generator.random() < config.transform.flip_probability)
    said = [record.captions, *(texts for one in record.regions for texts in (one.captions, one.attributes))]
    if flip and not config.reference and any(map(names_a_side, said)):
        flip = False
    chosen = list(_choose_texts(record, regions, crop, config, generator))
    if not chosen:
        raise DataError(
            reason="caption_missing",
            expected="a text in " + ("any language" if config.languages is None else ", ".join(config.languages)),
            got="regions and a caption without one",
            do="Change `languages`, or leave the record out of the shards.",
        )
    texts, name = [], record.identity or record.key
    for text, corners, index in chosen:
        (ids,) = tokenizer.encode([text], config.max_tokens, config.max_words)
        left, top, right, bottom = corners
        if flip:
            left, right = 1.0 - right, 1.0 - left
        about = RegionText(
            ids=ids,
            box=((left + right) / 2, (top + bottom) / 2, right - left, bottom - top),
            mask_N=patch_mask((left, top, right, bottom), config.patch_grid),
            is_whole=index < 0,
            identity=identity_hash(name if index < 0 else f"{name}\0{record.key}\0{index}"),
        )
        texts.append(about)
    choice = ",".join(map(str, [*crop, int(flip), *(f"{index}:{text}" for text, _, index in chosen)]))
    return RegionSample(
        pixels_CHW=finish(cut(image, crop, config.transform), flip, config.transform, generator),
        texts=texts,
        ledger=sample_hash(record.source, record.key, choice),
    )


def usable_regions(record: ImageTextRecord, size: tuple[int, int]) -> list[tuple[Region, tuple[int, int, int, int]]]:
    """Regions with whole-pixel corners (left, top, right, bottom) inside the image and a positive size."""
    found = []
    for region in record.regions:
        x, y, width, height = (int(side) for side in region.box)
        if x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= size[0] and y + height <= size[1]:
            found.append((region, (x, y, x + width, y + height)))
    if not found:
        raise DataError(
            reason="region_missing",
            expected="a region with a positive size inside the image",
            got=f"{len(record.regions)} regions, image of {size[0]} × {size[1]} pixels",
            do="Leave the record out of this set, or correct its boxes (x, y, width, height in pixels).",
        )
    return found


def draw_crop(
    box: tuple[int, int, int, int], size: tuple[int, int], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Corners of a crop that holds a box: each side uniform among the whole pixels between the box and the border."""
    left, top = (int(generator.integers(side + 1)) for side in box[:2])
    right, bottom = (int(generator.integers(side, end + 1)) for side, end in zip(box[2:], size, strict=True))
    return left, top, right, bottom


def clip_to_crop(box: Corners, crop: Corners, min_overlap: float) -> Corners | None:
    """A box as shares of the crop's sides, cut off at its border; None if too little of it lies inside."""
    left, top = max(box[0], crop[0]), max(box[1], crop[1])
    right, bottom = min(box[2], crop[2]), min(box[3], crop[3])
    inside = max(0.0, right - left) * max(0.0, bottom - top)
    if inside / ((box[2] - box[0]) * (box[3] - box[1])) <= min_overlap:
        return None
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    return (left - crop[0]) / width, (top - crop[1]) / height, (right - crop[0]) / width, (bottom - crop[1]) / height


def patch_mask(corners: Corners, grid: int) -> NDArray[np.bool_]:
    """Which of the 1 + grid² tokens a box (corners as shares) touches: at least one patch; token 0 always."""
    left, top, right, bottom = (side * grid for side in corners)
    mask = np.zeros((grid, grid), dtype=np.bool_)
    column, row = min(grid - 1, math.floor(left)), min(grid - 1, math.floor(top))
    mask[row : max(row + 1, math.ceil(bottom)), column : max(column + 1, math.ceil(right))] = True
    return np.concatenate([np.ones(1, dtype=np.bool_), mask.reshape(-1)])


def draw_rows(
    samples: Sequence[RegionSample],
    config: RegionConfig,
    tokenizer: TextTokenizer,
    generator: np.random.Generator,
) -> list[tuple[int, RegionText, FusionDraws]]:
    """G rows from the texts of a group's M images: which of the images, the text, and what it needs in the fusion
    encoder. Those of one image stand together, so that ranks which share a group encode few images twice."""
    places = [(image, text) for image, sample in enumerate(samples) for text in sample.texts]
    order = generator.permutation(len(places))[: config.negative_group].tolist()
    order += generator.integers(len(places), size=config.negative_group - len(order)).tolist()
    matching = config.rows_per_group
    rows = []
    for place in [*sorted(order[:matching]), *sorted(order[matching:])]:
        image, text = places[place]
        draws = fusion_draws(text.ids, config.masking, config.negative_group, tokenizer, generator)
        if config.reference:  # then no two rows are about the same
            text = replace(text, identity=int(generator.integers(1 << 63)))
        rows.append((image, text, draws))
    return rows


def _choose_texts(
    record: ImageTextRecord,
    regions: Sequence[tuple[Region, tuple[int, int, int, int]]],
    crop: tuple[int, int, int, int],
    config: RegionConfig,
    generator: np.random.Generator,
) -> Iterator[tuple[str, Corners, int]]:
    """(text, corners as shares of the crop, index of the region or -1 for the caption), at most the allowed number."""
    wanted = config.texts_per_image
    order = generator.permutation(len(regions)).tolist()
    draws = iter(generator.random((1 + len(regions), 4)).tolist())
    first = next(draws)
    if config.with_caption and _languages(record.captions, config):
        language, choice = choose_caption(record.captions, config, first[0], first[1])
        yield record.captions[language][choice], (0.0, 0.0, 1.0, 1.0), -1
        wanted -= 1
    for index in order:
        own = next(draws)
        region, box = regions[index]
        corners = clip_to_crop(box, crop, config.min_overlap)
        if wanted < 1:
            return
        if corners is not None and _languages(region.captions, config):
            yield _spell(region, config, own), corners, index
            wanted -= 1


def _languages(captions: Mapping[Language, Sequence[str]], config: RegionConfig) -> bool:
    return bool(captions) if config.languages is None else any(name in captions for name in config.languages)


def _spell(region: Region, config: RegionConfig, draws: Sequence[float]) -> str:
    """The region's text, with an attribute before it if it has one and the configuration wants it."""
    language, choice = choose_caption(region.captions, config, draws[0], draws[1])
    text = region.captions[language][choice]
    if config.attributes == "none" or not _languages(region.attributes, config):
        return text
    if config.attributes == "any_language":
        language, choice = choose_caption(region.attributes, config, draws[2], draws[3])
        attribute = region.attributes[language][choice]
        return f"{attribute[0] if config.reference else attribute} {text}"
    own = region.attributes.get(language)
    return f"{own[int(draws[3] * len(own))]} {text}" if own else text
