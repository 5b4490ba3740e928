"""The options of the optimizer, and the learning rate of each step as a pure function of the step. No torch.

Learning rate of group g at step k:  learning_rate · factor(k) · multiplier(g).

    factor  1 ┤      ╭────╮__
              │    ╱         ‾‾╲__          warm-up is linear and starts above 0, so that step 0 is not wasted
              │  ╱                ‾‾╲__     (`warmup_from_zero`: at 0); then cosine, linear or constant down to
            0 ┼──┬────────────────────┬─ k  `final_fraction` at total_steps
               warm-up           total_steps
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cclm.types import Bounds, Count, NotNegative, Positive, Share

Decay = Annotated[float, Bounds(least=0, below=1)]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a schedule."""

    total_steps: Positive
    """Number of optimizer updates of the whole run; the schedule ends there."""
    learning_rate: Annotated[float, Bounds(above=0)] = 1e-4
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """Decay of AdamW's running means of the gradient and of its square. CCLM: 0.9, 0.98."""
    eps: Annotated[float, Bounds(above=0)] = 1e-8
    """AdamW's epsilon, added after bias correction."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay (per step: times the learning rate)."""
    warmup_steps: Count = 0
    """Steps of linear warm-up; step k of them uses (k + 1) / warmup_steps of the peak."""
    warmup_from_zero: bool = False
    """Step k of the warm-up uses k / warmup_steps instead, as published: step 0 moves nothing but the moments."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    final_fraction: Share = 0.0
    """Fraction of the peak that cosine and linear end at."""
    max_grad_norm: NotNegative = 1.0
    """Clip the global gradient norm to this; 0 switches clipping off."""
    module_multipliers: Mapping[str, NotNegative] = field(default_factory=dict)
    """Learning-rate multipliers by prefix of parameter names, whole components ("model.vision_encoder"), where "*" is
    any one ("model.fusion_encoder.stack.layers.*.cross_attention"); the longest wins."""
    weight_decay_multipliers: Mapping[str, NotNegative] = field(default_factory=dict)
    """Weight-decay multipliers by prefix of parameter names, in the same way."""
    decay_embeddings: bool = True
    """Decay token and position embeddings too, as CCLM, open_clip and nanoGPT do. Never decayed: biases, weights of
    norm layers, and everything with fewer than two dimensions (temperature, layer scales, class token)."""

    decay_rule: Literal["module_type", "published"] = "module_type"
    """Which parameters are not decayed. "module_type": those named under `decay_embeddings`. "published": by words in
    their names, as the published runs did, which decays temperature, layer scales, class token and the gains of the
    matching and box heads."""
    update_rule: Literal["torch", "published"] = "torch"
    """"torch": torch's fused AdamW. "published": that of the published runs, decay after the update and eps before the
    bias correction (`cclm.engine.optimizer`)."""
    ema_decay: Decay = 0.0
    """Keep an exponential moving average of the weights with this decay per update, 0.9999 say
    (`cclm.engine.rank_state`); it is saved with every checkpoint. 0: none."""

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        if self.warmup_steps > self.total_steps:
            yield f"warmup_steps must be at most total_steps ({self.total_steps}), is {self.warmup_steps}"

    def learning_rate_factor(self, step: int) -> float:
        """Fraction of the peak learning rate at `step` (counted from 0). Constant after `total_steps`."""
        if step < self.warmup_steps:
            return (step if self.warmup_from_zero else step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1.0 - progress
        return self.final_fraction + (1.0 - self.final_fraction) * remaining
