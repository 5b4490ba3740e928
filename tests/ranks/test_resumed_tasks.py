"""Phrases with boxes, questions with several answers, captions: interrupted on two ranks, they go on bit by bit.

The tasks that test_finetune.py does not kill in `make test` have these views: RefCOCO `locate`, xGQA, VQA and CVQA
`answer`, xFlickr&CO `retrieve`. MaRVL and NLVR2 have XVNLI's, which is killed there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.files.reading import to_yaml
from tests.ranks.resuming import assert_resumed_bit_by_bit, case_of
from tests.tiny_finetune import alone, stand_in, write_tokenizer

pytestmark = pytest.mark.slow
AUGMENTED = {"size": 16, "crop_area": [0.5, 1.0], "randaugment": {"num_operations": 2, "level": 7, "colour_only": True}}
TASKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "refcoco": (
        "locate",
        {"format": "refcoco", "sources": {"en": {"path": "refcoco/refcoco_train.json"}}},
        {"box_head": True},
    ),
    "vqa": (
        "answer",
        {
            "format": "vqa", "sources": {"en": {"path": "vqa/v2_OpenEnded_mscoco_train2014_questions.json"}},
            "answers": "vqa/answer_list.json", "max_answer_tokens": 4, "answer_weights": "scores",
        },
        {"answer_decoder": True},
    ),
    "xflickrco": (
        "retrieve",
        {
            "sources": {"en": {"path": "flickr30k/annotations/train_ann.jsonl"}}, "negative_group": 6,
            "matching_rows": 6,
        },
        {"pretraining_heads": True, "projection_width": 8, "matching_width": 16},
    ),
}  # fmt: skip
"""Task → its view, the view's settings, and its heads."""


def recipe_of(task: str, folder: Path) -> Path:
    view, own, heads = TASKS[task]
    settings = alone(stand_in(task, folder / task), folder)
    settings["finetune"] |= {"task": task, "epochs": 4}
    common = {
        "folder": str(folder / task),
        "batch_size": 6,
        "max_tokens": 8,
        "images": "images",
        "transform": AUGMENTED,
    }
    settings["views"] = {view: common | own}
    settings["model"] |= {"num_classes": 0, **heads}
    path = folder / f"{task}.yaml"
    path.write_text(to_yaml({**settings, "engine": "plain"}), encoding="utf-8")
    return path


def test_an_interrupted_training_goes_on_bit_by_bit(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    cases = {task: case_of(recipe_of(task, tmp_path)) for task in TASKS}
    (first, _) = assert_resumed_bit_by_bit(cases, tmp_path / "runs")
    assert all(torch.isfinite(torch.tensor(first[task].losses)).all() for task in TASKS)
