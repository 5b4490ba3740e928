"""What every image-text source makes of an annotation before the image is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from cclm.data.decoding import stored_orientation
from cclm.types import ImageTextRecord, Language, Region
from shards.corpora.image_bytes import LoadImage, fit_regions, image_format_of, image_size, load_file
from shards.corpora.refusal import refuse
from shards.guard import mistaken, shown
from shards.parts import LazyRecord, Skipped

Captions = Mapping[Language, Sequence[str]]

IDS_REGIONS_LEFT_OUT = "regions_left_out"
"""In a record's ids: how many of its boxes lie outside the image or have no text."""


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """An image by reference, with its texts."""

    key: str
    """Unique in the corpus; `key_of` makes one of anything."""
    image: LoadImage
    captions: Captions
    """As annotated; blank ones are dropped when the record is made."""
    source: str
    licence: str
    identity: str = ""
    """What the image shows; empty: the record's key, so that no other record shows the same."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """Identifiers in the corpus; translations are joined on one of them."""
    regions: Sequence[Region] = ()
    """Boxes in pixels of the annotated image."""
    annotated_size: tuple[int, int] | None = None
    """Width and height of the annotated image, where the corpus says; the stored one may be a smaller copy."""
    where: str = ""
    """File and row, for messages."""


def key_of(name: str) -> str:
    """Return a key made of a path or an identifier. The hash keeps "a/b" and "a_b" apart."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", re.sub(r"\.[A-Za-z0-9]{1,5}$", "", name))
    return f"{readable[-100:]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def lazy_images(rows: Iterable[ImageRow | LazyRecord | Skipped]) -> Iterator[LazyRecord | Skipped]:
    """Yield a lazy record per row; refusals and counts of what was skipped pass."""
    for row in rows:
        if isinstance(row, ImageRow):
            yield LazyRecord(key=row.key, source=row.source, make=partial(make_record, row))
        else:
            yield row


def make_record(row: ImageRow) -> ImageTextRecord:
    """Read the image and check everything.

    Raises:
        DataError: reasons captions_empty, image_missing, image_empty, image_format, image_truncated, image_broken.
    """
    captions = without_blanks(row.captions)
    if not captions:
        refuse("captions_empty", "a caption that is not blank", shown(dict(row.captions)), row.where)
    image = row.image()
    image_format = image_format_of(image, row.where)
    size = image_size(image, row.where)
    worded = [
        replace(region, captions=texts, attributes=without_blanks(region.attributes))
        for region in row.regions
        if (texts := without_blanks(region.captions))
    ]
    regions, outside = fit_regions(worded, size, row.annotated_size, stored_orientation(image))
    left_out = outside + len(row.regions) - len(worded)
    return ImageTextRecord(
        key=row.key,
        image=image,
        image_format=image_format,
        captions=captions,
        source=row.source,
        licence=row.licence,
        identity=row.identity,
        ids={**row.ids, **({IDS_REGIONS_LEFT_OUT: str(left_out)} if left_out else {})},
        regions=tuple(regions),
    )


def without_blanks(captions: Captions) -> dict[str, list[str]]:
    """Return the captions that are not blank, unchanged; languages left without one are gone."""
    kept = {language: [text for text in texts if text.strip()] for language, texts in captions.items()}
    return {language: texts for language, texts in kept.items() if texts}


def folders_of(images: Path | Sequence[Path]) -> tuple[Path, ...]:
    """Return the folders of images.

    Raises:
        ConfigError: one is not there. That is told at once, rather than once for each of its images.
    """
    folders = (images,) if isinstance(images, Path) else tuple(images)
    for folder in folders:
        if not folder.is_dir():
            mistaken("a folder of images", "no such folder", "Correct `images`.", folder)
    return folders


def image_in(folders: Sequence[Path], name: str) -> LoadImage:
    """Return what reads the image `name` from the first folder that has it."""
    return partial(load_first, tuple(folders), name)


def load_first(folders: Sequence[Path], name: str) -> bytes:
    """Read an image (reason image_missing). Devices and pipes are none: reading them might never end."""
    for folder in folders:
        path = folder / name
        if path.is_file():
            return load_file(path)
    return refuse("image_missing", f"{name} in {', '.join(map(str, folders))}", "no such file", name)
