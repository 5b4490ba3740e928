"""RefCOCO and its like: which box in a photograph does a phrase mean? In English."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finetune.stand_in import LANGUAGES, SHAPES, SIDE, box_of, draw_scene, write_document
from finetune.tasks.task import Task

SCENES = (("red",), ("green",), ("blue",), ("red", "blue"), ("green", "blue"))
"""Colours from left to right."""


def draw(folder: Path) -> None:
    """Write images of one shape or two of different colours, a phrase for each, and a second one for what is alone."""
    for shape in SHAPES:
        for colours in SCENES:
            draw_scene(folder / "images" / _name(colours, shape), [(colour, shape) for colour in colours])
    for split in ("train", "val", "testA", "testB"):  # the same: it is to be learned by heart
        write_document(folder / "refcoco" / f"refcoco_{split}.json", list(_rows()))


def _name(colours: tuple[str, ...], shape: str) -> str:
    return f"{'_'.join((*colours, shape))}.png"


def _rows() -> Iterator[dict[str, object]]:
    words = LANGUAGES["en"]
    for shape in SHAPES:
        for colours in SCENES:
            for place, colour in enumerate(colours):
                for text in (f"{words[colour]} {words[shape]}", words[shape])[: 3 - len(colours)]:
                    yield {
                        "ref_id": f"{'_'.join(colours)}-{shape}-{colour}", "image": _name(colours, shape),
                        "width": SIDE, "height": SIDE, "text": text, "bbox": list(box_of(place, len(colours))),
                    }  # fmt: skip


TASK = Task(title="the box that a phrase means", view="locate", metrics=("iou50",), draw=draw)
