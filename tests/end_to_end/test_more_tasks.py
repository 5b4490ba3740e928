"""Tasks that CCLM never published, each on its stand-in data under ZeRO-3 on two ranks: learned, measured, derived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cclm.evaluate.results import ResultStore, derive, predictions_of
from tests.left_to_long import left_to_long
from tests.tiny_finetune import SEEDS, command, pretrained_run, run, run_here, stand_in

pytestmark = pytest.mark.slow
TINY = {"max_tokens": 8, "transform.method": "none"}
SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "nlvr2 for two epochs": ("classify", {"batch_size": 9}, {"finetune.epochs": 2, "finetune.first_evaluation": 1}),
    "nlvr2": ("classify", {"batch_size": 9}, {"finetune.epochs": 160, "optimizer.learning_rate": 0.002}),
    "cvqa": (
        "answer",
        {
            "batch_size": 6, "max_answer_tokens": 4, "test_format": "cvqa_english",
            "test": dict.fromkeys(("bn", "sw"), "cvqa/data/test-00000-of-00001.parquet"),
        },
        {"finetune.epochs": 120, "finetune.protocol": "translate-test"},
    ),
    "vqa": ("answer", {"batch_size": 6, "max_answer_tokens": 4}, {"finetune.epochs": 120}),
    "refcoco": ("locate", {"batch_size": 10}, {"finetune.epochs": 120, "optimizer.learning_rate": 0.002}),
}  # fmt: skip
"""Task (and how it is trained) → its view, small settings of it, and others."""
FOUND = {
    "nlvr2": [("en", "test", "accuracy", 27)],
    "cvqa": [("bn", "test", "exact_match", 12), ("sw", "test", "exact_match", 12)],
    "vqa": [("en", "val2014", "vqa_score", 12)],
    "refcoco": [("en", "testA", "iou50", 20), ("en", "testB", "iou50", 20)],
}
"""Task → language, split, metric and rows of its results."""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained_run(tmp_path_factory.mktemp("pretrained"))


@pytest.mark.parametrize("case", left_to_long(SETTINGS, "cvqa", "vqa", "nlvr2"))
def test_it_learns_and_every_number_can_be_derived(pretrained: Path, tmp_path: Path, case: str) -> None:
    view, sizes, others = SETTINGS[case]
    task, _, is_short = case.partition(" ")
    settings: dict[str, Any] = {
        **{f"views.{view}.{key}": value for key, value in {**TINY, **sizes}.items()},
        "optimizer.learning_rate": 0.004,
        "optimizer.max_grad_norm": 1,
        "finetune.first_evaluation": 60,
        "finetune.evaluate_every": 30,
        **others,
    }
    data = stand_in(task, tmp_path / "data")
    for seed in SEEDS:
        folder = tmp_path / f"run-{seed}"
        run_here(command(task, pretrained, data, folder, {**settings, "seed": seed}), ranks=2)
        results = ResultStore(folder / "results.jsonl").read()
        has_learned = all(result.value >= 95 for result in results)
        if has_learned or is_short:
            break
    assert has_learned or is_short
    found = [(one.language, one.split, one.metric, one.num_rows) for one in results]
    assert found == FOUND[task]
    for result in results:
        assert result.task == task
        assert result.selected_on == ("last" if task == "vqa" else "dev")
        assert len(predictions_of(result, folder)) == result.num_rows
        assert derive(result, folder) == result.value
    if is_short:
        measured_again(folder)


def measured_again(folder: Path) -> None:
    """The finished run on its own test file, as if that were a translation, and in one process, not two."""
    run(["-m", "finetune", "measure", str(folder), "--finetune.protocol", "translate-test"])
    (first,), (again,) = (
        ResultStore(where / "results.jsonl").read() for where in (folder, folder / "measured" / "translate-test")
    )
    assert (first.protocol, again.protocol) == ("single-language", "translate-test")
    for name in (
        "model",
        "value",
        "num_rows",
        "selected_on",
        "seed",
        "checkpoint",
        "data_sha256",
        "predictions_sha256",
    ):
        assert getattr(first, name) == getattr(again, name), name
