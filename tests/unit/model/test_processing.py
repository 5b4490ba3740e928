from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cclm.hub.hub_folder import hub_tokenizer
from cclm.model.image_processing_cclm import CCLMImageProcessor
from cclm.model.inference import FillMaskOutput
from cclm.model.processing_cclm import CCLMProcessor
from tests.unit.data.data_sets import make_tokenizer

RED, BLUE = Image.new("RGB", (40, 20), "red"), Image.new("RGBA", (8, 8), "blue")


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> CCLMProcessor:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return CCLMProcessor(CCLMImageProcessor(size={"height": 8, "width": 8}), hub_tokenizer(folder, "none", 6))


def test_one_call_for_images_and_texts(processor: CCLMProcessor) -> None:
    found = processor([RED, BLUE], ["a red car", "ein rotes Auto, länger als sechs Token", "赤い車"])
    assert set(found) == {"pixel_values", "input_ids", "attention_mask"}
    assert found["pixel_values"].shape == (2, 3, 8, 8)
    assert found["input_ids"].shape == found["attention_mask"].shape == (3, 6), "padded, and cut at the longest"
    moved = found.to("cpu", torch.bfloat16)
    assert moved["pixel_values"].dtype == torch.bfloat16 and moved["input_ids"].dtype == torch.int64


def test_a_mask_in_a_text_is_text_unless_it_is_asked_for(processor: CCLMProcessor) -> None:
    mask = processor.tokenizer.mask_token_id
    assert mask not in processor(text="aa <mask>")["input_ids"]
    assert mask in processor(text="aa <mask>", split_special_tokens=False)["input_ids"]


def test_either_side_may_be_left_out(processor: CCLMProcessor) -> None:
    assert set(processor(RED)) == {"pixel_values"}
    assert set(processor(text="a")) == {"input_ids", "attention_mask"}
    assert isinstance(processor(text="a", return_tensors=None)["input_ids"], list)
    with pytest.raises(ValueError, match="expected images, text or both, got neither"):
        processor()


def test_options_reach_whom_they_are_for(processor: CCLMProcessor) -> None:
    by_name = processor([RED], ["a b"], size=4, do_normalize=False, padding="max_length", max_length=5)
    grouped = processor(
        [RED],
        ["a b"],
        images_kwargs={"size": 4, "do_normalize": False},
        text_kwargs={"padding": "max_length", "max_length": 5},
        common_kwargs={"return_tensors": "np"},
    )
    assert by_name["pixel_values"].shape == (1, 3, 4, 4) and by_name["pixel_values"].max() == 1.0
    assert by_name["input_ids"].shape == (1, 5)
    assert isinstance(grouped["input_ids"], np.ndarray) and isinstance(grouped["pixel_values"], np.ndarray)
    assert by_name.keys() == grouped.keys()
    for name, value in by_name.items():
        assert np.array_equal(value.numpy(), grouped[name])
    left = processor(text=["a", "a b c"], padding_side="left")
    assert left["attention_mask"][0, 0] == 0 and left["attention_mask"][0, -1] == 1
    pair = processor(text="a", text_pair="b", return_special_tokens_mask=True)
    assert pair["special_tokens_mask"].sum() == 4
    assert len(processor(text="a b c d e f g h i", truncation=False)["input_ids"][0]) > 6
    assert set(processor(RED, audio=None, videos=None)) == {"pixel_values"}


@pytest.mark.parametrize(
    "options",
    [
        {"paddings": True},
        {"do_normalise": False},
        {"text_kwargs": {"paddings": True}},
        {"images_kwargs": {"do_normalise": False}},
        {"do_center_crop": True},
        {"audio": [0.0]},
        {"videos_kwargs": {"fps": 1}},
    ],
    ids=str,
)
def test_options_that_nobody_has_are_refused_by_name(processor: CCLMProcessor, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    deepest = next(iter(value)) if isinstance(value, dict) and name != "videos_kwargs" else name
    with pytest.raises((TypeError, ValueError), match=deepest):
        processor(RED, "a", **options)


def test_lists_of_images_are_several_images_for_a_text(processor: CCLMProcessor) -> None:
    found = processor([[RED, BLUE], [BLUE, BLUE], [RED, RED]])["pixel_values"]
    assert found.shape == (3, 2, 3, 8, 8)
    single = processor([RED, BLUE])["pixel_values"]
    assert torch.equal(found[0], single) and torch.equal(found[1, 0], single[1])
    with pytest.raises(TypeError, match="expected PIL images, got str"):
        processor([["a.png", RED]])


@pytest.mark.parametrize("text", [[], (), 7, True])
def test_what_is_no_text_is_a_sentence(processor: CCLMProcessor, text: Any) -> None:
    with pytest.raises(ValueError, match="expected a text or a list of texts, got"):
        processor(text=text)
    assert processor(text="")["input_ids"].shape[0] == 1, "an empty text is one"


def test_boxes_become_pixels_inside_the_image(processor: CCLMProcessor) -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.4, 0.4]], dtype=torch.bfloat16).float()
    found = processor.post_process_boxes(boxes, [RED.size, (100, 200)])
    expected = torch.tensor([[10.0, 5.0, 30.0, 15.0], [70.0, 0.0, 100.0, 60.0]])
    torch.testing.assert_close(found, expected, atol=0.5, rtol=0.0)


def test_filled_places_become_words(processor: CCLMProcessor) -> None:
    ids = processor.tokenizer("a b", add_special_tokens=False)["input_ids"]
    filled = FillMaskOutput(token_ids=torch.tensor([ids[:2]]), probability=torch.tensor([[0.75, 0.25]]))
    ((first, second),) = processor.decode_masks(filled)
    assert first[0] == processor.tokenizer.decode(ids[:1]).strip() and (first[1], second[1]) == (0.75, 0.25)
