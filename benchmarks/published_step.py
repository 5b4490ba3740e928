"""The slow twin of a joint step: what the published code does with the same batch and the same network.

Two updates a step, texts first, then images. Each runs its rows in calls of their own (clean texts, positives, wrong
partners, masked texts), pads texts to the longest that there may be, computes all logits of all slots, used or not, and
has attention written out and an AdamW that loops over the parameters. Written with our own modules.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.data.batch import Batch, ViewBatch
from cclm.engine.adamw import MOMENTS, adamw_state
from cclm.engine.optimizer import parameter_groups, set_learning_rates
from cclm.engine.options import OptimizerConfig
from cclm.model.kernels import Kernels, use_kernels
from cclm.model.modeling_cclm import CCLMModel
from cclm.objectives.matching import draw_negatives
from cclm.ops.contrastive import contrastive_reference
from cclm.views.image_text.view import ImageTextBatch
from cclm.views.text_pair.view import TextPairBatch
from cclm.views.view import States, select

IGNORED = -100
"""Label of a slot that counts for nothing."""


def written_out_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scores, mask, softmax, dropout and values as five operations."""
    scores = query @ key.transpose(-1, -2) / sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + (torch.where(mask, 0.0, -10_000.0) if mask.dtype == torch.bool else mask)
    return functional.dropout(scores.softmax(-1), dropout) @ value


class LoopAdamW(torch.optim.Optimizer):
    """The published AdamW, one parameter after the other."""

    def __init__(self, groups: Iterable[dict[str, Any]], config: OptimizerConfig) -> None:
        super().__init__(groups, {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(group, parameter, parameter.grad)

    def _update(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        state, (beta1, beta2) = adamw_state(self, parameter), group["betas"]
        state["step"] += 1
        count = int(state["step"])
        mean, square = (state[key] for key in MOMENTS)
        mean.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        divisor = square.sqrt().add_(group["eps"])
        size = group["lr"] * sqrt(1.0 - beta2**count) / (1.0 - beta1**count)
        parameter.addcdiv_(mean, divisor, value=-size)
        if group["weight_decay"] > 0:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


@torch.no_grad()
def draw_partners(
    first_BE: Tensor, second_BE: Tensor, identity_B: Tensor, view: ViewBatch, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of what asks and of what is read: right pairs, as many wrong memories, as many wrong queries."""
    row_F = view.matching_row_F
    same_FB = identity_B[row_F][:, None] == identity_B

    def wrong(own_BE: Tensor, other_BE: Tensor, noise_FB: Tensor) -> Tensor:
        return draw_negatives(own_BE[row_F] @ other_BE.T / temperature, same_FB, noise_FB, 1.0)

    second_F, first_F = (
        wrong(first_BE, second_BE, view.noise_second_FG),
        wrong(second_BE, first_BE, view.noise_first_FG),
    )
    return torch.cat([row_F, row_F, second_F]), torch.cat([row_F, first_F, row_F])


class PublishedStep(nn.Module):
    """Two updates on one joint batch, whose texts are padded to `longest`."""

    def __init__(self, model: CCLMModel, config: OptimizerConfig, num_slots: dict[str, int]) -> None:
        super().__init__()
        use_kernels(model, Kernels(attention=written_out_attention))
        self.model, self.config, self.num_slots = model, config, num_slots
        self.optimizer = LoopAdamW(parameter_groups(self, config), config)

    def step(self, batch: Batch) -> dict[str, float]:
        """Train on the batch; return the losses."""
        set_learning_rates(self.optimizer, self.config, batch.step)
        found = {}
        for name in reversed(batch.views):
            losses = self(name, batch.views[name])
            total = torch.stack([*losses.values()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            found |= {f"{name}/{loss}": float(value.detach()) for loss, value in losses.items()}
        return found

    def forward(self, name: str, view: ViewBatch) -> dict[str, Tensor]:
        """Return the losses of one view."""
        first, second, features, identity_B = self._sides(view)
        temperature = self.model.temperature()
        contrast = contrastive_reference(*features, identity_B, identity_B, temperature) / len(identity_B)
        query_F3, memory_F3 = draw_partners(*features, identity_B, view, temperature)
        size, labels = len(view.matching_row_F), []
        for rows in (slice(size), slice(size, None)):  # positives, then both kinds of wrong partners
            (query, mask), memory = select(second, query_F3[rows]), select(first, memory_F3[rows])
            labels.append(self.model.match_logits(self.model.fuse(query, mask, *memory), mask))
        label_F3 = (torch.arange(3 * size) < size).long()
        is_pair = isinstance(view, TextPairBatch)
        return {
            "ttc" if is_pair else "itc": contrast,
            "ttm" if is_pair else "itm": functional.cross_entropy(torch.cat(labels), label_F3),
            "mlm": self._masked_lm(
                view, select(second if is_pair else first, view.matching_row_F), self.num_slots[name]
            ),
        }

    def _sides(self, view: ViewBatch) -> tuple[States, States, tuple[Tensor, Tensor], Tensor]:
        """States and features of what is read (first) and what asks (second), and what each pair shows."""
        model = self.model
        text = view.texts[0]
        if isinstance(view, ImageTextBatch):
            image_BND = model.encode_images(view.images_BCHW)
            first = image_BND, torch.ones(image_BND.shape[:2], dtype=torch.bool)
            second = model.encode_texts(text.ids_BL, text.mask_BL), text.mask_BL
            features = model.project_images(image_BND), model.project_texts(*second)
            return first, second, features, view.identity_R
        assert isinstance(view, TextPairBatch)
        tokens = [(text.ids_BL[rows], text.mask_BL[rows]) for rows in (view.memory_S, view.query_S)]
        first, second = ((model.encode_texts(ids, mask), mask) for ids, mask in tokens)
        return first, second, (model.project_texts(*first), model.project_texts(*second)), view.identity_S

    def _masked_lm(self, view: ViewBatch, memory: States, num_slots: int) -> Tensor:
        """The masked texts through all layers; all of their slots through the head, the empty ones too."""
        tokens = view.masked.tokens
        states_FLD = self.model.encode_texts(tokens.ids_BL, tokens.mask_BL)
        fused_FLD = self.model.fuse(states_FLD, tokens.mask_BL, *memory)
        size, length = tokens.ids_BL.shape
        column_FS = torch.zeros(size, num_slots, dtype=torch.int64)
        label_FS = torch.full_like(column_FS, IGNORED)
        row_T = view.masked.slot_T // length
        place_T = torch.arange(len(row_T)) - torch.searchsorted(row_T, row_T)  # slots stand in the order of rows
        column_FS[row_T, place_T], label_FS[row_T, place_T] = view.masked.slot_T % length, view.masked.label_T
        hidden_FSD = fused_FLD.gather(1, column_FS[..., None].expand(-1, -1, fused_FLD.shape[-1]))
        hidden_FSD = self.model.masked_lm_states(hidden_FSD)
        logits_FSV = self.model.decode_with(hidden_FSD, functional.linear)
        return functional.cross_entropy(logits_FSV.flatten(0, 1), label_FS.flatten(), ignore_index=IGNORED)
