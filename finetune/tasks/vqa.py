"""VQA v2: questions about photographs in English, ten answers each; a right one scores by how many people gave it."""

from __future__ import annotations

from pathlib import Path

from cclm.annotations.images import coco_image
from finetune.stand_in import COLOURS, LANGUAGES, SHAPES, draw_scene, write_document
from finetune.tasks.task import Task


def draw(folder: Path) -> None:
    """Write images of one shape each, and questions about it, which one of ten people gets wrong."""
    things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for split in ("train2014", "val2014"):  # the same: it is to be learned by heart
        questions, annotations = list[dict[str, object]](), list[dict[str, object]]()
        for number, thing in enumerate(things):
            draw_scene(folder / "images" / split / coco_image(number, split), [thing])
            for about, answer in zip(("colour", "shape"), thing, strict=True):
                asked = {"image_id": number, "question_id": f"{number}-{about}"}
                questions.append({**asked, "question": LANGUAGES["en"][about]})
                answers = [{"answer": answer}] * 9 + [{"answer": "old"}]
                annotations.append({**asked, "answers": answers})
        name = folder / "vqa" / f"v2_OpenEnded_mscoco_{split}_questions.json"
        write_document(name, {"questions": questions, "data_subtype": split})
        write_document(folder / "vqa" / f"v2_mscoco_{split}_annotations.json", {"annotations": annotations})
    write_document(folder / "vqa" / "answer_list.json", [*COLOURS, *SHAPES])


TASK = Task(title="questions about a photograph", view="answer", metrics=("vqa_score",), draw=draw)
