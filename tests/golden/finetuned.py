"""Fine-tuned models of a golden set: pre-trained weights at the fine-tuning resolution, names without `bert.`"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions
from cclm.pretrained.families import Task, finetuned
from cclm.pretrained.import_cclm import convert, describe
from cclm.pretrained.published_names import to_published
from tests.golden.sets import GoldenSet
from tests.golden.test_cases import GRADIENT, TEMPERATURE_GRADIENT
from tests.tiny_families import filled_model


@dataclass(frozen=True)
class Finetuned:
    """What the set recorded after fine-tuning's loading step."""

    golden: GoldenSet

    @cached_property
    def record(self) -> dict[str, Tensor]:
        """finetune.safetensors."""
        return self.golden.tensors("finetune")

    @property
    def options(self) -> ModelOptions:
        """Of the model at the fine-tuning resolution."""
        options, meta = self.golden.options, self.golden.meta
        vision = replace(options.vision, image_size=meta["finetune_config"]["image_res"])
        if not self.golden.is_x2vlm:
            vision = replace(vision, window=meta["vision_config_finetune"]["window_size"])
        return replace(options, vision=vision)

    def model(self) -> CCLMModel:
        """Pre-trained weights, tables resized."""
        state, _ = convert(self.golden.state, self.options)
        model = filled_model(self.options, {name: value.clone() for name, value in state.items()})
        return model.requires_grad_()

    def facts(self, tag: str) -> dict[str, Any]:
        """What meta.json says about a task."""
        found: dict[str, Any] = self.golden.meta["finetune"].get(tag, {})
        return found

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """By the names of a fine-tuned file."""
        renamed = to_published(tensors, self.golden.weights)
        return {name.replace("text_encoder.bert.", "text_encoder."): value for name, value in renamed.items()}

    def file(self, task: Task) -> dict[str, Tensor]:
        """The state that fine-tuning starts a task from (Swin layout): other heads, layers doubled or copied."""
        known = self.published({name: value.detach() for name, value in self.model().named_parameters()})
        heads = ("text_encoder.cls.", "itm_head.", "bbox_head.", "text_proj.", "vision_proj.", "temp")
        state = {name: value for name, value in known.items() if not name.startswith(heads)}
        num_text, layer = self.options.text.num_layers, "text_encoder.encoder.layer."
        fusion = {name: value for name, value in state.items() if layer_of(name, layer) >= num_text}
        if task == "nlvr":
            state = {name: value for name, value in state.items() if name not in fusion}
            for name, value in fusion.items():
                number = layer_of(name, layer)
                for copy in (0, 1):
                    place = f"{layer}{num_text + 2 * (number - num_text) + copy}."
                    state[name.replace(f"{layer}{number}.", place)] = value
        if task == "vqa":
            decoder, head = "text_decoder.bert.", "text_encoder.cls."
            for name, value in fusion.items():
                number = layer_of(name, layer)
                state[name.replace(f"{layer}{number}.", f"{decoder}encoder.layer.{number - num_text}.")] = value
            shared = {name: value for name, value in known.items() if name.startswith("text_encoder.embeddings.")}
            state |= {name.replace("text_encoder.", decoder): value for name, value in shared.items()}
            state |= {name.replace(head, "text_decoder.cls."): known[name] for name in known if name.startswith(head)}
        prefix = f"{task}.param."
        state |= {name.removeprefix(prefix): self.record[name] for name in self.record if name.startswith(prefix)}
        for name, shape, dtype, kind in describe(finetuned(self.options, task, self.options.vision.image_size)):
            if kind.startswith("tied:"):
                state[name] = state[kind.removeprefix("tied:")]
            elif kind == "buffer":
                state[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
        return state

    def compare_gradients(self, tag: str, gradients: dict[str, Tensor], at_least: int = 4) -> None:
        """The recorded tensors whole, and every norm."""
        compared = 0
        for key, expected in self.record.items():
            if key.startswith(f"{tag}.grad."):
                name = key.removeprefix(f"{tag}.grad.")
                allowed = (TEMPERATURE_GRADIENT if name == "temp" else GRADIENT) * expected.abs().max().item()
                worst = (gradients[name] - expected).abs().max().item()
                assert worst <= allowed, f"{key}: off by {worst:.2e}, allowed {allowed:.2e}"
                compared += 1
        assert compared >= at_least
        norms = {name: norm or 0.0 for name, norm in self.facts(tag)["grad_norm"].items()}
        largest = max(norms.values())
        for name, norm in norms.items():
            found = gradients[name].norm().item() if name in gradients else 0.0
            slack = TEMPERATURE_GRADIENT if name == "temp" else GRADIENT
            assert abs(found - norm) <= slack * norm + 1e-6 * largest, f"{tag} {name}: norm {found}, not {norm}"


def layer_of(name: str, prefix: str) -> int:
    """Number of the layer that a key belongs to; -1 outside of the layers."""
    return int(name.removeprefix(prefix).split(".")[0]) if name.startswith(prefix) else -1
