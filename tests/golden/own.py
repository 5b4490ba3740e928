"""The project's own golden values: both layouts, every case, from weights and inputs that are sines of their place.

`python -m tests.golden.own` prints them anew. They were recorded when the published golden vectors were reproduced, so
that a change which moves any of the losses is noticed where those vectors are not at hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from tests.golden.cases import Draws, Inputs, Outcome, Runner
from tests.tiny_families import TINY, wavy_model

FILE = Path(__file__).with_name("own_values.json")
CASES = ("image", "two_captions", "regions", "pairs", "tlm")
Values = dict[str, dict[str, float]]


def own_inputs(case: str) -> Inputs:
    """Inputs of a case, the same everywhere."""
    batch, length = 3, 6
    place = torch.arange(batch * length).view(batch, length)
    mask_BL = torch.arange(length) < torch.tensor([[6], [4], [5]])
    ids_BL = ((place * 7) % 24 + 4).masked_fill(~mask_BL, 1)
    other_BL = ((place * 11 + 5) % 24 + 4).masked_fill(~mask_BL.flip(0), 1)
    masked_BL = ids_BL.clone()
    masked_BL[:, 2] = 29
    texts: Inputs = {
        "text_ids": ids_BL,
        "text_atts": mask_BL,
        "text_ids_masked": masked_BL,
        "masked_pos": torch.tensor([[2, 3], [2, 0], [2, 1]]),
        "masked_ids": torch.tensor([[int(ids_BL[0, 2]), int(ids_BL[0, 3])], [int(ids_BL[1, 2]), -100], [9, 8]]),
    }
    second: Inputs = {"text_ids_2": other_BL, "text_atts_2": mask_BL.flip(0)}
    pixels = torch.arange(3 * 3 * 32 * 32, dtype=torch.float64)
    image: Inputs = {"image": torch.sin(pixels * 0.013 + 2.0 * torch.sin(pixels * 0.0021)).float().view(3, 3, 32, 32)}
    if case == "image":
        return {**texts, **image}
    if case == "two_captions":
        return {**texts, **second, **image}
    if case == "regions":
        return {**texts, "image": image["image"][:2], **_regions()}
    if case == "tlm":
        return {**texts, **second, "text_atts_masked": mask_BL}
    return {**texts, **second}


def _regions() -> Inputs:
    """Two regions of the first image, and a text about the whole second one; 16 patches."""
    atts = torch.ones(3, 17, dtype=torch.int64)
    atts[0, 5:] = 0
    atts[1, 1:9] = 0
    return {
        "idx_to_group_img": torch.tensor([0, 0, 1]),
        "image_atts": atts,
        "target_bbox": torch.tensor([[0.5, 0.125, 1.0, 0.25], [0.5, 0.75, 1.0, 0.5], [0.5, 0.5, 1.0, 1.0]]),
        "is_image": torch.tensor([0, 0, 1]),
    }


def run_own(layout: str, case: str) -> tuple[Outcome, dict[str, float]]:
    """The case, its losses, and the gradient norms of the three encoders."""
    model = wavy_model(TINY[layout])
    draws: Draws = (torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1]))
    outcome = Runner(model).run(case, own_inputs(case), draws)
    losses = {name: value.item() for name, value in outcome.losses.items()}
    outcome.total().backward()
    for encoder in ("vision_encoder", "text_encoder", "fusion_encoder"):
        gradients = [value.grad for value in getattr(model, encoder).parameters() if value.grad is not None]
        losses[f"gradient of {encoder}"] = norm_of(gradients)
    return outcome, losses


def norm_of(gradients: list[Tensor]) -> float:
    """Of all of them together."""
    return float(sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5)


def record() -> dict[str, Values]:
    """All values."""
    return {
        layout: {
            case: {key: float(f"{value:.7g}") for key, value in run_own(layout, case)[1].items()} for case in CASES
        }
        for layout in TINY
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(record(), indent=1) + "\n")
