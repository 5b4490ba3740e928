"""What a run has fine-tuned, exported: `AutoModel` loads it, and it gives the task's own predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from cclm.checkpoint.collective import save_checkpoint
from cclm.config import RunConfig
from cclm.engine.plain import PlainEngine
from cclm.files.reading import to_yaml
from cclm.hub.export import SHARD_BYTES
from cclm.hub.hub_folder import write_folder
from cclm.hub.model_card import model_card
from cclm.hub.open import open_model
from cclm.hub.weight_files import in_memory
from cclm.train.step import CrossViewTraining
from cclm.views.annotated.rows import RowSet
from cclm.views.annotated.source import AnnotatedSource, AnnotatedView
from tests.tiny_training import as_config, dataset_of, module_of
from tests.unit.hub.test_model_card import PARITY
from tests.unit.hub.test_model_card import facts as card_facts
from tests.unit.views.annotated.test_heads import PAIRS, settings_of

pytestmark = pytest.mark.slow


def exported(config: RunConfig, module: CrossViewTraining, folder: Path) -> Any:
    """The model of a run's only checkpoint, as another program loads it."""
    run = Path(config.run_folder)
    save_checkpoint(PlainEngine(module, config.optimizer), run, 1, {}, keep=1)
    (run / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    opened = open_model(run)
    source = in_memory(opened.model.state_dict())
    write_folder(opened, folder, source, dtype="float32", shard_bytes=SHARD_BYTES)
    return AutoModel.from_pretrained(folder, trust_remote_code=True).eval()


def answered(task: str, batch: Any, pixels: Tensor, model: Any) -> dict[str, Tensor]:
    """What the view predicts, by the methods of an export alone."""
    text = {"input_ids": batch.text.ids_BL, "attention_mask": batch.text.mask_BL}
    if task in ("xvnli", "marvl"):
        return {"probability": model.classify(pixels, **text).softmax(-1)}
    if task == "refcoco":
        box_R4 = model.locate(pixels, **text)
        corner_R4 = torch.cat([box_R4[:, :2] - box_R4[:, 2:] / 2, box_R4[:, 2:]], 1)
        return {"box": corner_R4 * batch.size_R2.repeat(1, 2)}
    answers = batch.candidates if batch.choices is None else batch.choices
    ids = {"answer_ids": answers.ids_BL, "answer_attention_mask": answers.mask_BL}
    if batch.choices is not None:
        return {"choice": model.score_answers(pixels, **text, **ids, question_of=batch.question_C)}
    probability, number = model.answer(pixels, **text, **ids)
    return {"answer": number[:, 0], "probability": probability[:, 0]}


@pytest.mark.parametrize("task", ["xvnli", "marvl", "xgqa", "cvqa", "refcoco"])
def test_it_predicts_what_the_run_predicts(tmp_path: Path, task: str) -> None:
    model = {"num_classes": 2, **PAIRS["one pass"]} if task == "marvl" else {}
    config = as_config(settings_of(task, tmp_path, **model))
    module, (name, source) = module_of(config).eval(), next(iter(dataset_of(config).sources.items()))
    view, rows = module.views[name], source.sets[0].rows[:5]
    assert isinstance(source, AnnotatedSource) and isinstance(view, AnnotatedView)
    if task == "cvqa":
        rows = RowSet(tmp_path / "cvqa" / "cvqa" / "data" / "test-00000-of-00001.parquet", "cvqa", "bn").rows[:5]
    batch, loaded = source.evaluated(rows), exported(config, module, tmp_path / "export")
    pixels = batch.normalised().images
    pixels = torch.stack(pixels.chunk(2), 1) if task == "marvl" else pixels
    with torch.no_grad():
        expected, found = view.predict(module.model, batch), answered(task, batch, pixels, loaded)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-5, msg=key)
    method = {"xvnli": "classify", "marvl": "classify", "refcoco": "locate"}.get(task, "answer")
    assert f"model.{method}(" in model_card(card_facts(config=config, sets=[]), PARITY, 1)


def test_a_model_fine_tuned_for_retrieval_still_ranks(tmp_path: Path) -> None:
    settings = settings_of("xvnli", tmp_path)
    settings["model"] |= {"num_classes": 0, "pretraining_heads": True}
    settings["views"] = {"image_text": {"sources": {"none": {"path": str(tmp_path)}}, "max_tokens": 8,
                                        "transform": {"size": 16}}}  # fmt: skip
    config = as_config(settings)
    module = module_of(config).eval()
    loaded = exported(config, module, tmp_path / "export")
    images, ids = torch.randn(3, 3, 16, 16), torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    with torch.no_grad():
        expected, found = (model.rerank(images, ids, top_k=2) for model in (module.model, loaded))
    assert torch.equal(found.image, expected.image)
    torch.testing.assert_close(found.score, expected.score, atol=1e-5, rtol=1e-5)
