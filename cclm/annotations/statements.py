"""Statements about one or two images, and their classes: XVNLI, NLVR2, MaRVL.

XVNLI/annotations/{lang}/test.jsonl                 {"gold_label": "contradiction", "sentence1", "sentence2", "pairID":
                                                     "759822302.jpg#2r1c", "Flikr30kID": "759822302", …}      (IGLUE)
nlvr2/annotations/dev.jsonl                         {"sentence", "label": "True", "identifier": "dev-850-0-0", …}
marvl/zero_shot/annotations/marvl-sw.jsonl          {"concept": "81-Dawati", "language": "sw", "caption",
                                                     "left_img": "81-5.jpg", "right_img", "id": "sw-0", "label": false}
marvl/few_shot/annotations/marvl-zh_train10.jsonl   the same, "left_img": "52-火锅/52-4.jpg"
nlvr_dev.json, marvl-sw.json                        [{"sentence", "label": "True" or true, "images": [left, right]}]
                                                    (X-VLM; what the published CCLM converts the others to)

XVNLI asks whether an image entails a statement, contradicts it, or neither. The image is the premise: sentence1, its
caption, is not read. Rows whose annotators did not agree have the label "-": the published CCLM drops them (`usable`),
IGLUE counts them as wrong (`all`).

NLVR2 and MaRVL ask whether a statement about a left and a right image is true. Labels are texts in NLVR2 and truth
values in MaRVL, where `bool("False")` would be true.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cclm.annotations.reading import KEY, Dropped, Problems, entries_of, name_at, read_entries, text_at
from cclm.annotations.rows import NO_LABEL, AnnotationFile, ClassifyRow
from cclm.rows.cells import identifier, language, listed, text
from cclm.rows.guard import refuse, shown
from cclm.types import Language

XVNLI_LABELS: Final = ("contradiction", "entailment", "neutral")
"""Classes in the order of their indices, as the published heads have them."""
_UNDECIDED: Final = "-"
STATEMENT_LABELS: Final = ("false", "true")
"""Classes in the order of their indices."""
ZERO_SHOT_IMAGES: Final = "marvl-images"
"""Folder of MaRVL's images, as its archive is unpacked: LANGUAGE/images/CONCEPT/FILE below it."""
FEW_SHOT_IMAGES: Final = "marvl_fewshot"
"""Folder of the few-shot images, which are others: LANGUAGE/all/FILE below it."""
_Parts = tuple[str, tuple[str, ...], str]
"""Id, images and text of a statement."""


def read_xvnli(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[ClassifyRow]:
    """Read a file of XVNLI (reasons in `dropped`: no_label)."""
    return read_entries(path, language, entries_of(path), _entailment, problems)


def _entailment(language: Language, entry: Mapping[str, Any]) -> ClassifyRow | Dropped:
    label = text_at(entry, "gold_label")
    if label == _UNDECIDED:
        return Dropped(NO_LABEL)
    if label not in XVNLI_LABELS:
        refuse("line_broken", f"a gold_label of {', '.join(XVNLI_LABELS)} or -", shown(label))
    return ClassifyRow(
        id=name_at(entry, "pairID"),
        images=(f"{name_at(entry, 'Flikr30kID')}.jpg",),  # the key is spelt so in every published file
        text=text_at(entry, "sentence2"),
        label=XVNLI_LABELS.index(label),
        language=language,
    )


def read_statements(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[ClassifyRow]:
    """Read a file of NLVR2 or MaRVL in any of the three forms; MaRVL's own rows must be of this language."""
    return read_entries(path, language, entries_of(path), _statement, problems)


def _statement(tag: Language, entry: Mapping[str, Any]) -> ClassifyRow:
    form = _published if "images" in entry else _nlvr2 if "identifier" in entry else _marvl
    identity, images, statement = form(tag, entry)
    return ClassifyRow(id=identity, images=images, text=statement, label=truth(entry.get("label")), language=tag)


def _published(tag: Language, entry: Mapping[str, Any]) -> _Parts:
    images = tuple(text(name, "an image's name") for name in listed(entry["images"], "a list of images"))
    if len(images) != 2:
        refuse("line_broken", "a left and a right image", f"{len(images)} images")
    identity = identifier(entry.get("identifier", entry.get("id"))) or f"{tag}:{name_at(entry, KEY)}"
    return identity, images, text_at(entry, "sentence")


def _nlvr2(_: Language, entry: Mapping[str, Any]) -> _Parts:
    name = name_at(entry, "identifier")
    folder = f"train/{identifier(entry['directory'])}/" if "directory" in entry else ""
    pair, dash, _ = name.rpartition("-")
    if not dash or pair.count("-") != 2:
        refuse("line_broken", "an identifier SPLIT-SET-PAIR-SENTENCE", shown(name))
    return name, tuple(f"{folder}{pair}-{side}.png" for side in ("img0", "img1")), text_at(entry, "sentence")


def _marvl(expected: Language, entry: Mapping[str, Any]) -> _Parts:
    tag = language(entry.get("language"))
    if tag != expected:
        refuse("line_broken", f"rows in {expected}", f"one in {tag}")
    concept = name_at(entry, "concept")
    sides = (name_at(entry, "left_img"), name_at(entry, "right_img"))
    images = tuple(marvl_image(tag, concept, side) for side in sides)
    return name_at(entry, "id"), images, text_at(entry, "caption")


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
