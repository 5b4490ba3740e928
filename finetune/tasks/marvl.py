"""NLVR2 and MaRVL: is a sentence about two images true? Trained in English (NLVR2), tested elsewhere (MaRVL)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from finetune.stand_in import COLOURS, LANGUAGES, draw_scene, write_rows
from finetune.tasks.task import Task

SHAPE = "circle"


def draw(folder: Path) -> None:
    """Write images of coloured circles, and sentences that are true of one of a pair of images, of both, or of none."""
    draw_nlvr2(folder, ("train", "dev"))
    for language in LANGUAGES:
        write_rows(folder / "marvl" / "zero_shot" / "annotations" / f"marvl-{language}.jsonl", _rows(language))


def draw_nlvr2(folder: Path, splits: Sequence[str]) -> None:
    """Write the images, and the English sentences of some splits."""
    for colour in COLOURS:
        draw_scene(folder / "images" / f"{colour}.png", [(colour, SHAPE)])
    for split in splits:  # the same: it is to be learned by heart
        write_rows(folder / "nlvr2" / "annotations" / f"{split}.jsonl", _rows("en"))


def _rows(language: str) -> Iterator[dict[str, object]]:
    words = LANGUAGES[language]
    for left, right, said in product(COLOURS, repeat=3):
        yield {
            "id": f"{left}-{right}-{said}", "images": [f"{left}.png", f"{right}.png"], "label": said == right,
            "sentence": f"{words[said]} {words[SHAPE]}",
        }  # fmt: skip


TASK = Task(title="is a sentence about two images true?", view="classify", metrics=("accuracy",), draw=draw)
