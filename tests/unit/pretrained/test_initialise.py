from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cclm.checkpoint.collective import save_checkpoint
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from cclm.errors import CheckpointError
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions, VisionOptions
from cclm.pretrained.bias_tables import resize_positions
from cclm.pretrained.families import finetuned
from cclm.pretrained.initialise import source_weights, start_model
from cclm.pretrained.source_names import place_source
from tests.left_to_long import left_to_slow
from tests.tiny_families import TINY_BEIT, TINY_SWIN, published_state, wavy_model
from tests.unit.model.hf_towers import CONFIGS

SIGLIP = json.loads(CONFIGS["siglip"].to_json_string(use_diff=False))
State = dict[str, Tensor]


def tower_file(options_name: str) -> State:
    """An image tower as its authors save it: no prefix, and a classifier."""
    options = TINY_SWIN if options_name == "swin" else TINY_BEIT
    state = published_state(wavy_model(options))
    tower = {
        name.removeprefix("vision_encoder."): value
        for name, value in state.items()
        if name.startswith("vision_encoder")
    }
    return {**tower, "head.weight": torch.zeros(3, 16), "head.bias": torch.zeros(3)}


def xlm_roberta_file(num_layers: int) -> State:
    """Layer n is filled with n."""
    source = published_state(wavy_model(TINY_BEIT))
    state: State = {}
    for name, value in source.items():
        if name.startswith("text_encoder.embeddings."):
            state[name.replace("text_encoder", "roberta")] = value
        elif name.startswith("text_encoder.encoder.layer.0."):
            for number in range(num_layers):
                key = name.replace("text_encoder", "roberta").replace("layer.0", f"layer.{number}")
                state[key] = torch.full_like(value, number)
    state["lm_head.dense.weight"], state["lm_head.bias"] = torch.ones(16, 16), torch.ones(30)
    state["lm_head.decoder.weight"] = torch.zeros(30, 16)
    return state


def x2vlm_file() -> State:
    """Two text layers of the English tower, then the cross encoder's one, in one stack."""
    source = published_state(wavy_model(TINY_BEIT))
    state = {
        name: value for name, value in source.items() if not name.startswith(("text_encoder", "cross", "mlm_head"))
    }
    for name, value in source.items():
        if name.startswith("cross_encoder.encoder.layer.0."):
            state[name.replace("cross_encoder", "text_encoder.bert").replace("layer.0", "layer.2")] = value
            if ".crossattention." not in name:
                for number in (0, 1):
                    key = name.replace("cross_encoder", "text_encoder.bert").replace("layer.0", f"layer.{number}")
                    state[key] = torch.zeros_like(value)
        elif name.startswith("mlm_head.predictions.transform"):
            state[name.replace("mlm_head", "text_encoder.cls")] = value
    state["text_encoder.bert.embeddings.word_embeddings.weight"] = torch.zeros(7, 16)
    state["text_encoder.cls.predictions.bias"] = torch.zeros(7)
    return state


def save(folder: Path, **files: State) -> list[Path]:
    paths = []
    for name, state in files.items():
        paths.append(folder / f"{name}.pth")
        torch.save({"model": state}, paths[-1])
    return paths


def test_three_and_four_m_start_from_swin_and_every_second_layer_of_xlm_r(tmp_path: Path) -> None:
    paths = save(tmp_path, swin=tower_file("swin"), xlmr=xlm_roberta_file(8))
    state, report = source_weights(paths, TINY_SWIN)
    model = wavy_model(TINY_SWIN)
    tower = {name: value for name, value in model.state_dict().items() if name.startswith("vision_encoder.")}
    assert all(torch.equal(state[name], value) for name, value in tower.items())
    for number, source in enumerate((1, 3, 5, 7)):
        stack = "text_encoder" if number < 2 else "fusion_encoder"
        assert (state[f"{stack}.stack.layers.{number % 2}.feedforward.widen.weight"] == source).all()
    assert "fusion_encoder.stack.layers.0.cross_attention.query.weight" not in state
    assert (state["masked_lm_decoder.bias"] == 1).all()
    dropped = {entry.key for entry in report.keys if entry.fate == "dropped"}
    assert {"head.weight", "lm_head.decoder.weight"} <= dropped
    missing = {name for name, _ in model.named_parameters()} - set(state)
    assert {name.split(".")[0] for name in missing} == {
        "fusion_encoder",
        "image_projection",
        "text_projection",
        "matching_head",
        "box_head",
        "temperature",
        "masked_lm_transform",
    }


def test_x2vlm_keeps_its_cross_encoder_and_takes_xlm_r_for_texts(tmp_path: Path) -> None:
    state, report = source_weights(save(tmp_path, xvlm=x2vlm_file(), xlmr=xlm_roberta_file(2)), TINY_BEIT)
    model = wavy_model(TINY_BEIT)
    for name, value in model.state_dict().items():
        if name.startswith(("vision_encoder", "fusion_encoder", "masked_lm_transform", "matching_head", "temperature")):
            assert torch.equal(state[name], value), name
    assert (state["text_encoder.stack.layers.1.self_norm.weight"] == 1).all()
    assert {name for name, _ in model.named_parameters()} - set(state) == {
        "masked_lm_decoder.weight",
        "masked_lm_decoder.bias",
    }
    dropped = {entry.key for entry in report.keys if entry.fate == "dropped"}
    assert "text_encoder.bert.embeddings.word_embeddings.weight" in dropped
    assert "text_encoder.bert.encoder.layer.1.output.dense.weight" in dropped


