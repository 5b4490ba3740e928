"""Stand-in data of the tasks whose rows are statements, questions or boxes, in the layouts that they are published in.

xvnli    does an image entail a sentence, contradict it, or neither? Trained in English, tested in other languages; the
         image is the premise: the caption that the sentence was once written about is not shown
nlvr2    is a sentence about two photographs true? In English
marvl    the same, trained in English (NLVR2), tested elsewhere (MaRVL)
xgqa     questions about an image: trained on GQA in English, asked in other languages, answered in English
cvqa     multiple choice about images of many cultures. There is no training set: trained on GQA in English. The answer
         decoder says which of the four choices is best (mean log-probability of a token)
vqa      questions about photographs in English, ten answers each; a right one scores by how many people gave it
refcoco  which box in a photograph does a phrase mean? In English
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from cclm.annotations.images import coco_image
from cclm.annotations.questions import CVQA_LANGUAGES
from cclm.files.atomic import make_folder
from finetune.stand_in import (
    COLOURS,
    LANGUAGES,
    SHAPES,
    SIDE,
    THINGS,
    box_of,
    draw_scene,
    draw_things,
    scene_bytes,
    write_document,
    write_rows,
)

Rows = Iterator[dict[str, object]]
CIRCLE = "circle"
SCENES = (("red",), ("green",), ("blue",), ("red", "blue"), ("green", "blue"))
"""Colours from left to right."""


def draw_xvnli(folder: Path) -> None:
    """Write images of one shape each, and sentences that are true of them, false, or say what nobody can see."""
    draw_things(folder / "flickr30k-images", ".jpg")
    for language in LANGUAGES:
        for split in ("train", "dev", "test") if language == "en" else ("test",):
            write_rows(folder / "annotations" / language / f"{split}.jsonl", _entailments(language))


def _entailments(language: str) -> Rows:
    words, colours = LANGUAGES[language], list(COLOURS)
    for colour, shape in THINGS:
        other = colours[(colours.index(colour) + 1) % len(colours)]
        for gold_label, sentence in {
            "contradiction": f"{words[other]} {words[shape]}",
            "entailment": f"{words[colour]} {words[shape]}",
            "neutral": words["old"],
            "-": words["old"],
        }.items():
            yield {
                "gold_label": gold_label, "sentence1": "", "sentence2": sentence, "Flikr30kID": f"{colour}_{shape}",
                "pairID": f"{colour}_{shape}-{gold_label}",
            }  # fmt: skip


def draw_marvl(folder: Path) -> None:
    """Write images of coloured circles, and sentences that are true of one of a pair of images, of both, or of none."""
    draw_nlvr2(folder, ("train", "dev"))
    for language in LANGUAGES:
        write_rows(folder / "marvl" / "zero_shot" / "annotations" / f"marvl-{language}.jsonl", _statements(language))


def draw_nlvr2(folder: Path, splits: Sequence[str] = ("train", "dev", "test")) -> None:
    """Write the images, and the English sentences of some splits."""
    for colour in COLOURS:
        draw_scene(folder / "images" / f"{colour}.png", [(colour, CIRCLE)])
    for split in splits:
        write_rows(folder / "nlvr2" / "annotations" / f"{split}.jsonl", _statements("en"))


def _statements(language: str) -> Rows:
    words = LANGUAGES[language]
    for left, right, said in product(COLOURS, repeat=3):
        yield {
            "id": f"{left}-{right}-{said}", "images": [f"{left}.png", f"{right}.png"], "label": said == right,
            "sentence": f"{words[said]} {words[CIRCLE]}",
        }  # fmt: skip


def draw_xgqa(folder: Path) -> None:
    """Write images of one shape each, and questions for its colour and its shape."""
    _draw_gqa(folder)
    for language, words in LANGUAGES.items():
        questions = {
            f"{image}-{about}": {"imageId": image, "question": words[about], "answer": answer}
            for image, about, answer in _asked()
        }
        write_document(folder / "xGQA" / "annotations" / "few_shot" / language / "test.json", questions)


def _asked() -> Iterator[tuple[str, str, str]]:
    """Yield what is asked: the image, about what, and the answer."""
    for thing in THINGS:
        for about, answer in zip(("colour", "shape"), thing, strict=True):
            yield "_".join(thing), about, answer


def _draw_gqa(folder: Path) -> None:
    """Write the images, and GQA's part of the questions."""
    draw_things(folder / "images", ".jpg")
    english = [
        {"img_id": image, "label": {answer: 1.0}, "question_id": f"{image}-{about}", "sent": LANGUAGES["en"][about]}
        for image, about, answer in _asked()
    ]
    for split in ("train", "valid"):
        write_document(folder / "gqa" / "annotations" / f"{split}.json", english)
    answers = {answer: number for number, answer in enumerate([*COLOURS, *SHAPES])}
    write_document(folder / "gqa" / "annotations" / "trainval_ans2label.json", answers)


def draw_cvqa(folder: Path) -> None:
    """Write GQA's part of the stand-in for xGQA, and a table of questions with four choices in some languages."""
    _draw_gqa(folder)
    rows = [row for name, tag in CVQA_LANGUAGES.items() if tag in LANGUAGES for row in _choices(name, LANGUAGES[tag])]
    path = folder / "cvqa" / "data" / "test-00000-of-00001.parquet"
    make_folder(path.parent)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def _choices(language: str, words: Mapping[str, str]) -> Rows:
    english = LANGUAGES["en"]
    for image, about, answer in _asked():
        options = [answer, *(one for one in (*COLOURS, *SHAPES) if one != answer)][:4]
        colour, _, shape = image.partition("_")
        label = len(colour) % 4
        options[0], options[label] = options[label], options[0]
        yield {
            "ID": f"{image}_{about}-{language}",
            "Subset": f"('{language}', 'Anywhere')",
            "Question": words[about],
            "Translated Question": english[about],
            "Options": [words[one] for one in options],
            "Translated Options": options,
            "Label": label,
            "image": {"bytes": scene_bytes([(colour, shape)])},
        }


def draw_vqa(folder: Path) -> None:
    """Write images of one shape each, and questions about it, which one of ten people gets wrong."""
    for split in ("train2014", "val2014"):
        questions, annotations = list[dict[str, object]](), list[dict[str, object]]()
        for number, thing in enumerate(THINGS):
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


def draw_refcoco(folder: Path) -> None:
    """Write images of one shape or two of different colours, a phrase for each, and a second one for what is alone."""
    for shape, colours in product(SHAPES, SCENES):
        draw_scene(folder / "images" / _scene_name(colours, shape), [(colour, shape) for colour in colours])
    for split in ("train", "val", "testA", "testB"):
        write_document(folder / "refcoco" / f"refcoco_{split}.json", list(_phrases()))


def _scene_name(colours: tuple[str, ...], shape: str) -> str:
    return f"{'_'.join((*colours, shape))}.png"


def _phrases() -> Rows:
    words = LANGUAGES["en"]
    for shape, colours in product(SHAPES, SCENES):
        for place, colour in enumerate(colours):
            for text in (f"{words[colour]} {words[shape]}", words[shape])[: 3 - len(colours)]:
                yield {
                    "ref_id": f"{'_'.join(colours)}-{shape}-{colour}", "image": _scene_name(colours, shape),
                    "width": SIDE, "height": SIDE, "text": text, "bbox": list(box_of(place, len(colours))),
                }  # fmt: skip
