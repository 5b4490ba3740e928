"""The states inside the encoders, layer by layer, and the weights that negatives are drawn with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cclm.model.modeling_cclm import CCLMModel
from cclm.objectives.matching import negative_weights
from tests.golden.cases import Runner
from tests.golden.sets import GoldenSet
from tests.golden.test_cases import expect_close


@dataclass
class FirstCalls:
    """What each module returned when it first ran."""

    values: dict[str, Tensor] = field(default_factory=dict)

    def watch(self, model: CCLMModel, names: list[str]) -> None:
        """Listen to these modules."""
        for name in names:
            model.get_submodule(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            self.values.setdefault(name, output.detach())

        return keep


def module_of(golden: GoldenSet, what: str) -> str | None:
    """Our module for the golden file's name of a state."""
    num_text = golden.options.text.num_layers
    if match := re.fullmatch(r"text\.layer\.(\d+)", what):
        number = int(match[1])
        in_text = number < num_text
        return f"{'text' if in_text else 'fusion'}_encoder.stack.layers.{number if in_text else number - num_text}"
    if match := re.fullmatch(r"cross\.layer\.(\d+)", what):
        return f"fusion_encoder.stack.layers.{match[1]}"
    if match := re.fullmatch(r"swin\.layers\.(\d+)(\.blocks\.\d+)?", what):
        return f"vision_encoder.stages.{match[1]}{match[2] or ''}"
    if match := re.fullmatch(r"beit\.blocks\.(\d+)", what):
        return f"vision_encoder.blocks.{match[1]}"
    others = {"text.embeddings": "text_encoder.embeddings", "beit.fc_norm": "vision_encoder.final_norm"}
    return others.get(what, "vision_encoder.patches" if what.endswith(".patch_embed") else None)


def text_mask(golden: GoldenSet, case: str, what: str) -> Tensor:
    """Real tokens of a text state: fused ones belong to the query, which in a sentence pair is the second text."""
    inputs = golden.inputs(case)
    is_fused = (module_of(golden, what) or "").startswith("fusion")
    if case == "tlm" and is_fused:
        return inputs["text_atts_masked"].bool()
    return inputs["text_atts_2" if is_fused and "text_ids_2" in inputs and case != "itc2" else "text_atts"].bool()


@pytest.mark.parametrize("case", ["img1", "region", "para", "tlm"])
def test_layer_by_layer(golden: GoldenSet, case: str) -> None:
    if case not in golden.cases:
        pytest.skip(f"{golden.folder.name} has no case {case}")
    names = [name.removeprefix(f"{case}.") for name in golden.acts if name.startswith(f"{case}.")]
    places = {what: place for what in names if (place := module_of(golden, what))}
    model, calls = golden.model("padded"), FirstCalls()
    calls.watch(model, sorted(set(places.values())))
    with torch.no_grad():
        Runner(model).run(case, golden.inputs(case), golden.negatives(case))
    assert len(places) >= 3
    for what, place in places.items():
        expected, value = golden.acts[f"{case}.{what}"], calls.values[place]
        if what.startswith(("text.", "cross.")):
            mask = text_mask(golden, case, what)
            value = value.view(-1, *expected.shape[1:])[: expected.shape[0]]
            value, expected = value[mask], expected[mask]
        elif what == "beit.patch_embed":
            value = value.flatten(2).transpose(1, 2)
        expect_close(value.reshape(expected.shape), expected, f"{case}.{what}")


@pytest.mark.parametrize("case", ["img1", "region", "para"])
def test_weights_of_the_negatives(golden: GoldenSet, case: str) -> None:
    logits = golden.acts[f"{case}.contrastive_logits"]
    same = torch.eye(logits.shape[0], dtype=torch.bool)
    expect_close(negative_weights(logits, same), golden.acts[f"{case}.neg.weights_i2t"], f"{case} first to second")
    expect_close(negative_weights(logits.T, same), golden.acts[f"{case}.neg.weights_t2i"], f"{case} second to first")


@pytest.mark.parametrize("layout", ["padded", "packed", "grouped"])
def test_the_token_layout_does_not_matter(golden: GoldenSet, layout: str) -> None:
    with torch.no_grad():
        outcome = Runner(golden.model(layout)).run("para", golden.inputs("para"), golden.negatives("para"))
    for name, expected in golden.meta["cases"]["para"]["loss"].items():
        assert outcome.losses[name].item() == pytest.approx(expected, abs=1e-5, rel=1e-4)