def test_a_beit_file_fills_the_tower_alone(tmp_path: Path) -> None:
    state, _ = source_weights(save(tmp_path, beit=tower_file("beit")), TINY_BEIT)
    assert {name.split(".")[0] for name in state} == {"vision_encoder"}
    assert len(state) == sum(name.startswith("vision_encoder") for name, _ in wavy_model(TINY_BEIT).named_parameters())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: {"bert.weight": torch.zeros(1)}, "expected Swin, BEiT-v2, XLM-R, BERT or X2-VLM weights"),
        (lambda: xlm_roberta_file(3), "expected at least 4 layers, got 3 layers"),
    ],
)
def test_other_sources_are_refused(make: Callable[[], State], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        place_source(make(), TINY_SWIN, "file")


def test_a_source_for_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected weights for places that this model has"):
        source_weights(save(tmp_path, swin=tower_file("swin")), TINY_BEIT)


LARGER: dict[str, tuple[ModelOptions, dict[str, int]]] = {
    "swin": (TINY_SWIN, {"image_size": 64, "window": 8}),
    "beit": (TINY_BEIT, {"image_size": 64}),
    "conv_vit": (replace(TINY_BEIT, vision=VisionOptions()), {"image_size": 64}),
    "siglip": (replace(TINY_BEIT, vision=VisionOptions(architecture="hf", tower=SIGLIP)), {"image_size": 64}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGER)
def test_a_run_goes_on_at_twice_the_resolution(kind: str, tmp_path: Path) -> None:
    """From an export of ours: tables of positions are interpolated, all else is taken as it is."""
    small, changes = LARGER[kind]
    large = replace(small, vision=replace(small.vision, **changes))
    low = wavy_model(small)
    low.save_pretrained(tmp_path)
    high = CCLMModel(CCLMConfig(**asdict(large))).eval()
    assert start_model(high, source_weights([tmp_path], large)[0]) == []
    tables = {name for name, value in low.named_parameters() if value.shape != high.get_parameter(name).shape}
    assert all(name.endswith(("bias_table", "positions")) for name in tables)
    assert bool(tables) == (kind != "siglip"), "this one stretches its positions each time"
    others = [(name, value) for name, value in low.named_parameters() if name not in tables]
    assert all(torch.equal(high.get_parameter(name), value) for name, value in others)
    assert high.encode_images(torch.randn(2, 3, 64, 64)).isfinite().all()


def test_positions_of_a_grid_are_stretched_over_the_same_picture() -> None:
    """A ramp stays a ramp over the same range, row by row."""
    ramp_PD = torch.stack([torch.arange(16.0) // 4, torch.arange(16.0) % 4], 1)
    row, column = resize_positions(ramp_PD, 64).view(8, 8, 2).unbind(-1)
    torch.testing.assert_close(row, column.T)
    assert (column.diff(dim=1) > 0).all() and torch.equal(column, column[:1].expand(8, -1))
    torch.testing.assert_close(column[0, 3:5], torch.tensor([1.25, 1.75]), atol=0.05, rtol=0)


def test_an_export_of_another_width_is_refused(tmp_path: Path) -> None:
    wavy_model(replace(TINY_BEIT, vision=VisionOptions())).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="shape"):
        source_weights([tmp_path], replace(TINY_BEIT, width=32, vision=VisionOptions()))


@pytest.mark.parametrize("place", left_to_slow(["export", "run"], "run"))
def test_fine_tuning_copies_layers_and_leaves_heads(place: str, tmp_path: Path) -> None:
    """Two images: each fusion layer twice. Answers: a decoder like the fusion layers, embeddings and masked-LM head."""
    options = replace(TINY_SWIN, vision=VisionOptions(), fusion=replace(TINY_SWIN.fusion, num_layers=2))
    before = wavy_model(options)
    if place == "export":
        before.save_pretrained(tmp_path)
    else:
        write_run(tmp_path, before)
    state = before.state_dict()

    one_pass = {"fusion": replace(options.fusion, num_memories=2), "class_images": 1}
    pairs_options = replace(finetuned(options, "nlvr", 32), **one_pass)
    pairs = CCLMModel(CCLMConfig(**asdict(pairs_options)))
    fresh = start_model(pairs, source_weights([tmp_path], pairs_options)[0])
    assert fresh and all(name.startswith("class_head.") for name in fresh)
    layer = "fusion_encoder.stack.layers.{}.feedforward.widen.weight"
    for number in range(4):
        assert torch.equal(pairs.get_parameter(layer.format(number)), state[layer.format(number // 2)])

    answers_options = replace(finetuned(options, "vqa", 32), tie_decoder=True)
    answers = CCLMModel(CCLMConfig(**asdict(answers_options)))
    assert start_model(answers, source_weights([tmp_path], answers_options)[0]) == []
    attention = "stack.layers.1.cross_attention.query.weight"
    for ours, theirs in {
        f"answer_decoder.{attention}": f"fusion_encoder.{attention}",
        "answer_decoder.embeddings.words.weight": "text_encoder.embeddings.words.weight",
        "answer_decoder.masked_lm_transform.linear.weight": "masked_lm_transform.linear.weight",
        "answer_decoder.masked_lm_decoder.bias": "masked_lm_decoder.bias",
    }.items():
        assert torch.equal(answers.get_parameter(ours), state[theirs]), ours
    answers.save_pretrained(tmp_path / "answers")
    again = CCLMModel(CCLMConfig(**asdict(answers_options)))
    assert start_model(again, source_weights([tmp_path / "answers"], answers_options)[0]) == []
    assert all(torch.equal(value, answers.get_parameter(name)) for name, value in again.named_parameters())


def write_run(folder: Path, model: CCLMModel) -> None:
    """A run that has saved this model."""
    training = nn.Module()
    training.model = model
    engine = PlainEngine(training, OptimizerConfig(total_steps=1))
    save_checkpoint(engine, folder, 1, {}, keep=1)
