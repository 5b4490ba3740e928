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

from cclm.data.batch import Batch, ImageTextBatch, MaskedTokens, TextPairBatch
from cclm.dist.collectives import Collectives
from cclm.engine.protocol import Losses
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.packing import concatenate_padded
from cclm.objectives.contrastive import contrastive
from cclm.objectives.masked_lm import masked_lm
from cclm.objectives.matching import draw_negatives, matching, ramped_hardness
from cclm.objectives.term import Term, shares
from pretrain.config import ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """One view's texts after the text encoder."""

    states_BLD: Float[Tensor, "b l d"]
    mask_BL: Bool[Tensor, "b l"]
    feature_BE: Float[Tensor, "b e"]
    masked_states_MLD: Float[Tensor, "m l d"]
    masked_mask_ML: Bool[Tensor, "m l"]


@dataclass(frozen=True, kw_only=True)
class FusionRows:
    """Rows for the fusion encoder: a text that asks, and a memory that answers."""

    query_FLD: Float[Tensor, "f l d"]
    query_mask_FL: Bool[Tensor, "f l"]
    memory_FND: Float[Tensor, "f n d"]
    memory_mask_FN: Bool[Tensor, "f n"]


@dataclass(frozen=True, kw_only=True)
class ViewRows:
    """What one view sends through the fusion encoder and the heads."""

    name: str
    """"image_text" or "text_pair"."""
    matching_name: str
    """"itm" or "ttm"."""
    matched: FusionRows
    """Positives, then as many wrong memories, then as many wrong queries."""
    masked: FusionRows
    """Masked texts with their true memories."""
    slots: MaskedTokens
    """What to predict in `masked`."""


