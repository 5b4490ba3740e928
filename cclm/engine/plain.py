"""The slow twin of the DeepSpeed engine: one process, plain torch, nothing hidden.

It runs the global batch in one forward call. Whatever the DeepSpeed engine computes on W ranks is compared with this
(tests/parity/test_engine.py, tests/ranks).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from cclm.distributed.collectives import SINGLE
from cclm.engine.optimizer import build_adamw, parameter_groups, total_norm, trained_parameters
from cclm.engine.options import OptimizerConfig
from cclm.engine.parts import check_reaches_trained, not_finite
from cclm.engine.protocol import BatchType, Engine, Updated
from cclm.engine.rank_state import RankState, Shard
from cclm.ops.choice import choose_optimizer


class PlainEngine(Engine[BatchType]):
    """One process's training state, whole.

    A parameter that a step does not use has a zero gradient (not none): its moments decay and it is still decayed, as
    under ZeRO, which updates flat blocks of parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        accumulation_steps: int = 1,
        kernel: str = "auto",
    ) -> None:
        """Take over `module` (maps a batch to Losses); `seed` is for dropout, `kernel` is the optimizer's."""
        super().__init__(
            module.to(device), optimizer, collectives=SINGLE, device=torch.device(device), precision=precision,
            accumulation_steps=accumulation_steps, seed=seed,
        )  # fmt: skip
        self.description = f"plain engine, one process, {precision}"
        self.runner = self.door
        self.kernel = choose_optimizer(kernel, self.device, rule=optimizer.update_rule)
        self.optimizer = build_adamw(parameter_groups(module, optimizer), optimizer, self.kernel.chosen)
        shards = [
            Shard(name=name, shape=tuple(value.shape), start=0, flat=value, offset=0, size=value.numel())
            for name, value in module.named_parameters()
            if value.requires_grad
        ]
        self.state = RankState(
            module, SINGLE, self.optimizer, shards, ema_decay=optimizer.ema_decay, device=self.device
        )

    def _backward(self, total: Tensor) -> None:
        check_reaches_trained(total)
        (total / self._accumulation_steps).backward()  # type: ignore[no-untyped-call]

    def _update(self, max_norm: float) -> Updated:
        parameters, bad = trained_parameters(self.module), list[str]()
        norm = total_norm(one.grad for one in parameters if one.grad is not None)
        is_good = bool(norm.isfinite() & (norm <= max_norm))  # waits for a GPU, as DeepSpeed does
        if is_good:
            nn.utils.clip_grads_with_norm_(parameters, self._config.max_grad_norm or math.inf, norm.float())
            self.optimizer.step()
        else:
            bad = not_finite(self.module, lambda parameter: parameter.grad)
        self.optimizer.zero_grad()
        return Updated(norm, is_good, bad)
