"""Batch meets model: one forward call per step, every module at most once.

    images ──► vision ─┐                                   ┌─► matching head ─► ITM, TTM
    captions ┐         ├─► features ─► ITC, TTC            │
    pairs    ├► text ──┤      └─ hard negatives ─► fusion ─┤
    masked   ┘         └──────────────────────────► (rows) └─► masked-LM head ─► conditional MLM

Under ZeRO-3 a module's parameters are gathered each time it runs, and ranks that run different modules wait for
each other for ever; so whatever must pass through a module is concatenated into one call, the same on every rank.
Losses are the published ones (Cross-View Language Modeling, arXiv 2206.00621, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cclm.data.batch import Batch, ImageTextBatch, MaskedTokens, TextPairBatch, Tokens
from cclm.dist.collectives import Collectives
from cclm.engine.protocol import Losses
from cclm.model.modeling_cclm import CCLMModel
from cclm.objectives.contrastive import contrastive
from cclm.objectives.masked_lm import masked_lm
from cclm.objectives.matching import draw_negatives, matching, ramped_hardness
from cclm.objectives.term import Term, shares
from pretrain.config import ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class FusionRows:
    """Rows for the fusion encoder: a text state that asks, and a memory that answers."""

    query_FLD: Tensor
    query_mask_FL: Tensor
    memory_FND: Tensor
    memory_mask_FN: Tensor


@dataclass(kw_only=True)
class Ledger:
    """Local sums and counts of a step, by metric name."""

    terms: dict[str, Term] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    correct: dict[str, Term] = field(default_factory=dict)


class CrossViewTraining(nn.Module):
    """The module that an engine owns: `forward(batch) -> Losses` and nothing else.

    Args:
        model: the cross-view model.
        objectives: weights and options of the losses.
        collectives: how to reach the other ranks' features (`SINGLE` for one process).
    """

    def __init__(self, model: CCLMModel, objectives: ObjectiveConfig, collectives: Collectives) -> None:
        super().__init__()
        self.model = model
        self.objectives = objectives
        self.collectives = collectives

    def forward(self, batch: Batch) -> Losses:
        """Compute every loss of this rank's share of a step.

        Returns:
            Losses whose mean over the ranks is the value for the global batch.
        """
        model, images, pairs = self.model, batch.image_text, batch.text_pair
        parts = [part.text for part in (images, pairs) if part is not None]
        parts += [part.masked.tokens for part in (images, pairs) if part is not None]
        tokens = concatenate(parts)
        text_BLD = model.encode_texts(tokens.ids_BL, tokens.mask_BL)
        clean = sum(part.ids_BL.shape[0] for part in parts[: len(parts) // 2])
        text_feature_BE = model.project_texts(text_BLD[:clean], tokens.mask_BL[:clean])
        temperature = model.temperature()
        hardness = ramped_hardness(batch.step, self.objectives.hardness_ramp_steps)

        local = Ledger()
        rows: list[FusionRows] = []
        masked: list[FusionRows] = []
        at, masked_at = 0, clean
        if images is not None:
            size, num_rows = images.text.ids_BL.shape[0], images.masked.tokens.ids_BL.shape[0]
            view = slice(at, at + size), slice(masked_at, masked_at + num_rows)
            at, masked_at = view[0].stop, view[1].stop
            matched, filled = self._image_text(
                images, text_BLD, tokens.mask_BL, text_feature_BE, view, temperature, hardness, local
            )
            rows.append(matched)
            masked.append(filled)
        if pairs is not None:
            size, num_rows = pairs.text.ids_BL.shape[0], pairs.masked.tokens.ids_BL.shape[0]
            view = slice(at, at + size), slice(masked_at, masked_at + num_rows)
            matched, filled = self._text_pair(
                pairs, text_BLD, tokens.mask_BL, text_feature_BE, view, temperature, hardness, local
            )
            rows.append(matched)
            masked.append(filled)
        self._fusion(rows, masked, batch, local, tokens.ids_BL.shape[1])
        return self._global_means(local, temperature)

    def _image_text(
        self,
        images: ImageTextBatch,
        text_BLD: Tensor,
        mask_BL: Tensor,
        feature_BE: Tensor,
        view: tuple[slice, slice],
        temperature: Tensor,
        hardness: float,
        local: Ledger,
    ) -> tuple[FusionRows, FusionRows]:
        """Contrastive loss of images and captions; rows for matching and masked-LM."""
        image_BND = self.model.encode_images(images.images_BCHW)
        image_feature_BE = self.model.project_images(image_BND)
        caption_BE = feature_BE[view[0]]
        local.terms["image_text/itc"] = contrastive(
            image_feature_BE,
            caption_BE,
            images.identity_B,
            images.identity_B,
            temperature,
            gather=self.collectives.gather,
            label_smoothing=self.objectives.label_smoothing,
            grad_scale=self.objectives.contrastive_grad_scale,
        )
        local.weights["image_text/itc"] = self.objectives.itc_weight
        other_caption_F, other_image_F = negatives(
            image_feature_BE,
            caption_BE,
            images.identity_B,
            images.matching_row_F,
            images.noise_second_FG,
            images.noise_first_FG,
            temperature,
            hardness,
        )
        row_F = images.matching_row_F
        everywhere_BN = torch.ones(image_BND.shape[:2], dtype=torch.bool, device=image_BND.device)
        text_row_R = torch.cat([row_F, row_F, other_caption_F])
        memory_row_R = torch.cat([row_F, other_image_F, row_F])
        matched = FusionRows(
            query_FLD=text_BLD[view[0]][text_row_R],
            query_mask_FL=mask_BL[view[0]][text_row_R],
            memory_FND=image_BND[memory_row_R],
            memory_mask_FN=everywhere_BN[memory_row_R],
        )
        filled = FusionRows(
            query_FLD=text_BLD[view[1]],
            query_mask_FL=mask_BL[view[1]],
            memory_FND=image_BND[row_F],
            memory_mask_FN=everywhere_BN[row_F],
        )
        return matched, filled

    def _text_pair(
        self,
        pairs: TextPairBatch,
        text_BLD: Tensor,
        mask_BL: Tensor,
        feature_BE: Tensor,
        view: tuple[slice, slice],
        temperature: Tensor,
        hardness: float,
        local: Ledger,
    ) -> tuple[FusionRows, FusionRows]:
        """Contrastive loss of sentences and translations; rows for matching and masked-LM."""
        text_UE = feature_BE[view[0]]
        pairs_per_sample = pairs.first_P.shape[0] // pairs.identity_S.shape[0]
        local.terms["text_pair/ttc"] = contrastive(
            text_UE[pairs.first_P[::pairs_per_sample]],
            text_UE[pairs.second_P],
            pairs.identity_S,
            pairs.identity_P,
            temperature * self.objectives.text_temperature_factor,
            gather=self.collectives.gather,
            label_smoothing=self.objectives.label_smoothing,
            grad_scale=self.objectives.contrastive_grad_scale,
        )
        local.weights["text_pair/ttc"] = self.objectives.ttc_weight
        other_query_F, other_memory_F = negatives(
            text_UE[pairs.memory_S],
            text_UE[pairs.query_S],
            pairs.identity_S,
            pairs.matching_row_F,
            pairs.noise_second_FG,
            pairs.noise_first_FG,
            temperature * self.objectives.text_temperature_factor,
            hardness,
        )
        row_F = pairs.matching_row_F
        query_U = pairs.query_S[torch.cat([row_F, row_F, other_query_F])]
        memory_U = pairs.memory_S[torch.cat([row_F, other_memory_F, row_F])]
        matched = FusionRows(
            query_FLD=text_BLD[view[0]][query_U],
            query_mask_FL=mask_BL[view[0]][query_U],
            memory_FND=text_BLD[view[0]][memory_U],
            memory_mask_FN=mask_BL[view[0]][memory_U],
        )
        answer_U = pairs.query_S[row_F]
        filled = FusionRows(
            query_FLD=text_BLD[view[1]],
            query_mask_FL=mask_BL[view[1]],
            memory_FND=text_BLD[view[0]][answer_U],
            memory_mask_FN=mask_BL[view[0]][answer_U],
        )
        return matched, filled

    def _fusion(
        self, rows: list[FusionRows], masked: list[FusionRows], batch: Batch, local: Ledger, length: int
    ) -> None:
        """One fusion call for everything; then matching and masked-LM losses by view."""
        parts = [*rows, *masked]
        memory_BND, memory_mask_BN = stack_memories([(part.memory_FND, part.memory_mask_FN) for part in parts])
        query_BLD = torch.cat([part.query_FLD for part in parts])
        query_mask_BL = torch.cat([part.query_mask_FL for part in parts])
        fused_BLD = self.model.fuse(query_BLD, query_mask_BL, memory_BND, memory_mask_BN)

        num_matched = sum(part.query_FLD.shape[0] for part in rows)
        logits_B2 = self.model.match_logits(fused_BLD[:num_matched], query_mask_BL[:num_matched])
        views = [
            (name, view) for name, view in (("image_text", batch.image_text), ("text_pair", batch.text_pair)) if view
        ]
        at = 0
        for (name, _), part in zip(views, rows, strict=True):
            size = part.query_FLD.shape[0]
            labels_F = (torch.arange(size, device=logits_B2.device) < size // 3).long()
            loss, correct = matching(logits_B2[at : at + size], labels_F)
            key = "itm" if name == "image_text" else "ttm"
            local.terms[f"{name}/{key}"] = loss
            local.weights[f"{name}/{key}"] = getattr(self.objectives, f"{key}_weight")
            local.correct[f"{name}/{key}_accuracy"] = Term(correct.float(), loss.count)
            at += size
        self._masked_lm(fused_BLD[num_matched:], [(name, view.masked) for name, view in views], local, length)

    def _masked_lm(
        self, fused_BLD: Tensor, views: Sequence[tuple[str, MaskedTokens]], local: Ledger, length: int
    ) -> None:
        """Predict the hidden tokens of both views: one call of the head."""
        slots, row = [], 0
        for _, view in views:
            own_length = view.tokens.ids_BL.shape[1]
            slots.append((row + view.slot_T // own_length) * length + view.slot_T % own_length)
            row += view.tokens.ids_BL.shape[0]
        hidden_TD = self.model.masked_lm_states(fused_BLD.reshape(-1, fused_BLD.shape[-1])[torch.cat(slots)])
        results = self.model.decode_with(
            hidden_TD,
            lambda hidden, weight, bias: [
                masked_lm(part, weight, bias, view.label_T)
                for part, (_, view) in zip(torch.split(hidden, [len(slot_T) for slot_T in slots]), views, strict=True)
            ],
        )
        for (name, _), (loss, correct) in zip(views, results, strict=True):
            local.terms[f"{name}/mlm"] = loss
            local.weights[f"{name}/mlm"] = self.objectives.mlm_weight
            local.correct[f"{name}/mlm_accuracy"] = Term(correct.float(), loss.count)

    def _global_means(self, local: Ledger, temperature: Tensor) -> Losses:
        """Turn local sums into shares of global means: sum · ranks / global count."""
        means = shares({**local.terms, **local.correct}, self.collectives.sum, self.collectives.world_size)
        total = torch.stack([means[name] * weight for name, weight in local.weights.items()]).sum()
        metrics = {name: value.detach() for name, value in means.items()}
        return Losses(total=total, metrics={"loss": total.detach(), **metrics, "temperature": temperature.detach()[0]})


def negatives(
    first_BE: Float[Tensor, "b e"],
    second_BE: Float[Tensor, "b e"],
    identity_B: Int[Tensor, " b"],
    row_F: Int[Tensor, " f"],
    noise_second_FG: Float[Tensor, "f g"],
    noise_first_FG: Float[Tensor, "f g"],
    temperature: Float[Tensor, " 1"],
    hardness: float,
) -> tuple[Int[Tensor, " f"], Int[Tensor, " f"]]:
    """Draw, for each row of `row_F`, a wrong second side and a wrong first side inside its negative group.

    Groups are blocks of G consecutive samples (`noise_…_FG.shape[1]`), so the draw does not depend on the ranks.

    Returns:
        Rows into B: the drawn second sides, the drawn first sides.
    """
    size = noise_second_FG.shape[1]
    start_F = row_F - row_F % size
    candidate_FG = start_F[:, None] + torch.arange(size, device=row_F.device)
    same_FG: Bool[Tensor, "f g"] = identity_B[row_F][:, None] == identity_B[candidate_FG]
    with torch.no_grad():
        second_FG = torch.einsum("fe,fge->fg", first_BE[row_F], second_BE[candidate_FG]) / temperature
        first_FG = torch.einsum("fe,fge->fg", second_BE[row_F], first_BE[candidate_FG]) / temperature
        own_F = row_F % size
        other_second_F = start_F + draw_negatives(second_FG, same_FG, noise_second_FG, hardness, own_F)
        other_first_F = start_F + draw_negatives(first_FG, same_FG, noise_first_FG, hardness, own_F)
    return other_second_F, other_first_F


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """Stack texts of different padded lengths into one, padded to the longest (with id 1 where the mask is False)."""
    length = max(part.ids_BL.shape[1] for part in parts)
    ids = [nn.functional.pad(part.ids_BL, (0, length - part.ids_BL.shape[1]), value=1) for part in parts]
    masks = [nn.functional.pad(part.mask_BL, (0, length - part.mask_BL.shape[1])) for part in parts]
    return Tokens(ids_BL=torch.cat(ids), mask_BL=torch.cat(masks))


def stack_memories(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack memories (states, mask) of different lengths, padded to the longest."""
    length = max(states.shape[1] for states, _ in parts)
    states = [nn.functional.pad(states, (0, 0, 0, length - states.shape[1])) for states, _ in parts]
    masks = [nn.functional.pad(mask, (0, length - mask.shape[1])) for _, mask in parts]
    return torch.cat(states), torch.cat(masks)
