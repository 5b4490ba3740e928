"""Every file of a folder of real rows, recognised by its path, read by its reader, and held against counts.json.

What is read, in which language and split, follows from the path alone; nothing here knows a language or a count.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cclm.annotations.captions import XTD10_LANGUAGES, multi30k_paths, read_aligned, read_coco
from cclm.annotations.check import check_folder
from cclm.annotations.layouts import FoundFile
from cclm.annotations.questions import read_answers
from cclm.annotations.statements import STATEMENT_LABELS, XVNLI_LABELS
from cclm.annotations.tasks import DATA_SETS, TASKS
from cclm.languages import language_tag
from tests.samples.sets import QUESTIONS, READ, STATEMENTS, captioned, document, folder, parameters, samples

VOCABULARY = "answer vocabulary"
NAMES = {"MSCOCO-it": "MSCOCO", "COCO-CN ext": "MSCOCO", "Multi30K task 1": "Multi30K", "Multi30K task 2": "Multi30K"}
ANNOTATED = [one for one in captioned(*READ, *STATEMENTS, *QUESTIONS) if one.entry["split"] != VOCABULARY]


def by_name(sample: Any) -> Any:
    return str(sample.path.relative_to(folder()))


def recognised(sample: Any) -> FoundFile:
    """Return what the layouts say of a file; they look at its path only."""
    root = folder()
    assert root is not None
    (found,) = next(filter(None, (data_set.found(root, sample.path) for data_set in DATA_SETS)), [None])
    assert found is not None, f"no layout has {sample.path}"
    return found


@pytest.mark.parametrize("sample", parameters(ANNOTATED, by_name))
def test_a_path_says_set_language_and_split(sample: Any) -> None:
    found = recognised(sample)
    assert found.data_set.name == NAMES.get(sample.set, sample.set)
    assert found.language == language_tag(XTD10_LANGUAGES.get(sample.language, sample.language))
    split = str(sample.entry["split"])
    assert found.is_translated is ("machine-translated" in split)
    if shots := re.fullmatch(r"few-shot (\d\w*)", split):
        assert found.split == f"train_{shots[1]}"


@pytest.mark.parametrize("sample", parameters(ANNOTATED, by_name))
def test_every_entry_is_accounted_for(sample: Any) -> None:
    """Rows, and those that are published, where the file is complete."""
    found = recognised(sample)
    file = found.read()
    assert file.num_entries == sample.entry["rows"]
    if sample.entry["complete"] and found.published_rows() is not None:
        assert found.published_rows() == file.num_entries
    assert file.language == found.language


@pytest.mark.parametrize("sample", parameters(samples("XVNLI"), by_name))
def test_xvnli(sample: Any) -> None:
    file, labels = recognised(sample).read(), dict(sample.counts["labels"])
    assert file.denominators == {"usable": sample.usable["cclm"], "all": sample.usable["iglue_denominator"]}
    assert file.dropped.get("no_label", 0) == labels.pop("-", 0)
    assert Counter(XVNLI_LABELS[row.label] for row in file.rows) == labels
    assert sum(not row.text.strip() for row in file.rows) <= sample.counts["empty_hypotheses"]
    assert len({row.images for row in file.rows}) <= sample.counts["unique_images"]
    if not file.dropped:
        assert len({row.images for row in file.rows}) == sample.counts["unique_images"]


@pytest.mark.parametrize("sample", parameters(samples("MaRVL"), by_name))
def test_marvl(sample: Any) -> None:
    file, counts = recognised(sample).read(), sample.counts
    assert len(file.rows) == sample.usable["pairs"] and not file.dropped
    assert Counter(STATEMENT_LABELS[row.label] for row in file.rows) == counts["labels"]
    num_images = len({image for row in file.rows for image in row.images})
    assert len({row.text for row in file.rows}) == counts["unique_captions"]
    assert len({row.id for row in file.rows}) == counts["unique_ids"]
    few_shot = sample.entry["facts"].get("image_names_with_folder", 0)
    assert sum(row.images[0].startswith("marvl_fewshot/") for row in file.rows) == few_shot
    assert num_images <= counts["unique_images"]
    if not few_shot:
        assert num_images == counts["unique_images"]
        assert len({Path(image).parent.name for row in file.rows for image in row.images}) == counts["concepts"]


@pytest.mark.parametrize("sample", parameters(samples("NLVR2"), by_name))
def test_nlvr2(sample: Any) -> None:
    file, counts = recognised(sample).read(), sample.counts
    labels = {word.strip('"').lower(): number for word, number in counts["labels"].items()}
    assert Counter(STATEMENT_LABELS[row.label] for row in file.rows) == labels
    assert len({row.images for row in file.rows}) == counts["image_pairs"]
    assert len({row.id for row in file.rows}) == counts["unique_identifiers"]
    assert len({row.text for row in file.rows}) == counts["unique_sentences"]


def vocabulary() -> set[str]:
    files = [one for one in samples("GQA") if one.entry["split"] == VOCABULARY]
    return set(read_answers(files[0].path)) if files else set()


@pytest.mark.parametrize("sample", parameters([one for one in ANNOTATED if one.set in QUESTIONS], by_name))
def test_questions(sample: Any) -> None:
    file, counts = recognised(sample).read(), sample.counts
    assert len(file.rows) == sample.usable["questions"] and not file.dropped
    assert len({row.image for row in file.rows}) == counts["unique_images"]
    answers = [answer for row in file.rows for answer, _ in row.answers]
    assert len(set(answers)) == counts.get("unique_answers", len(set(answers)))
    if known := vocabulary():
        assert sum(answer not in known for answer in answers) == counts.get("answers_outside_ans2label", 0)
    per_question = {str(size): number for size, number in Counter(len(row.answers) for row in file.rows).items()}
    assert per_question == counts.get("answers_per_question", {"1": len(file.rows)})
    assert sum(not row.question.strip() for row in file.rows) == counts.get("empty_questions", 0)


@pytest.mark.parametrize(
    "sample", parameters([one for one in samples("GQA") if one.entry["split"] == VOCABULARY], by_name)
)
def test_answers(sample: Any) -> None:
    assert len(read_answers(sample.path)) == sample.usable["answers"]
    assert set(read_answers(sample.path)) == vocabulary()


@pytest.mark.parametrize("sample", parameters(samples("xFlickr&CO", "Flickr30k"), by_name))
def test_xflickrco(sample: Any) -> None:
    file = recognised(sample).read()
    assert len(file.rows) == sample.usable["cclm_images"]
    assert sum(len(row.captions) for row in file.rows) == sample.usable["cclm_captions"]
    assert file.dropped.get("blank_caption", 0) == sample.counts["empty_captions"]
    assert sum(row.id.startswith("coco-") for row in file.rows) <= sample.counts["coco_rows"]


@pytest.mark.parametrize("sample", parameters(samples("WIT"), by_name))
def test_wit(sample: Any) -> None:
    file = recognised(sample).read()
    assert len(file.rows) == sample.usable["cclm_images_by_url"]
    assert sum(len(row.captions) for row in file.rows) == sample.usable["cclm_captions"]
    most = max(len(row.captions) for row in file.rows)
    assert most == sample.counts.get("max_captions_per_image", most)


@pytest.mark.parametrize("sample", parameters(samples("MSCOCO-it"), by_name))
def test_mscoco_it(sample: Any) -> None:
    """Ids are compared as numbers, so a file that writes one in both ways has fewer images than counted."""
    file, listed = recognised(sample).read(), read_coco(sample.path, sample.language, only_listed=True)
    assert sum(len(row.captions) for row in file.rows) == sample.usable["captions_by_image_id"]
    assert len(file.rows) <= sample.usable["images_by_image_id"]
    assert sum(len(row.captions) for row in listed.rows) >= sample.usable["captions_with_listed_image"]
    assert len(listed.rows) >= sample.usable["images_listed_and_annotated"]


@pytest.mark.parametrize(
    "sample",
    parameters([one for one in ANNOTATED if "captions" in one.usable and one.set not in QUESTIONS], by_name),
)
def test_lines_of_captions(sample: Any) -> None:
    file = recognised(sample).read()
    assert sum(len(row.captions) for row in file.rows) == sample.usable["captions"]
    assert file.dropped.get("blank_caption", 0) == sample.counts.get("empty", 0)


@pytest.mark.parametrize(
    "split", parameters(sorted(document().get("expected_by_protocol", {}).get("Multi30K", {})), str)
)
def test_multi30k_as_the_protocol_counts_it(split: str) -> None:
    expected = document()["expected_by_protocol"]["Multi30K"][split]
    if "captions" not in expected:
        pytest.skip(f"{split}: counted file by file above")
    repository = next(one.path for one in samples("Multi30K task 1")).parents[3]
    for language, number in expected["captions"].items():
        file = read_aligned(multi30k_paths(repository, language, split), language)
        assert (len(file.rows), sum(len(row.captions) for row in file.rows)) == (expected["images"], number)


@pytest.mark.parametrize("task", parameters(list(TASKS) if document() else [], str))
def test_the_check_of_a_folder_finds_the_same(task: str) -> None:
    root = folder()
    assert root is not None
    report = check_folder(task, root)
    assert not report.problems
    names = {data_set.name for data_set in TASKS[task]}
    expected = {one.path for one in ANNOTATED if NAMES.get(one.set, one.set) in names}
    assert {one.file.path for one in report.files} == expected
