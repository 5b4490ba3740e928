"""What training lowers is what evaluation reads: losses follow from the predictions, however rows are cut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.annotations.rows import QuestionRow
from cclm.data.batch import Batch, Tokens
from cclm.errors import ConfigError
from cclm.evaluate.scores import scores_by_row
from cclm.model.modeling_cclm import CCLMModel
from cclm.objectives.boxes import box_losses
from cclm.train.step import CrossViewTraining
from cclm.views.annotated.answer import AnswerBatch, AnswerSource, AnswerView
from cclm.views.annotated.classify import ClassifyBatch
from cclm.views.annotated.locate import LocateBatch, LocateView
from cclm.views.annotated.rows import RowSet
from tests.tiny_finetune import alone, stand_in, write_tokenizer
from tests.tiny_training import as_config, dataset_of, module_of

TRAIN = {"xvnli": "annotations/en/train.jsonl", "marvl": "nlvr2/annotations/train.jsonl"}


def settings_of(task: str, tmp_path: Path, **model: Any) -> dict[str, Any]:
    """A task's run with another network."""
    write_tokenizer(tmp_path)
    data = stand_in(task, tmp_path / task)
    if task in ("xgqa", "cvqa"):
        files = {"sources": {"en": {"path": "gqa/annotations/train.json"}}, "format": "gqa", "images": "images"}
        settings = alone(data, tmp_path, **files, dev={}, test={})
        answers = {"answers": "gqa/annotations/trainval_ans2label.json", "max_answer_tokens": 4}
        settings["views"] = {"answer": {**settings["views"]["classify"], **answers}}
        settings["model"] |= {"num_classes": 0, "answer_decoder": True}
    elif task == "refcoco":
        files = {"sources": {"en": {"path": "refcoco/refcoco_train.json"}}, "format": "refcoco", "images": "images"}
        settings = alone(data, tmp_path, **files, dev={}, test={})
        settings["views"] = {"locate": settings["views"]["classify"] | {"transform": {"method": "none", "size": 16}}}
        settings["model"] |= {"num_classes": 0, "box_head": True}
    else:
        form: dict[str, Any] = {"sources": {"en": {"path": TRAIN[task]}}}
        if task == "marvl":
            form |= {"format": "statements", "images": "images", "images_per_row": 2}
        settings = alone(data, tmp_path, **form, dev={}, test={})
    settings["model"] |= model
    return settings


PAIRS: dict[str, dict[str, Any]] = {
    "one pass": {"fusion": {"num_layers": 1, "num_heads": 2, "feedforward_width": 32, "num_memories": 2}},
    "two passes": {"class_images": 2},
}


def step_of(settings: dict[str, Any]) -> tuple[CrossViewTraining, Batch]:
    config = as_config(settings)
    return module_of(config).eval(), dataset_of(config)[0]


@pytest.mark.parametrize("reading", [None, *PAIRS])
def test_the_loss_of_classes_follows_from_the_predictions(tmp_path: Path, reading: str | None) -> None:
    task, model = ("xvnli", {}) if reading is None else ("marvl", {"num_classes": 2, **PAIRS[reading]})
    module, batch = step_of(settings_of(task, tmp_path, **model))
    losses = module(batch)
    own = batch.views["classify"]
    assert isinstance(own, ClassifyBatch)
    with torch.no_grad():
        probability_RC = module.views["classify"].predict(module.model, own)["probability"]  # type: ignore[attr-defined]
    rows = torch.arange(len(own.label_R))
    expected = -probability_RC[rows, own.label_R].log().mean()
    torch.testing.assert_close(losses.total, expected, atol=1e-6, rtol=1e-5)
    assert set(losses.metrics) == {"loss", "classify/classes", "classify/accuracy"}
    right = (probability_RC.argmax(1) == own.label_R).float().mean()
    assert losses.metrics["classify/accuracy"] == pytest.approx(right.item())


def test_two_passes_and_one_are_told_by_the_network_alone(tmp_path: Path) -> None:
    """The view is the same; a first image in place of the second changes the answer in both."""
    for model in PAIRS.values():
        module, batch = step_of(settings_of("marvl", tmp_path, num_classes=2, **model))
        own = batch.views["classify"]
        assert isinstance(own, ClassifyBatch)
        first, second = own.images.chunk(2)
        swapped = replace(own, images_BCHW=torch.cat([second, first]))

        def loss(view: ClassifyBatch, module: CrossViewTraining = module) -> Tensor:
            total: Tensor = module(Batch(step=0, views={"classify": view})).total
            return total

        assert loss(own).item() != loss(swapped).item()


def test_the_loss_of_answers_is_their_likelihood(tmp_path: Path) -> None:
    """Of the five known answers the likeliest by the loss is the one that is predicted."""
    module, batch = step_of(settings_of("xgqa", tmp_path))
    own = batch.views["answer"]
    assert isinstance(own, AnswerBatch)
    config = as_config(settings_of("xgqa", tmp_path))
    source = dataset_of(config).sources["answer"]
    rows = 6 * [source.sets[0].rows[0]]  # type: ignore[attr-defined]
    evaluated = source.evaluated(rows)  # type: ignore[attr-defined]
    model: CCLMModel = module.model
    with torch.no_grad():
        predicted = module.views["answer"].predict(model, evaluated)["answer"][0].item()  # type: ignore[attr-defined]
        losses = []
        for ids, mask in zip(evaluated.candidates.ids_BL, evaluated.candidates.mask_BL, strict=True):
            answers = replace(evaluated.answers, ids_BL=ids.expand(6, -1), mask_BL=mask.expand(6, -1))
            one = replace(evaluated, answers=answers, candidates=None)
            losses.append(module(Batch(step=0, views={"answer": one})).total.item())
    assert len(set(losses)) == 5
    assert predicted in sorted(range(5), key=losses.__getitem__)[:2], "the first token counts twice, so nearly"
    assert torch.isfinite(module(batch).total)


