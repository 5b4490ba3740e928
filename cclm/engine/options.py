"""The options of the optimizer, and the learning rate of each step as a pure function of the step. No torch.

Learning rate of group g at step k:  learning_rate · factor(k) · multiplier(g).

    factor  1 ┤      ╭────╮__
              │    ╱         ‾‾╲__          warm-up is linear and starts above 0, so that step 0 is not wasted
              │  ╱                ‾‾╲__     (`warmup_from_zero`: at 0); then cosine, linear or constant down to
            0 ┼──┬────────────────────┬─ k  `final_fraction` at total_steps
               warm-up           total_steps

"wsd" (warm-up, stable, decay: arXiv 2404.06395, 2405.18392) stays at the peak until `decay_steps` before total_steps,
and then falls as 1 - √progress, the best shape of the latter. Until there nothing depends on total_steps: a run can be
made longer from any checkpoint of its stable part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cclm.types import MOST_STEPS, Bounds, Count, NotNegative, Positive, Share

Decay = Annotated[float, Bounds(least=0, below=1)]
Rate = Annotated[float, Bounds(above=0, most=1)]


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Adapters of low rank (LoRA): all linear layers of some parts keep their weights and learn a small correction."""

    rank: Positive = 16
    """Of the correction."""
    alpha: Positive = 32
    """The correction is multiplied with alpha / rank."""
    dropout: Share = 0.0
    """Of what the correction reads, in training."""
    parts: tuple[str, ...] = ("model.vision_encoder", "model.text_encoder", "model.fusion_encoder")
    """Prefixes of parameter names, as in `start.freeze`: there only the corrections learn. Everything else (the heads)
    learns as it does without them."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a schedule."""

    total_steps: Annotated[int, Bounds(least=1, most=MOST_STEPS)]
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
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape after the warm-up; "wsd": at the peak until `decay_steps` before the end."""
    decay_steps: Count = 0
    """wsd: how many steps the decay at the end takes; 10 to 20 % of `total_steps`, as published."""
    final_fraction: Share = 0.0
    """Fraction of the peak that cosine, linear and wsd end at."""
    max_grad_norm: NotNegative = 1.0
    """Clip the global gradient norm to this; 0 switches clipping off."""
    module_multipliers: Mapping[str, NotNegative] = field(default_factory=dict)
    """Learning-rate multipliers by prefix of parameter names, whole components ("model.vision_encoder"), where "*" is
    any one ("model.fusion_encoder.stack.layers.*.cross_attention"); the longest wins."""
    layer_decay: Mapping[str, Rate] = field(default_factory=dict)
    """Towers by prefix ("model.vision_encoder"), and by how much each of their blocks learns slower than the one above
    it: the top block at this factor of what stands above the blocks, the embeddings at its power of the number of
    blocks + 1, as in BEiT. Multiplied with `module_multipliers`."""
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
    """"torch": torch's AdamW. "published": that of the published runs, decay after the update and eps before the bias
    correction. Both run in torch's fused kernel (`cclm.engine.adamw` derives it)."""
    ema_decay: Decay = 0.0
    """Keep an exponential moving average of the weights with this decay per update, 0.9999 say
    (`cclm.engine.rank_state`); it is saved with every checkpoint. 0: none."""

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        if self.warmup_steps > self.total_steps:
            yield f"warmup_steps must be at most total_steps ({self.total_steps}), is {self.warmup_steps}"
        if (self.schedule == "wsd") != (self.decay_steps > 0):
            yield f"decay_steps must be above 0 with schedule wsd, and 0 with any other, is {self.decay_steps}"
        elif self.warmup_steps + self.decay_steps > self.total_steps >= self.warmup_steps:
            yield f"decay_steps must leave room for the warm-up: at most {self.total_steps - self.warmup_steps}"

        strongest = max([1.0, *self.module_multipliers.values()]) * max([1.0, *self.weight_decay_multipliers.values()])
        if self.learning_rate * self.weight_decay * strongest >= 1:
            yield "weight_decay times learning_rate, with their multipliers, must be below 1: a step would undo weights"

    def learning_rate_factor(self, step: int) -> float:
        """Fraction of the peak learning rate at `step` (counted from 0). Constant after `total_steps`."""
        if step < self.warmup_steps:
            return (step if self.warmup_from_zero else step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        begin = self.total_steps - self.decay_steps if self.schedule == "wsd" else self.warmup_steps
        progress = min(1.0, max(0, step - begin) / max(1, self.total_steps - begin))
        shapes = {"cosine": 0.5 * (1.0 + math.cos(math.pi * progress)), "linear": 1.0 - progress}
        remaining = shapes.get(self.schedule, 1.0 - math.sqrt(progress))
        return self.final_fraction + (1.0 - self.final_fraction) * remaining
