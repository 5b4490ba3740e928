"""CVQA: multiple choice about images of many cultures. There is no training set: trained on GQA in English.

The answer decoder that GQA trained says which of the four choices is best (mean log-probability of a token).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from cclm.annotations.questions import CVQA_LANGUAGES
from cclm.files.atomic import make_folder
from finetune.stand_in import COLOURS, LANGUAGES, SHAPES, scene_bytes
from finetune.tasks.task import Task
from finetune.tasks.xgqa import asked, draw_gqa


def draw(folder: Path) -> None:
    """Write GQA's part of the stand-in for xGQA, and a table of questions with four choices in some languages."""
    draw_gqa(folder)
    rows = [row for name, tag in CVQA_LANGUAGES.items() if tag in LANGUAGES for row in _rows(name, LANGUAGES[tag])]
    path = folder / "cvqa" / "data" / "test-00000-of-00001.parquet"
    make_folder(path.parent)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def _rows(language: str, words: Mapping[str, str]) -> Iterator[dict[str, object]]:
    english = LANGUAGES["en"]
    for image, about, answer in asked():
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


TASK = Task(title="multiple choice about an image", view="answer", metrics=("exact_match",), draw=draw)
