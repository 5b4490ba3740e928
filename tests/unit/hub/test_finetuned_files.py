"""Files of every published fine-tuning, tiny: each is recognised, accounted for key by key, and computes."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from cclm.errors import CheckpointError
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions
from cclm.pretrained.families import FAMILIES, finetuned
from cclm.pretrained.import_cclm import convert, describe
from cclm.pretrained.published_sizes import options_of_state
from tests.left_to_long import left_to_slow
from tests.tiny_families import TINY_BEIT, TINY_SWIN, filled_model, published_state, wavy_model

TASKS: dict[str, ModelOptions] = {
    "retrieval": finetuned(TINY_SWIN, "retrieval", image_size=32),
    "xvnli": finetuned(TINY_SWIN, "xvnli", image_size=32),
    "nlvr": finetuned(TINY_SWIN, "nlvr", image_size=32),
    "vqa": finetuned(TINY_SWIN, "vqa", image_size=32),
    "x2vlm_retrieval": finetuned(TINY_BEIT, "retrieval", image_size=32),
    "x2vlm_xvnli": finetuned(TINY_BEIT, "xvnli", image_size=32),
    "x2vlm_nlvr": finetuned(TINY_BEIT, "nlvr", image_size=32),
}
IDS = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])


def file_of(options: ModelOptions) -> tuple[CCLMModel, dict[str, torch.Tensor]]:
    """A model and the state dict that the fine-tuning code would have saved."""
    model = wavy_model(options)
    state = published_state(model)
    if not options.masked_lm_head:
        state = {name.replace("text_encoder.bert.", "text_encoder."): value for name, value in state.items()}
    return model, state


def pictures(options: ModelOptions) -> torch.Tensor:
    number = max(options.fusion.num_memories, options.class_images)
    images = torch.randn(2 * number, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return images.view(2, number, 3, 32, 32) if number > 1 else images


def outputs(model: CCLMModel) -> torch.Tensor:
    """What the model was fine-tuned for."""
    options, images = model.config.options(), pictures(model.config.options())
    with torch.no_grad():
        if options.num_classes:
            return model.classify(images, IDS, IDS != 1)
        if options.answer_decoder:
            answers = torch.tensor([[0, 9, 2], [0, 8, 2], [0, 7, 2]])
            return torch.cat(model.answer(images, IDS, IDS != 1, answer_ids=answers, top_k=2))
        return model.score(images, IDS, IDS != 1)


@pytest.mark.parametrize("task", left_to_slow(TASKS, "nlvr", "vqa", "xvnli"))
def test_it_is_recognised_and_computes_the_same(task: str) -> None:
    model, state = file_of(TASKS[task])
    options = options_of_state(state, text_heads=2)
    assert options == TASKS[task]
    converted, report = convert(state, options)
    assert [entry.key for entry in report.keys] == list(state)
    loaded = filled_model(options, converted)
    assert torch.equal(outputs(loaded), outputs(model))


@pytest.mark.parametrize("task", left_to_slow(TASKS, "nlvr", "vqa", "xvnli"))
def test_every_key_is_listed(task: str) -> None:
    _, state = file_of(TASKS[task])
    rows = describe(TASKS[task])
    assert {name: shape for name, shape, _, _ in rows} == {name: tuple(value.shape) for name, value in state.items()}
    names = {name for name, _, _, kind in rows if kind == "param"}
    assert all(kind.removeprefix("tied:") in names for _, _, _, kind in rows if kind.startswith("tied:"))


@pytest.mark.parametrize("task", left_to_slow(TASKS, "nlvr", "vqa", "xvnli"))
def test_a_saved_folder_is_the_same_model(tmp_path: Path, task: str) -> None:
    model, _ = file_of(TASKS[task])
    model.save_pretrained(tmp_path)
    loaded = CCLMModel.from_pretrained(tmp_path).eval()
    assert loaded.config.options() == TASKS[task]
    assert torch.equal(outputs(loaded), outputs(model))


@pytest.mark.parametrize("task", ["nlvr", "vqa", "xvnli"])
def test_tables_grow_for_another_resolution(task: str) -> None:
    _, state = file_of(TASKS[task])
    options = options_of_state(state, text_heads=2, image_size=48)
    _, report = convert(state, options)
    changed = {entry.key.rsplit(".", 1)[1] for entry in report.keys if "interpolated" in entry.how}
    assert changed == {"relative_position_bias_table"}
    assert options.vision.image_size == 48


@pytest.mark.parametrize(
    ("task", "method", "sentence"),
    [
        ("xvnli", "score", "matching logits: expected a model with pretraining_heads: true, got one without"),
        ("vqa", "get_text_features", "features: expected a model with pretraining_heads: true"),
        ("retrieval", "classify", "classes: expected a model with num_classes > 0, got one without"),
        ("x2vlm_nlvr", "classify", r"pixel_values: expected 2 images for each text, shape \(B, 2, 3, H, W\)"),
    ],
)
def test_what_a_model_has_not_learned_is_a_sentence(task: str, method: str, sentence: str) -> None:
    model, _ = file_of(TASKS[task])
    given = (IDS,) if method == "get_text_features" else (torch.randn(2, 3, 32, 32), IDS)
    with pytest.raises(ValueError, match=sentence):
        getattr(model, method)(*given)
    with pytest.raises(ValueError, match="answers: expected a model with answer_decoder: true"):
        wavy_model(TINY_SWIN).answer(torch.randn(2, 3, 32, 32), IDS, answer_ids=IDS)


def test_a_classifier_answers_when_it_is_called() -> None:
    model, _ = file_of(TASKS["xvnli"])
    images = pictures(TASKS["xvnli"])
    with torch.no_grad():
        found = model(pixel_values=images, input_ids=IDS, attention_mask=IDS != 1)
    assert torch.equal(found.logits, outputs(model))
    assert found.logits.shape == (2, 3)


def test_fresh_heads_start_as_linears_do() -> None:
    torch.manual_seed(0)
    model = CCLMModel(CCLMConfig(**asdict(TASKS["vqa"])))
    assert model.answer_decoder is not None
    weight = model.answer_decoder.stack.layers[0].feedforward.widen.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.answer_decoder.masked_lm_decoder.weight is model.answer_decoder.embeddings.words.weight


def test_a_damaged_pair_of_layers_is_refused() -> None:
    _, state = file_of(TASKS["nlvr"])
    name = "text_encoder.encoder.layer.5.crossattention.self.value.weight"
    with pytest.raises(CheckpointError, match=rf"expected {name.replace('encoder.', 'encoder.bert.', 1)} to be equal"):
        convert({**state, name: state[name] + 1}, TASKS["nlvr"])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.count("-") > 1 and "x2vlm" not in name])
def test_families_of_fine_tuned_models_are_described(name: str) -> None:
    rows = describe(FAMILIES[name])
    assert len({key for key, *_ in rows}) == len(rows)
    tables = {shape for key, shape, _, _ in rows if key.endswith("bias_table")}
    assert tables == {(529, heads) for heads in (4, 8, 16, 32)}
    assert replace(FAMILIES[name], vision=FAMILIES["cclm-3m"].vision).width == 1024
