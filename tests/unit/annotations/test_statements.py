"""XVNLI, NLVR2 and MaRVL: their forms, labels and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cclm.annotations.rows import ClassifyRow
from cclm.annotations.statements import XVNLI_LABELS, read_statements, read_xvnli
from tests.unit.annotations.annotation_files import broken_at, write_json, write_lines, write_text

NLI: dict[str, Any] = {
    "gold_label": "entailment",
    "sentence1": "a caption of the image",
    "sentence2": "Un homme lit.",
    "captionID": "75.jpg#2",
    "pairID": "75.jpg#2r1e",
    "Flikr30kID": "75",
}
NLVR2: dict[str, Any] = {"sentence": "Two cups.", "label": "False", "identifier": "dev-850-2-1", "left_url": "http://a"}
MARVL: dict[str, Any] = {
    "concept": "6-Ng'ombe",
    "language": "sw",
    "caption": "Ng'ombe wawili.",
    "left_img": "6-5.jpg",
    "right_img": "6-11.jpg",
    "annotator_info": {"age": 29},
    "chapter": "Animal",
    "id": "sw-0",
    "label": True,
}


def test_xvnli_takes_the_hypothesis_and_the_image(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "test.jsonl", [NLI])
    (row,) = read_xvnli(path, "fr").rows
    assert row == ClassifyRow(id="75.jpg#2r1e", images=("75.jpg",), text="Un homme lit.", label=1, language="fr")


def test_xvnli_has_two_denominators(tmp_path: Path) -> None:
    labels = [*XVNLI_LABELS, "-", "-"]
    file = read_xvnli(write_lines(tmp_path / "test.jsonl", [{**NLI, "gold_label": label} for label in labels]), "en")
    assert [row.label for row in file.rows] == [0, 1, 2]
    assert file.denominators == {"usable": 3, "all": 5} and file.dropped == {"no_label": 2}


@pytest.mark.parametrize(
    "change", [{"gold_label": "maybe"}, {"gold_label": 1}, {"sentence2": None}, {"pairID": None}, {"Flikr30kID": ""}]
)
def test_xvnli_names_the_line_that_is_wrong(change: dict[str, Any], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "test.jsonl", [NLI, NLI, {**NLI, **change}, NLI])
    assert broken_at(read_xvnli, path, "en") == ("line_broken", "test.jsonl:3")


def test_a_truncated_line_is_named(tmp_path: Path) -> None:
    path = write_text(tmp_path / "test.jsonl", '{"gold_label": "-"}\n{"gold_label": "-", "sent')
    assert broken_at(read_xvnli, path, "en") == ("line_broken", "test.jsonl:2")


def test_nlvr2_has_words_for_labels_and_no_names_of_images(tmp_path: Path) -> None:
    rows = [NLVR2, {**NLVR2, "label": "True", "identifier": "dev-850-0-0"}, {**NLVR2, "directory": 81}]
    file = read_statements(write_lines(tmp_path / "dev.jsonl", rows), "en")
    assert [row.label for row in file.rows] == [0, 1, 0]
    assert file.rows[0].images == ("dev-850-2-img0.png", "dev-850-2-img1.png") and file.rows[0].id == "dev-850-2-1"
    assert file.rows[2].images == ("train/81/dev-850-2-img0.png", "train/81/dev-850-2-img1.png")


def test_marvl_images_lie_in_folders_of_concepts(tmp_path: Path) -> None:
    """Zero-shot names are bare, few-shot ones hold the concept already, and lie elsewhere."""
    few_shot = {**MARVL, "left_img": "6-Ng'ombe/6-n-2.jpg", "right_img": "6-Ng'ombe/6-4.jpg", "label": False}
    file = read_statements(write_lines(tmp_path / "marvl-sw.jsonl", [MARVL, few_shot]), "sw")
    assert file.rows[0] == ClassifyRow(
        id="sw-0",
        images=("marvl-images/sw/images/6-Ng'ombe/6-5.jpg", "marvl-images/sw/images/6-Ng'ombe/6-11.jpg"),
        text="Ng'ombe wawili.",
        label=1,
        language="sw",
    )
    assert file.rows[1].images == ("marvl_fewshot/sw/all/6-n-2.jpg", "marvl_fewshot/sw/all/6-4.jpg")
    assert file.rows[1].label == 0


def test_published_lists_of_statements(tmp_path: Path) -> None:
    rows = [
        {"sentence": "a", "label": "True", "images": ["train/1.png", "train/2.png"]},
        {"sentence": "b", "label": False, "images": ["images/3.png", "images/4.png"]},
    ]
    file = read_statements(write_json(tmp_path / "nlvr_train.json", rows), "en")
    assert [(row.id, row.label, row.images[0]) for row in file.rows] == [
        ("en:0", 1, "train/1.png"),
        ("en:1", 0, "images/3.png"),
    ], "a row without an id is no translation of the one in its place in another language"
    lines = read_statements(write_lines(tmp_path / "marvl-de.jsonl", rows), "de")
    assert [row.id for row in lines.rows] == ["de:1", "de:2"]


def test_a_test_set_may_keep_its_labels(tmp_path: Path) -> None:
    (row,) = read_statements(write_lines(tmp_path / "t.jsonl", [{**NLVR2, "label": None}]), "en").rows
    assert row.label is None


@pytest.mark.parametrize(
    "row",
    [
        {**NLVR2, "label": "yes"},
        {**NLVR2, "label": 1},
        {**NLVR2, "identifier": "dev-850"},
        {**MARVL, "language": "ta"},
        {**MARVL, "left_img": None},
        {**MARVL, "caption": 7},
        {"sentence": "a", "label": True, "images": ["one.png"], "id": "1"},
    ],
)
def test_statements_name_the_line_that_is_wrong(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [MARVL, row])
    assert broken_at(read_statements, path, "sw") == ("line_broken", "rows.jsonl:2")
