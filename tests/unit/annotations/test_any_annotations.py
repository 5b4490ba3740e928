"""Whatever an annotation file holds: rows and problems with their places come out, never a traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cclm.annotations.captions import read_aligned, read_coco, read_flickr30k, read_karpathy, read_wit, read_xm3600
from cclm.annotations.questions import read_answers, read_gqa, read_vqa
from cclm.annotations.refcoco import read_refcoco
from cclm.annotations.retrieval import read_pairs
from cclm.annotations.statements import read_statements, read_xvnli
from cclm.errors import DataError
from tests.unit.annotations.annotation_files import write_text
from tests.unit.annotations.test_captions import WIT, coco
from tests.unit.annotations.test_questions import ASKED, SCORED
from tests.unit.annotations.test_statements import MARVL, NLI, NLVR2
from tests.unit.shards.corpora.test_any_input import changed, with_odd_values

SENTENCES = {"sentences": ["a", "b"], "id": "1", "img_path": "1.jpg"}
KARPATHY = {"filename": "1.jpg", "filepath": "val2014", "split": "test", "sentences": [{"raw": "a"}]}
XM3600 = {"image/key": "a1", "en": {"caption": ["one", "two"]}}
QUESTIONS = {"data_subtype": "val2014", "questions": [{"image_id": 1, "question": "a", "question_id": 1}] * 2}
PHRASES = [{"image": "1.jpg", "text": "a", "ref_id": 7, "bbox": [1, 2, 3, 4], "width": 9, "height": 9}] * 2
BOXES = {
    "images": [{"id": 3, "file_name": "1.jpg", "caption": "a", "width": 9, "height": 9}],
    "annotations": [{"id": 9, "image_id": 3, "bbox": [0, 0, 5, 5]}],
}
READERS: list[tuple[str, Any, Callable[..., Any], str]] = [
    ("nli.jsonl", [NLI, NLI], read_xvnli, "en"),
    ("nlvr.jsonl", [NLVR2, NLVR2], read_statements, "en"),
    ("marvl.jsonl", [MARVL, MARVL], read_statements, "sw"),
    ("asked.json", {"7": ASKED, "8": ASKED}, read_gqa, "de"),
    ("scored.json", [SCORED, SCORED], read_gqa, "en"),
    ("sentences.jsonl", [SENTENCES, SENTENCES], read_flickr30k, "de"),
    ("pairs.jsonl", [SENTENCES, SENTENCES], read_pairs, "de"),
    ("karpathy.json", {"images": [KARPATHY, KARPATHY]}, read_karpathy, "en"),
    ("coco.json", coco([5, 6], [5]), read_coco, "it"),
    ("wit.jsonl", [WIT, WIT], read_wit, "bg"),
    ("xm3600.jsonl", [XM3600, XM3600], read_xm3600, "en"),
    ("v2_OpenEnded_questions.json", QUESTIONS, read_vqa, "en"),
    ("phrases.json", PHRASES, read_refcoco, "en"),
    ("boxes.json", BOXES, read_refcoco, "en"),
]


def written(name: str, value: Any) -> bytes:
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in value).encode()
    return json.dumps(value, indent=1).encode()


def read_both_ways(read: Callable[..., Any], path: Path, language: str) -> None:
    """Read with and without a list of problems: the first one is what is raised."""
    problems: list[DataError] = []
    read(path, language, problems)
    assert all(problem.where and problem.reason != "unexpected" for problem in problems), problems
    if problems:
        with pytest.raises(DataError):
            read(path, language)
    else:
        read(path, language)


@pytest.mark.parametrize(("name", "value", "read", "language"), READERS, ids=[reader[0] for reader in READERS])
def test_damaged_bytes(name: str, value: Any, read: Callable[..., Any], language: str, tmp_path: Path) -> None:
    draw = random.Random(name)
    path = tmp_path / name
    for _ in range(60):
        path.write_bytes(changed(written(name, value), draw))
        read_both_ways(read, path, language)


@pytest.mark.parametrize(("name", "value", "read", "language"), READERS, ids=[reader[0] for reader in READERS])
def test_odd_values(name: str, value: Any, read: Callable[..., Any], language: str, tmp_path: Path) -> None:
    draw = random.Random(name)
    path = tmp_path / name
    for _ in range(60):
        odd = with_odd_values(value, draw, 0.15)
        path.write_bytes(written(name, odd if isinstance(odd, list) or not name.endswith("l") else [odd]))
        read_both_ways(read, path, language)


@pytest.mark.parametrize(("name", "value", "read", "_"), READERS, ids=[reader[0] for reader in READERS])
def test_every_reader_wants_a_language(name: str, value: Any, read: Callable[..., Any], _: str, tmp_path: Path) -> None:
    """CVQA's alone may be read in all of its languages."""
    path = tmp_path / name
    path.write_bytes(written(name, value))
    for language in ("", "klingonish"):
        with pytest.raises(DataError) as found:
            read(path, language)
        assert found.value.reason == "language_unknown"


def test_damaged_lines_and_answers(tmp_path: Path) -> None:
    draw = random.Random(0)
    write_text(tmp_path / "test_image_names.txt", "1.jpg\n2.jpg\n")
    for _ in range(60):
        path = tmp_path / "lines.de"
        path.write_bytes(changed(b"ein\nzwei\n", draw))
        problems: list[DataError] = []
        read_aligned(path, "de", problems)
        assert all(problem.where for problem in problems)
        path.write_bytes(changed(b'{"no": 0, "yes": 1}', draw))
        try:
            read_answers(path)
        except DataError as error:
            assert error.where