def test_the_choice_with_the_likeliest_tokens_is_taken(tmp_path: Path) -> None:
    settings = settings_of("cvqa", tmp_path)
    module, _ = step_of(settings)
    path = tmp_path / "cvqa" / "cvqa" / "data" / "test-00000-of-00001.parquet"
    rows = RowSet(path, "cvqa_english", "bn").rows[:3]
    source, view = dataset_of(as_config(settings)).sources["answer"], module.views["answer"]
    assert isinstance(source, AnswerSource) and isinstance(view, AnswerView)
    batch = source.evaluated(rows)
    assert batch.choices is not None and batch.candidates is None
    with torch.no_grad():
        outputs = view.predict(module.model, batch)
        for row, line in zip(rows, view.judge(rows, outputs), strict=True):
            own = source.evaluated(6 * [row])
            assert own.choices is not None and isinstance(row, QuestionRow)
            losses = []
            for ids, mask in zip(own.choices.ids_BL[:4], own.choices.mask_BL[:4], strict=True):
                answers = Tokens(ids_BL=ids.expand(6, -1), mask_BL=mask.expand(6, -1))
                one = replace(own, answers=answers, choices=None, question_C=None)
                losses.append(module(Batch(step=0, views={"answer": one})).total.item() / (int(mask.sum()) - 1))
            assert line["predicted"] == row.choices[losses.index(min(losses))]
            assert (line["id"], line["answers"]) == (row.id, [[row.answers[0][0], 1.0]])
    with pytest.raises(ConfigError):
        source.evaluated([rows[0], replace(rows[1], choices=())])  # type: ignore[call-arg]


def test_questions_without_answers_are_answered_and_not_scored(tmp_path: Path) -> None:
    settings = settings_of("xgqa", tmp_path)
    module, _ = step_of(settings)
    source, view = dataset_of(as_config(settings)).sources["answer"], module.views["answer"]
    assert isinstance(source, AnswerSource) and isinstance(view, AnswerView)
    rows = [replace(row, answers=()) for row in source.sets[0].rows[:2]]  # type: ignore[attr-defined]
    with torch.no_grad():
        lines = view.judge(rows, view.predict(module.model, source.evaluated(rows)))
    assert [line["answers"] for line in lines] == [[], []] and all(line["predicted"] for line in lines)
    assert scores_by_row("exact_match", lines) == scores_by_row("vqa_score", lines) == {}
    rows = [replace(rows[0], answers=(("mauve", 1.0),)), replace(rows[1], answers=(("mauve", 0.3), ("red", 1.0)))]
    with torch.no_grad():
        lines = view.judge(rows, view.predict(module.model, source.evaluated(rows)))
    assert [line.get("is_unknown") for line in lines] == [True, None], "red is in the list, mauve is not"
    settings["views"]["answer"]["format"] = "rows"
    path = tmp_path / "xgqa" / "asked.jsonl"
    path.write_text('{"images": ["red_box.jpg"], "text": "which shape", "answers": {}}\n' * 6)
    settings["views"]["answer"]["sources"] = {"en": {"path": "asked.jsonl"}}
    with pytest.raises(ConfigError):
        dataset_of(as_config(settings))


def test_the_loss_of_boxes_follows_from_the_predictions(tmp_path: Path) -> None:
    module, batch = step_of(settings_of("refcoco", tmp_path))
    losses, own, view = module(batch), batch.views["locate"], module.views["locate"]
    assert isinstance(own, LocateBatch) and isinstance(view, LocateView)
    with torch.no_grad():
        box_R4 = view.predict(module.model, own)["box"] / own.size_R2.repeat(1, 2)
    centred_R4 = torch.cat([box_R4[:, :2] + box_R4[:, 2:] / 2, box_R4[:, 2:]], 1)
    distance_R, overlap_R = box_losses(centred_R4, own.box_R4)
    torch.testing.assert_close(losses.total, (distance_R + overlap_R).mean(), atol=1e-6, rtol=1e-5)
    assert set(losses.metrics) == {"loss", "locate/box", "locate/giou"}


@pytest.mark.parametrize("task", ["xvnli", "xgqa", "refcoco"])
def test_micro_batches_change_no_loss(tmp_path: Path, task: str) -> None:
    settings = settings_of(task, tmp_path)
    module, batch = step_of(settings)
    settings["data"]["micro_batches"] = 2
    parts = dataset_of(as_config(settings))[0].parts
    known = [module(part).metrics for part in parts]
    shared = module.sharing(parts[0]).share(known)
    found = [module(replace(part, shared=shared)) for part in parts]
    mean = torch.stack([losses.total for losses in found]).mean()
    torch.testing.assert_close(mean, module(batch).total, atol=1e-6, rtol=1e-5)


def test_a_file_of_answers_to_other_questions_is_refused(tmp_path: Path) -> None:
    config = as_config(settings_of("xgqa", tmp_path))
    (known,) = (tmp_path / "xgqa").rglob("trainval_ans2label.json")
    known.write_text(json.dumps(["yes", "red"]), encoding="utf-8")
    dataset_of(config)
    known.write_text(json.dumps(["yes", "no"]), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        dataset_of(config)
    assert caught.value.where == "views.answer.answers"
