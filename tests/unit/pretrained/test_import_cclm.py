from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cclm.errors import CheckpointError
from cclm.model.options import ModelOptions
from cclm.pretrained.bias_tables import resize_bias_table
from cclm.pretrained.families import FAMILIES
from cclm.pretrained.import_cclm import convert, describe, fit_weights
from cclm.pretrained.published_names import published_weights, to_published
from cclm.pretrained.published_sizes import family_of, options_of_state
from tests.tiny_families import TINY, TINY_BEIT, TINY_SWIN, filled_model, published_state, wavy_model

LAYOUTS = list(TINY)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_parameter_has_one_published_place(layout: str) -> None:
    model, weights = wavy_model(TINY[layout]), published_weights(TINY[layout])
    assert sorted(weight.ours for weight in weights) == sorted(name for name, _ in model.named_parameters())
    theirs = [name for weight in weights for name in weight.theirs]
    assert len(theirs) == len(set(theirs))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_work_in_both_directions(layout: str) -> None:
    model, weights = wavy_model(TINY[layout]), published_weights(TINY[layout])
    state = dict(model.named_parameters())
    parts = {name: (value,) for name, value in to_published(state, weights).items()}
    back, _ = fit_weights(parts, weights, TINY[layout], "state")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert to_published(state, weights)["temp"].shape == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_state_becomes_the_model_it_came_from(layout: str) -> None:
    model = wavy_model(TINY[layout])
    published = published_state(model)
    state, report = convert(published, TINY[layout])
    loaded = filled_model(TINY[layout], state)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert [entry.key for entry in report.keys] == list(published)
    assert report.count("used") + report.count("converted") + report.count("dropped") == len(published)
    assert "follow from the sizes" in report.summary()
    by_key = {entry.key: entry for entry in report.keys}
    assert by_key["temp"].how == "temperature.value, reshaped to one dimension"
    assert by_key["vision_encoder.patch_embed.proj.weight"].fate == "used"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_are_read_off_the_weights(layout: str) -> None:
    options = options_of_state(published_state(wavy_model(TINY[layout])), text_heads=2)
    assert options == TINY[layout]


def retrieval_state(layout: str) -> dict[str, torch.Tensor]:
    """As the fine-tuning code saves it: no masked-LM and box head, and in the Swin layout no `bert.`"""
    heads = ("text_encoder.cls.", "mlm_head.", "bbox_head.")
    state = published_state(wavy_model(TINY[layout]))
    return {name.replace("encoder.bert.", "encoder."): state[name] for name in state if not name.startswith(heads)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_fine_tuned_for_retrieval_has_fewer_heads(layout: str) -> None:
    model, published = wavy_model(TINY[layout]), retrieval_state(layout)
    options = options_of_state(published, text_heads=2)
    assert options == replace(TINY[layout], box_head=False, masked_lm_head=False, tie_decoder=False)
    state, report = convert(published, options)
    loaded = filled_model(options, state)
    assert [entry.key for entry in report.keys] == list(published)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    images, ids = torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    with torch.no_grad():
        assert torch.equal(loaded.score(images, ids, ids != 1), model.score(images, ids, ids != 1))
    with pytest.raises(ValueError, match="expected a model with masked_lm_head: true"):
        loaded.masked_lm_states(torch.zeros(1, 16))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if not name.endswith("nlvr")]
)  # its values tell, not shapes
def test_sizes_of_the_published_families_need_no_hint(name: str) -> None:
    rows = describe(FAMILIES[name])
    state = {key: torch.empty(shape, device="meta") for key, shape, _, _ in rows}
    options = options_of_state(state)
    assert options == FAMILIES[name]
    family = family_of(options)
    assert family is not None
    assert name.replace("4m", "3m").startswith(family)
    assert family_of(TINY_SWIN) is None


@pytest.mark.parametrize(("layout", "size"), [("swin", 48), ("beit", 48)])
def test_another_resolution_interpolates_the_tables(layout: str, size: int) -> None:
    published = published_state(wavy_model(TINY[layout]))
    options = options_of_state(published, text_heads=2, image_size=size)
    state, report = convert(published, options)
    name = "vision_encoder.blocks.1.attn" if layout == "beit" else "vision_encoder.layers.1.blocks.1.attn"
    table = published[f"{name}.relative_position_bias_table"]
    ours = name.replace("layers", "stages").replace("attn", "attention.position.bias_table")
    extra = 3 if layout == "beit" else 0
    assert torch.equal(state[ours], resize_bias_table(table, 11**2 + extra, extra))
    fate = next(entry for entry in report.keys if entry.key.startswith(f"{name}.relative_position_bias"))
    assert fate.fate == "converted"
    assert "interpolated" in fate.how
    model = filled_model(options, state)
    assert model.encode_images(torch.randn(1, 3, size, size)).shape == (1, 1 + 36, 16)


def altered(options: ModelOptions, **changes: object) -> dict[str, torch.Tensor]:
    state = published_state(wavy_model(options))
    for name, value in changes.items():
        state.pop(name) if value is None else state.__setitem__(name, value)  # type: ignore[arg-type]
    return state


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"surprise.weight": torch.zeros(2)},
            r"got 1 left over \(surprise.weight\). What can be imported: pre-trained",
        ),
        ({"cls_head.0.weight": torch.zeros(2)}, r"left over \(cls_head.0.weight\). What can be imported: .*answers"),
        ({"vision_proj.bias": None}, r"got 1 missing \(vision_proj.bias\)"),
        ({"vision_proj.bias": torch.zeros(9)}, r"expected vision_proj.bias of shape \[8\], got \[9\]"),
        (
            {"text_encoder.cls.predictions.decoder.weight": torch.zeros(30, 16)},
            "decoder.weight to be equal to text_encoder.bert.embeddings.word_embeddings.weight",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        convert(altered(TINY_SWIN, **changes), TINY_SWIN)


def test_another_layout_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"expected a state dict of CCLM-3M/4M \(Swin\) or CCLM-X2VLM"):
        options_of_state({"bert.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="missing"):
        convert(published_state(wavy_model(TINY_BEIT)), TINY_SWIN)


@pytest.mark.parametrize(
    ("family", "num_keys", "num_parameters"),
    [
        ("cclm-3m", 644, 525_677_393),
        ("cclm-4m", 644, 525_677_393),
        ("cclm-x2vlm-base", 587, 615_540_825),
        ("cclm-x2vlm-large", 983, 1_225_073_817),
    ],
)
def test_counts_of_the_published_models(family: str, num_keys: int, num_parameters: int) -> None:
    rows = describe(FAMILIES[family])
    assert len(rows) == len({name for name, *_ in rows}) == num_keys
    assert sum(math.prod(shape) for _, shape, _, kind in rows if kind == "param") == num_parameters


def test_a_box_head_is_part_of_every_published_file() -> None:
    without = replace(TINY_SWIN, box_head=False)
    with pytest.raises(CheckpointError, match=r"6 left over \(bbox_head"):
        convert(published_state(wavy_model(TINY_SWIN)), without)
