"""XVNLI: does an image entail a sentence, contradict it, or neither? Trained in English, tested in other languages.

The image is the premise; the caption that the sentence was once written about is not shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.stand_in import COLOURS, LANGUAGES, SHAPES, draw_scene, write_rows
from finetune.tasks.task import Task


def draw(folder: Path) -> None:
    """Write images of one shape each, and sentences that are true of them, false, or say what nobody can see."""
    images = {f"{colour}_{shape}": (colour, shape) for colour in COLOURS for shape in SHAPES}
    for name, thing in images.items():
        draw_scene(folder / "flickr30k-images" / f"{name}.jpg", [thing])
    for language in LANGUAGES:
        splits = ("train", "dev", "test") if language == "en" else ("test",)  # the same: it is to be learned by heart
        for split in splits:
            write_rows(folder / "annotations" / language / f"{split}.jsonl", _rows(images, language))


def _rows(images: Mapping[str, tuple[str, str]], language: str) -> Iterator[dict[str, object]]:
    words, colours = LANGUAGES[language], list(COLOURS)
    for name, (colour, shape) in images.items():
        other = colours[(colours.index(colour) + 1) % len(colours)]
        for gold_label, sentence in {
            "contradiction": f"{words[other]} {words[shape]}",
            "entailment": f"{words[colour]} {words[shape]}",
            "neutral": words["old"],
            "-": words["old"],
        }.items():
            yield {
                "gold_label": gold_label, "sentence1": "", "sentence2": sentence, "Flikr30kID": name,
                "pairID": f"{name}-{gold_label}",
            }  # fmt: skip


TASK = Task(title="does an image entail a sentence?", view="classify", metrics=("accuracy",), draw=draw)
