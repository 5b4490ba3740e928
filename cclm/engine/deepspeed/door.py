"""The module that DeepSpeed sees: one door to the training module, through which every forward pass goes.

DeepSpeed hangs its hooks (gathering of parameters, begin of the backward pass) on this module and on those inside. They
look for tensors in what a module returns, in tuples and dicts; so what a probe computes goes out as `Losses` do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from cclm.engine.plain import autocast
from cclm.engine.protocol import EngineBatch, Losses, Probe


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

    def forward(self, request: EngineBatch | ProbeRequest) -> Losses:
        """Return a batch's losses; for a probe, its outputs as the metrics."""
        with autocast(self._device, self._precision):
            if isinstance(request, ProbeRequest):
                return Losses(total=torch.zeros(()), metrics=request.probe(self.training_module))
            losses = self.training_module(request)
        assert isinstance(losses, Losses)
        return losses
