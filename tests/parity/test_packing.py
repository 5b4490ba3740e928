"""Grouped and packed token layouts against the padded rectangle: values and every gradient of the whole network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from cclm.model.modeling_cclm import CCLMModel
from cclm.model.packing import concatenate_padded
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config, dataset_of, module_of
from tests.unit.model.tiny import tiny_images, tiny_model, tiny_texts

TOLERANCE = {"atol": 2e-5, "rtol": 2e-4}
"""float32: sums over tokens run in another order, and gradients pass through a softmax and several norms."""
VARIANTS: dict[str, dict[str, Any]] = {
    "as in the demo": {"text": {"pooling": "mean_first"}, "fusion": {"null_memory": True}},
    "as published": {
        "text": {"norm_position": "post", "pooling": "cls", "initializer_range": 0.2},
        "fusion": {"norm_position": "post", "initializer_range": 0.2},
    },
    "mean pooling": {"text": {"pooling": "mean"}, "fusion": {"pooling": "mean"}},
}


def outputs(model: CCLMModel, lengths: tuple[int, ...], columns: int) -> dict[str, Tensor]:
    """Everything that a training step reads, with both kinds of memory in one fusion call."""
    ids_BL, mask_BL = tiny_texts(lengths, columns)
    batch = len(lengths)
    image_BND, text_BLD = model.encode_images(tiny_images(batch)), model.encode_texts(ids_BL, mask_BL)
    everywhere = torch.ones(image_BND.shape[:2], dtype=torch.bool)
    memory, memory_mask = concatenate_padded([(image_BND, everywhere), (text_BLD.flip(0), mask_BL.flip(0))])
    query, query_mask = torch.cat([text_BLD, text_BLD]), torch.cat([mask_BL, mask_BL])
    fused_BLD = model.fuse(query, query_mask, memory, memory_mask)
    hidden_TD = model.masked_lm_states(fused_BLD[query_mask])
    return {
        "text": text_BLD,
        "feature": model.project_texts(text_BLD, mask_BL),
        "fused": fused_BLD,
        "match": model.match_logits(fused_BLD, query_mask),
        "masked lm": model.decode_with(hidden_TD, functional.linear),
    }


def gradients(model: CCLMModel, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a fixed random combination of all outputs."""
    torch.manual_seed(7)
    model.zero_grad()
    torch.stack([(value * torch.randn_like(value)).mean() for value in found.values()]).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fast", ["packed", "grouped"])
@settings(max_examples=5, deadline=None)
@given(lengths=st.lists(st.integers(1, 10), min_size=1, max_size=6).map(tuple), spare=st.integers(0, 1))
def test_the_layout_does_not_change_values_or_gradients(
    fast: str, variant: str, lengths: tuple[int, ...], spare: int
) -> None:
    torch.set_num_threads(1)
    columns = max(lengths) + spare
    twin = tiny_model(token_layout="padded", **VARIANTS[variant])
    model = tiny_model(token_layout=fast, **VARIANTS[variant])
    expected, found = outputs(twin, lengths, columns), outputs(model, lengths, columns)
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
    expected_gradients, found_gradients = gradients(twin, expected), gradients(model, found)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(
            found_gradients[name], gradient, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_bfloat16_layouts_agree_as_far_as_bfloat16_goes() -> None:
    lengths = (5, 1, 9, 5, 2)
    twin, model = (tiny_model(token_layout=name).bfloat16() for name in ("padded", "grouped"))
    ids_BL, mask_BL = tiny_texts(lengths)
    expected, found = twin.encode_texts(ids_BL, mask_BL), model.encode_texts(ids_BL, mask_BL)
    # eight bits of mantissa, states of size about 1, two layers: a few units in the last place
    torch.testing.assert_close(found, expected, atol=0.06, rtol=0.02)


@pytest.mark.slow
def test_an_epoch_has_few_sizes_of_texts_if_they_are_filled_up(tmp_path: Path) -> None:
    """The sizes that blocks see, and the losses, which do not change."""
    settings = recipe(write_corpus(tmp_path / "corpus"), tmp_path / "run")
    settings["model"]["token_layout"] = "packed"
    sizes, losses = dict[int, set[tuple[int, int]]](), dict[int, list[float]]()
    for multiple in (1, 128):
        config = as_config(settings | {"kernels": {"token_multiple": multiple}})
        module, dataset, seen = module_of(config), dataset_of(config), list[int]()
        for encoder in (module.model.text_encoder, module.model.fusion_encoder):
            encoder.stack.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        with torch.no_grad():
            losses[multiple] = [float(module(dataset[step]).total) for step in range(12)]
        sizes[multiple] = set(zip(seen[::2], seen[1::2], strict=True))
    assert losses[128] == pytest.approx(losses[1], rel=1e-6)
    assert len(sizes[1]) > 8 and len(sizes[128]) <= 4, sizes
