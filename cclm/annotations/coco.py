"""COCO's captions, and those in its format: STAIR and YJ (ja), MSCOCO-it, COCO-CN's main release.

captions_val2014.json, stair_captions_v1.2_val.json, captions_ita_devset_validated.json.gz
    {"images": [{"id": 57870, "file_name": "COCO_val2014_000000057870.jpg", …}],
     "annotations": [{"image_id": 57870, "id": 1, "caption": "…"}], …}

Two numbers are in use for MSCOCO-it's validated development set: its `images` list has only 14 of the 322 images that
are captioned, so a join through it keeps 25 of 1,541 captions. Names follow from the ids where all that are listed do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.images import coco_image
from cclm.annotations.reading import (
    Captioned,
    Dropped,
    Problems,
    indexed,
    items_at,
    known_language,
    object_in,
    read_captions,
)
from cclm.annotations.rows import AnnotationFile, CaptionRow
from cclm.rows.cells import text, whole_number

UNLISTED: Final = "image_unlisted"
"""Reason: an image that the list does not have, and whose name does not follow from its id."""
_NAME: Final = re.compile(r"COCO_(?P<split>\w+?)_(?P<id>\d{12})\.jpg")


def read_coco(
    path: Path, language: str, problems: Problems | None = None, *, only_listed: bool = False
) -> AnnotationFile[CaptionRow]:
    """Read a file of captions; `only_listed` drops those whose image is not in the `images` list (image_unlisted)."""
    tag = known_language(language, path)
    document = object_in(path, problems)
    names = indexed(path, document, "images", _listed, problems)
    split = "" if only_listed else _common_split(names)
    make = partial(_captioned, names, split)
    return read_captions(path, tag, items_at(path, document, "annotations"), make, problems)


def _listed(image: Mapping[str, Any]) -> tuple[int, str]:
    return whole_number(image.get("id"), "an image's id"), text(image.get("file_name"), "file_name")


def _common_split(names: Mapping[int, str]) -> str:
    """Return the split that all names and ids agree on; "" if there is none."""
    found = [_NAME.fullmatch(name) for name in names.values()]
    if not all(match and int(match["id"]) == number for match, number in zip(found, names, strict=True)):
        return ""
    splits = {match["split"] for match in found if match}
    return splits.pop() if len(splits) == 1 else ""


def caption_of(annotation: Mapping[str, Any]) -> tuple[int, str]:
    """Return the id of an annotation's image and its caption; ids are numbers, also where they are written as texts."""
    number = whole_number(annotation.get("image_id"), "image_id")
    return number, text(annotation.get("caption"), "a caption")


def _captioned(names: Mapping[int, str], split: str, _: str, entry: Mapping[str, Any]) -> Captioned | Dropped:
    number, caption = caption_of(entry)
    name = names.get(number) or (coco_image(number, split) if split else "")
    return Captioned(f"coco-{number}", name, [caption]) if name else Dropped(UNLISTED)
