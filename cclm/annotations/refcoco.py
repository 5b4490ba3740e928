"""RefCOCO and its like: a phrase, and the box in an image that it means.

refcoco+_val.json          [{"image": "train2014/COCO_….jpg", "text": "man in red", "ref_id": 7, "bbox": [x, y, w, h],
                             "width": 640, "height": 480}]
finetune_refcoco_val.json  {"images": [{"id", "file_name", "caption", "width", "height"}],
                            "annotations": [{"image_id", "bbox": [x, y, w, h]}]}                        (MDETR)

`ref_id` names what is meant, which several phrases may mean: the second phrase of 7 is the row 7-2.

The original `refs(unc).p` is a pickle, which runs code when it is read; convert it to the first form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cclm.annotations.reading import (
    KEY,
    Problems,
    entries_of,
    indexed,
    items_at,
    name_at,
    object_in,
    read_entries,
    text_at,
)
from cclm.annotations.rows import AnnotationFile, BoxRow
from cclm.rows.cells import identifier, whole_number, with_area
from cclm.rows.documents import first_sign
from cclm.rows.guard import refuse
from cclm.types import Language

_BOX = "a bbox [x, y, width, height] with an area"


def read_refcoco(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[BoxRow]:
    """Read phrases and boxes in either form; a box without an area is an error."""
    if first_sign(path) != "{":
        return read_entries(path, language, entries_of(path), partial(_row, Counter()), problems)
    document = object_in(path, problems)
    images = indexed(path, document, "images", lambda image: (name_at(image, "id"), image), problems)
    return read_entries(path, language, items_at(path, document, "annotations"), partial(_joined, images), problems)


def _row(phrases: Counter[str], language: Language, entry: Mapping[str, Any]) -> BoxRow:
    meant = identifier(entry.get("ref_id"))
    phrases[meant] += 1
    return BoxRow(
        id=f"{meant}-{phrases[meant]}" if meant else name_at(entry, KEY),
        image=name_at(entry, "image"),
        text=text_at(entry, "text"),
        box=with_area(entry.get("bbox"), _BOX),
        language=language,
        size=_size(entry),
    )


def _joined(images: Mapping[str, Mapping[str, Any]], language: Language, entry: Mapping[str, Any]) -> BoxRow:
    identity = name_at(entry, "image_id")
    image = images.get(identity) or refuse("line_unmatched", f"an image {identity} in `images`", "none")
    return BoxRow(
        id=identifier(entry.get("id")) or identity,
        image=name_at(image, "file_name"),
        text=text_at(image, "caption"),
        box=with_area(entry.get("bbox"), _BOX),
        language=language,
        size=_size(image),
    )


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    if entry.get("width") is None:
        return None
    return whole_number(entry["width"], "width"), whole_number(entry.get("height"), "height")
