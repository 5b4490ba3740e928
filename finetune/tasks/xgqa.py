"""xGQA: questions about an image. Trained on GQA in English; asked in other languages, answered in English."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finetune.stand_in import COLOURS, LANGUAGES, SHAPES, draw_scene, write_document
from finetune.tasks.task import Task


def draw(folder: Path) -> None:
    """Write images of one shape each, and questions for its colour and its shape."""
    draw_gqa(folder)
    for language, words in LANGUAGES.items():
        questions = {
            f"{image}-{about}": {"imageId": image, "question": words[about], "answer": answer}
            for image, about, answer in asked()
        }
        write_document(folder / "xGQA" / "annotations" / "few_shot" / language / "test.json", questions)


def asked() -> Iterator[tuple[str, str, str]]:
    """Yield what is asked: the image, about what, and the answer."""
    for colour in COLOURS:
        for shape in SHAPES:
            yield f"{colour}_{shape}", "colour", colour
            yield f"{colour}_{shape}", "shape", shape


def draw_gqa(folder: Path) -> None:
    """Write the images, and GQA's part of the questions."""
    for colour in COLOURS:
        for shape in SHAPES:
            draw_scene(folder / "images" / f"{colour}_{shape}.jpg", [(colour, shape)])
    english = [
        {"img_id": image, "label": {answer: 1.0}, "question_id": f"{image}-{about}", "sent": LANGUAGES["en"][about]}
        for image, about, answer in asked()
    ]
    for split in ("train", "valid"):
        write_document(folder / "gqa" / "annotations" / f"{split}.json", english)
    answers = {answer: number for number, answer in enumerate([*COLOURS, *SHAPES])}
    write_document(folder / "gqa" / "annotations" / "trainval_ans2label.json", answers)


TASK = Task(title="questions about an image", view="answer", metrics=("exact_match",), draw=draw)