@dataclass(kw_only=True)
class Tally:
    """Local sums and counts of a step, by metric name; those with a weight are losses."""

    terms: dict[str, Term] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add_loss(self, name: str, term: Term, weight: float) -> None:
        """Add a term of the total."""
        self.terms[name] = term
        self.weights[name] = weight

    def add_accuracy(self, name: str, correct: Tensor, count: Tensor) -> None:
        """Add a share of right answers."""
        self.terms[name] = Term(correct.float(), count)


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
        self.pad_id = model.config.options().text.pad_token_id

    def forward(self, batch: Batch) -> Losses:
        """Compute every loss of this rank's share of a step.

        Returns:
            Losses whose mean over the ranks is the value for the global batch.
        """
        views = [view for view in (batch.image_text, batch.text_pair) if view is not None]
        texts = iter(self._encode_texts(views))
        temperature = self.model.temperature()
        options = self.objectives
        hardness = ramped_hardness(
            batch.step, options.hardness_full_step, options.hardness, options.hardness_start_step
        )
        tally, rows = Tally(), []
        if batch.image_text is not None:
            rows.append(self._image_text(batch.image_text, next(texts), temperature, hardness, tally))
        if batch.text_pair is not None:
            rows.append(self._text_pair(batch.text_pair, next(texts), temperature, hardness, tally))
        self._fuse(rows, tally, reaches_encoders=batch.step >= options.fusion_warmup_steps)
        return self._global_means(tally, temperature)

    def _encode_texts(self, views: Sequence[ImageTextBatch | TextPairBatch]) -> list[EncodedTexts]:
        """Clean and masked texts of all views through the text encoder, in one call."""
        parts = [view.text for view in views] + [view.masked.tokens for view in views]
        ids_BL, mask_BL = concatenate_padded([(part.ids_BL, part.mask_BL) for part in parts], self.pad_id)
        states_BLD = self.model.encode_texts(ids_BL, mask_BL)
        sizes = [part.ids_BL.shape[0] for part in parts]
        num_clean = sum(sizes[: len(views)])
        feature_BE = self.model.project_texts(states_BLD[:num_clean], mask_BL[:num_clean])
        states, masks = torch.split(states_BLD, sizes), torch.split(mask_BL, sizes)
        features = torch.split(feature_BE, sizes[: len(views)])
        return [
            EncodedTexts(
                states_BLD=states[k],
                mask_BL=masks[k],
                feature_BE=features[k],
                masked_states_MLD=states[len(views) + k],
                masked_mask_ML=masks[len(views) + k],
            )
            for k in range(len(views))
        ]

    def _image_text(
        self, images: ImageTextBatch, texts: EncodedTexts, temperature: Tensor, hardness: float, tally: Tally
    ) -> ViewRows:
        """Contrastive loss of images and captions; rows for matching and masked-LM."""
        image_BND = self.model.encode_images(images.images_BCHW)
        image_BE = self.model.project_images(image_BND)
        itc = self._contrastive(image_BE, texts.feature_BE, images.identity_B, images.identity_B, temperature)
        tally.add_loss("image_text/itc", itc, self.objectives.itc_weight)
        row_F = images.matching_row_F
        other_text_F, other_image_F = negatives(
            image_BE,
            texts.feature_BE,
            images.identity_B,
            row_F,
            (images.noise_second_FG, images.noise_first_FG),
            temperature,
            hardness,
        )
        everywhere_BN = torch.ones(image_BND.shape[:2], dtype=torch.bool, device=image_BND.device)
        image_row_R = torch.cat([row_F, other_image_F, row_F])
        return ViewRows(
            name="image_text",
            matching_name="itm",
            matched=select(
                (texts.states_BLD, texts.mask_BL),
                torch.cat([row_F, row_F, other_text_F]),
                (image_BND, everywhere_BN),
                image_row_R,
            ),
            masked=FusionRows(
                query_FLD=texts.masked_states_MLD,
                query_mask_FL=texts.masked_mask_ML,
                memory_FND=image_BND[row_F],
                memory_mask_FN=everywhere_BN[row_F],
            ),
            slots=images.masked,
        )

    def _text_pair(
        self, pairs: TextPairBatch, texts: EncodedTexts, temperature: Tensor, hardness: float, tally: Tally
    ) -> ViewRows:
        """Contrastive loss of sentences and translations; rows for matching and masked-LM."""
        temperature = temperature * self.objectives.text_temperature_factor
        text_UE, states = texts.feature_BE, (texts.states_BLD, texts.mask_BL)
        pairs_per_sample = pairs.first_P.shape[0] // pairs.identity_S.shape[0]
        ttc = self._contrastive(
            text_UE[pairs.first_P[::pairs_per_sample]],
            text_UE[pairs.second_P],
            pairs.identity_S,
            pairs.identity_P,
            temperature,
        )
        tally.add_loss("text_pair/ttc", ttc, self.objectives.ttc_weight)
        row_F = pairs.matching_row_F
        other_query_F, other_memory_F = negatives(
            text_UE[pairs.memory_S],
            text_UE[pairs.query_S],
            pairs.identity_S,
            row_F,
            (pairs.noise_second_FG, pairs.noise_first_FG),
            temperature,
            hardness,
        )
        answer_F = pairs.query_S[row_F]
        return ViewRows(
            name="text_pair",
            matching_name="ttm",
            matched=select(
                states,
                pairs.query_S[torch.cat([row_F, row_F, other_query_F])],
                states,
                pairs.memory_S[torch.cat([row_F, other_memory_F, row_F])],
            ),
            masked=FusionRows(
                query_FLD=texts.masked_states_MLD,
                query_mask_FL=texts.masked_mask_ML,
                memory_FND=texts.states_BLD[answer_F],
                memory_mask_FN=texts.mask_BL[answer_F],
            ),
            slots=pairs.masked,
        )

    def _contrastive(
        self, first_NE: Tensor, second_ME: Tensor, identity_N: Tensor, identity_M: Tensor, temperature: Tensor
    ) -> Term:
        """The contrastive loss with this run's options."""
        return contrastive(
            first_NE,
            second_ME,
            identity_N,
            identity_M,
            temperature,
            gather=self.collectives.gather,
            label_smoothing=self.objectives.label_smoothing,
            grad_scale=self.objectives.contrastive_grad_scale,
        )

    def _fuse(self, rows: Sequence[ViewRows], tally: Tally, *, reaches_encoders: bool) -> None:
        """One fusion call for everything; then matching and masked-LM losses by view."""
        parts = [view.matched for view in rows] + [view.masked for view in rows]
        memory_BND, memory_mask_BN = concatenate_padded([(part.memory_FND, part.memory_mask_FN) for part in parts])
        mask_BL = torch.cat([part.query_mask_FL for part in parts])
        query_BLD = torch.cat([part.query_FLD for part in parts])
        if not reaches_encoders:
            query_BLD, memory_BND = stop_gradient(query_BLD), stop_gradient(memory_BND)
        fused_BLD = self.model.fuse(query_BLD, mask_BL, memory_BND, memory_mask_BN)
        num_matched = sum(view.matched.query_FLD.shape[0] for view in rows)
        self._matching(fused_BLD[:num_matched], mask_BL[:num_matched], rows, tally)
        self._masked_lm(fused_BLD[num_matched:], rows, tally)

    def _matching(self, fused_BLD: Tensor, mask_BL: Tensor, rows: Sequence[ViewRows], tally: Tally) -> None:
        """Do query and memory belong together? One call of the head."""
        sizes = [view.matched.query_FLD.shape[0] for view in rows]
        logits = torch.split(self.model.match_logits(fused_BLD, mask_BL), sizes)
        for view, logits_F2 in zip(rows, logits, strict=True):
            size = logits_F2.shape[0]
            labels_F = (torch.arange(size, device=logits_F2.device) < size // 3).long()
            loss, correct = matching(logits_F2, labels_F)
            is_image = view.matching_name == "itm"
            weight = self.objectives.itm_weight if is_image else self.objectives.ttm_weight
            tally.add_loss(f"{view.name}/{view.matching_name}", loss, weight)
            tally.add_accuracy(f"{view.name}/{view.matching_name}_accuracy", correct, loss.count)

    def _masked_lm(self, fused_BLD: Tensor, rows: Sequence[ViewRows], tally: Tally) -> None:
        """Predict the hidden tokens of all views: one call of the head, on real slots only."""
        length = fused_BLD.shape[1]
        slots, first_row = [], 0
        for view in rows:
            own_length = view.slots.tokens.ids_BL.shape[1]
            row_T = first_row + view.slots.slot_T // own_length
            slots.append(row_T * length + view.slots.slot_T % own_length)
            first_row += view.slots.tokens.ids_BL.shape[0]
        hidden_TD = self.model.masked_lm_states(fused_BLD.flatten(0, 1)[torch.cat(slots)])

        def losses(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> list[tuple[Term, Tensor]]:
            parts = torch.split(hidden_TD, [slot_T.shape[0] for slot_T in slots])
            labels = [view.slots.label_T for view in rows]
            return [masked_lm(part, weight_VD, bias_V, label_T) for part, label_T in zip(parts, labels, strict=True)]

        for view, (loss, correct) in zip(rows, self.model.decode_with(hidden_TD, losses), strict=True):
            tally.add_loss(f"{view.name}/mlm", loss, self.objectives.mlm_weight)
            tally.add_accuracy(f"{view.name}/mlm_accuracy", correct, loss.count)

    def _global_means(self, tally: Tally, temperature: Tensor) -> Losses:
        """Turn local sums into shares of global means: sum · ranks / global count."""
        means = shares(tally.terms, self.collectives.sum, self.collectives.world_size)
        total = torch.stack([means[name] * weight for name, weight in tally.weights.items()]).sum()
        metrics = {name: value.detach() for name, value in means.items()}
        return Losses(total=total, metrics={"loss": total.detach(), **metrics, "temperature": temperature.detach()[0]})


def stop_gradient(values: Tensor) -> Tensor:
    """The same values with a gradient of zero. Not `detach`: under ZeRO-3 a module whose inputs need no gradient has
    its parameters released before its own backward (DeepSpeed 0.19: "size of tensor a (0) must match")."""
    return values * 0.0 + values.detach()


def select(
    queries: tuple[Tensor, Tensor], query_row_F: Tensor, memories: tuple[Tensor, Tensor], memory_row_F: Tensor
) -> FusionRows:
    """Pick rows of (states, mask) for both sides."""
    return FusionRows(
        query_FLD=queries[0][query_row_F],
        query_mask_FL=queries[1][query_row_F],
        memory_FND=memories[0][memory_row_F],
        memory_mask_FN=memories[1][memory_row_F],
    )


def negatives(
    first_BE: Float[Tensor, "b e"],
    second_BE: Float[Tensor, "b e"],
    identity_B: Int[Tensor, " b"],
    row_F: Int[Tensor, " f"],
    noise: tuple[Float[Tensor, "f g"], Float[Tensor, "f g"]],
    temperature: Float[Tensor, " 1"],
    hardness: float,
) -> tuple[Int[Tensor, " f"], Int[Tensor, " f"]]:
    """Draw, for each row of `row_F`, a wrong second side and a wrong first side inside its negative group.

    Groups are blocks of G consecutive samples, so the draw does not depend on the ranks. `noise` is the Gumbel noise
    for second sides and for first sides.

    Returns:
        Rows into B: the drawn second sides, the drawn first sides.
    """
    noise_second_FG, noise_first_FG = noise
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
