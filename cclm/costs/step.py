"""FLOPs of a step of a running recipe, by view and part of the network, and what GPUs could do at most."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from cclm.config import RunConfig
from cclm.costs.recipe import Counter, rows_of

KINDS = frozenset({"image_text", "regions", "text_pair"})
"""Views whose rows through the network are known."""
GRID = 8
"""Costs are counted at so many shares of the longest text, and lie on straight lines between them."""
PEAKS: dict[str, dict[str, float]] = {
    "A100": {"bf16": 312, "tf32": 156, "fp32": 19.5},
    "H100 PCIe": {"bf16": 756, "tf32": 378, "fp32": 51},
    "H100": {"bf16": 989, "tf32": 494, "fp32": 67},
    "H200": {"bf16": 989, "tf32": 494, "fp32": 67},
    "B200": {"bf16": 2250, "tf32": 1100, "fp32": 75},
    "L40S": {"bf16": 362, "tf32": 183, "fp32": 91.6},
}
"""Part of a GPU's name → dense TFLOP/s by type, of its vendor's data sheet. The first name that fits counts."""


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Return what the data sheet promises; None for a device that is not in the table."""
    if device.type != "cuda":
        return None
    if precision == "fp32" and torch.backends.cuda.matmul.allow_tf32:
        precision = "tf32"
    precision = "bf16" if precision == "fp16" else precision  # they are as fast
    name = torch.cuda.get_device_name(device)
    return next((peaks[precision] for part, peaks in PEAKS.items() if part in name), None)


class StepCosts:
    """Counts when it is asked: a second for a large network, once for each share of the grid."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._counter: Counter | None = None
        self._found: dict[tuple[str, int], dict[str, float]] = {}

    @staticmethod
    def are_known(config: RunConfig) -> bool:
        """Return whether they can be counted: of a pre-training with the views of this library, on whole images."""
        return config.finetune is None and KINDS.issuperset(config.views) and config.model.vision.keep_patches == 1

    def flops(self, text_fill: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """FLOPs of the global batch, forward and backward, by view and part ("vision", "text", "fusion", "heads").
        `text_fill`: by view, real tokens of a text as a share of the longest. Neither padding counts nor what
        activation checkpointing computes again."""
        return {view: self._between(view, min(1.0, max(0.0, fill))) for view, fill in text_fill.items()}

    def _between(self, view: str, fill: float) -> dict[str, float]:
        place = max(1.0, fill * GRID)
        below, above = (self._at(view, corner) for corner in (math.floor(place), math.ceil(place)))
        share = place - math.floor(place)
        return {part: (1 - share) * below[part] + share * above[part] for part in below}

    def _at(self, view: str, corner: int) -> dict[str, float]:
        if (view, corner) not in self._found:
            self._counter = self._counter or Counter(self._config)
            sums = dict[str, float]()
            for call in rows_of(self._config.views[view], self._counter, corner / GRID)[0]:
                sums[call.part] = sums.get(call.part, 0.0) + call.rows * call.cost.flops
            self._found[view, corner] = sums
        return self._found[view, corner]
