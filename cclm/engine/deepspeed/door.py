"""The module that DeepSpeed sees: one door to the training module, through which every forward pass goes.

DeepSpeed hangs its hooks (gathering of parameters, begin of the backward pass) on the module that it is given. It finds
the tensors that the module returns in tuples and dicts, but not in our dataclasses. So batches and probes come in here,
and a plain tuple goes out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cclm.engine.plain import autocast
from cclm.engine.protocol import EngineBatch, Losses, Outputs, Probe


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """Asks for what a probe computes, instead of a batch's losses."""

    probe: Probe


class Door(nn.Module):
    """Calls the training module, under autocast in bf16."""

    def __init__(self, training_module: nn.Module, device: torch.device, precision: str) -> None:
        super().__init__()
        self.training_module = training_module
        self._device, self._precision = device, precision

    def forward(self, request: EngineBatch | ProbeRequest) -> tuple[Tensor, Outputs]:
        """Return a batch's total loss and its metrics; for a probe, a zero and its outputs."""
        with autocast(self._device, self._precision):
            if isinstance(request, ProbeRequest):
                return torch.zeros((), device=self._device), request.probe(self.training_module)
            losses = self.training_module(request)
        assert isinstance(losses, Losses)
        return losses.total, dict(losses.metrics)
