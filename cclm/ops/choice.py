"""The kernels of a run: what computes attention, layer norm and the loss over the vocabulary, chosen in one place.

    choose_kernels(device) ─► RunKernels ─┬─► network (`use_kernels`): attention, layer norm
                                          └─► training step: cross-entropy of the masked-LM head

A network that nobody gives kernels, such as that of an exported folder, computes with plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cclm.model.kernels import PLAIN, Kernels
from cclm.ops.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy


@dataclass(frozen=True, kw_only=True)
class RunKernels:
    """What a run is computed with."""

    network: Kernels = PLAIN
    """Attention and layer norm."""
    linear_cross_entropy: LinearCrossEntropy = linear_cross_entropy
    """Loss of the masked-LM head over the whole vocabulary."""


def choose_kernels(device: torch.device) -> RunKernels:
    """Return the kernels of a run on `device`: on every one those that any torch can compute."""
    return RunKernels()
