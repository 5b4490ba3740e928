"""NLVR2 and MaRVL: is a statement about a left and a right image true?

nlvr2/annotations/dev.jsonl                         {"sentence", "label": "True", "identifier": "dev-850-0-0", …}
marvl/zero_shot/annotations/marvl-sw.jsonl          {"concept": "81-Dawati", "language": "sw", "caption",
                                                     "left_img": "81-5.jpg", "right_img", "id": "sw-0", "label": false}
marvl/few_shot/annotations/marvl-zh_train10.jsonl   the same, "left_img": "52-火锅/52-4.jpg"
nlvr_dev.json, marvl-sw.json                        [{"sentence", "label": "True" or true, "images": [left, right]}]
                                                    (X-VLM; what the published CCLM converts the others to)

Labels are texts in NLVR2 and truth values in MaRVL, where `bool("False")` would be true.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.reading import KEY, Problems, entries_of, known_language, name_at, read_entries, text_at
from cclm.annotations.rows import AnnotationFile, ClassifyRow
from cclm.rows.cells import identifier, language, listed, text
from cclm.rows.guard import refuse, shown
from cclm.types import Language

STATEMENT_LABELS: Final = ("false", "true")
"""Classes in the order of their indices."""
ZERO_SHOT_IMAGES: Final = "marvl-images"
"""Folder of MaRVL's images, as its archive is unpacked: LANGUAGE/images/CONCEPT/FILE below it."""
FEW_SHOT_IMAGES: Final = "marvl_fewshot"
"""Folder of the few-shot images, which are others: LANGUAGE/all/FILE below it."""


def read_statements(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[ClassifyRow]:
    """Read a file of NLVR2 or MaRVL in any of the three forms; MaRVL's own rows must be of this language."""
    tag = known_language(language, path)
    return read_entries(path, tag, entries_of(path), partial(_row, tag), problems)


def _row(language: Language, _: str, entry: Mapping[str, Any]) -> ClassifyRow:
    if "images" in entry:
        return _published(language, entry)
    return _nlvr2(language, entry) if "identifier" in entry else _marvl(language, entry)


def _published(language: Language, entry: Mapping[str, Any]) -> ClassifyRow:
    images = tuple(text(name, "an image's name") for name in listed(entry["images"], "a list of images"))
    if len(images) != 2:
        refuse("line_broken", "a left and a right image", f"{len(images)} images")
    return ClassifyRow(
        id=identifier(entry.get("identifier", entry.get("id"))) or f"{language}:{name_at(entry, KEY)}",
        images=images,
        text=text_at(entry, "sentence"),
        label=truth(entry.get("label")),
        language=language,
    )


def _nlvr2(language: Language, entry: Mapping[str, Any]) -> ClassifyRow:
    name = name_at(entry, "identifier")
    folder = f"train/{identifier(entry['directory'])}/" if "directory" in entry else ""
    return ClassifyRow(
        id=name,
        images=tuple(folder + image for image in nlvr2_images(name)),
        text=text_at(entry, "sentence"),
        label=truth(entry.get("label")),
        language=language,
    )


def _marvl(expected: Language, entry: Mapping[str, Any]) -> ClassifyRow:
    tag = language(entry.get("language"))
    if tag != expected:
        refuse("line_broken", f"rows in {expected}", f"one in {tag}")
    concept = name_at(entry, "concept")
    sides = (name_at(entry, "left_img"), name_at(entry, "right_img"))
    return ClassifyRow(
        id=name_at(entry, "id"),
        images=tuple(marvl_image(tag, concept, side) for side in sides),
        text=text_at(entry, "caption"),
        label=truth(entry.get("label")),
        language=tag,
    )


def nlvr2_images(identifier: str) -> tuple[str, str]:
    """Return the names of the two images: "dev-850-0-0" → dev-850-0-img0.png and dev-850-0-img1.png."""
    pair, dash, _ = identifier.rpartition("-")
    if not dash or pair.count("-") != 2:
        refuse("line_broken", "an identifier SPLIT-SET-PAIR-SENTENCE", shown(identifier))
    return f"{pair}-img0.png", f"{pair}-img1.png"


def marvl_image(language: Language, concept: str, name: str) -> str:
    """Return the path of an image below the folder of both image sets: a few-shot name holds the concept already."""
    if "/" in name:
        return f"{FEW_SHOT_IMAGES}/{language}/all/{name.rpartition('/')[2]}"
    return f"{ZERO_SHOT_IMAGES}/{language}/images/{concept}/{name}"


def truth(label: Any) -> int | None:
    """Return the class of a label, written as a truth value or as its word; None for a missing one."""
    if label is None:
        return None
    word = str(label).lower() if isinstance(label, (bool, str)) else ""
    if word not in STATEMENT_LABELS:
        refuse("line_broken", 'a label of true or false, or "True" or "False"', shown(label))
    return STATEMENT_LABELS.index(word)
