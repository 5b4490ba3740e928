"""Batch meets model: one forward call per update, every module at most once.

    images ──► vision ─┐                                   ┌─► matching head ─► ITM, TTM
    captions ┐         ├─► features ─► ITC, TTC            │
    pairs    ├► text ──┤      └─ hard negatives ─► fusion ─┼─► box head ─► L1, GIoU (regions)
    masked   ┘         └──────────────────────────► (rows) └─► masked-LM head ─► conditional MLM, TLM

Under ZeRO-3 a module's parameters are gathered each time it runs, and ranks that run different modules wait for
each other for ever; so whatever must pass through a module is concatenated into one call, the same on every rank.
Losses are the published ones (Cross-View Language Modeling, arXiv 2206.00621, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cclm.config import ObjectiveConfig
from cclm.data.batch import Batch, ImageTextBatch, RegionBatch, TextPairBatch
from cclm.distributed.collectives import Collectives
from cclm.engine.protocol import Losses
from cclm.errors import ConfigError
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.packing import concatenate_padded
from cclm.objectives.boxes import box_losses
from cclm.objectives.masked_lm import masked_lm
from cclm.objectives.matching import matching, ramped_hardness
from cclm.objectives.term import Term, shares
from cclm.train.rows import FusionRows, Tally, ViewRows, memories_of, stop_gradient
from cclm.train.views import EncodedImages, EncodedTexts, StepContext, image_text_rows, region_rows, text_pair_rows

ViewBatch = ImageTextBatch | RegionBatch | TextPairBatch


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
        """Compute every loss of this rank's share of an update.

        Returns:
            Losses whose mean over the ranks is the value for the global batch.
        """
        batch = batch.normalised()  # bytes came over: a quarter of the traffic
        views = [view for view in (batch.image_text, batch.regions, batch.text_pair) if view is not None]
        texts = dict(zip(map(type, views), self._encode_texts(views), strict=True))
        images = self._encode_images(batch)
        options = self.objectives
        step = StepContext(
            objectives=options,
            gather=self.collectives.gather,
            temperature=self.model.temperature(),
            hardness=ramped_hardness(
                batch.step, options.hardness_full_step, options.hardness, options.hardness_start_step
            ),
            tally=Tally(),
        )
        rows = []
        if batch.image_text is not None:
            rows.append(image_text_rows(step, batch.image_text, images[ImageTextBatch], texts[ImageTextBatch]))
        if batch.regions is not None:
            rows.append(region_rows(step, batch.regions, images[RegionBatch], texts[RegionBatch]))
        if batch.text_pair is not None:
            rows.append(text_pair_rows(step, batch.text_pair, texts[TextPairBatch]))
        self._fuse(rows, step.tally, reaches_encoders=batch.step >= options.fusion_warmup_steps)
        return self._means(step.tally, step.temperature)

    def _encode_texts(self, views: Sequence[ViewBatch]) -> list[EncodedTexts]:
        """Clean, second and masked texts of all views through the text encoder, in one call."""
        seconds = [view.second_text for view in views if isinstance(view, ImageTextBatch) and view.second_text]
        parts = [*(view.text for view in views), *seconds, *(view.masked.tokens for view in views)]
        ids_BL, mask_BL = concatenate_padded([(part.ids_BL, part.mask_BL) for part in parts], self.pad_id)
        states_BLD = self.model.encode_texts(ids_BL, mask_BL)
        sizes = [part.ids_BL.shape[0] for part in parts]
        num_clean = sum(sizes[: len(views) + len(seconds)])
        feature_BE = self.model.project_texts(states_BLD[:num_clean], mask_BL[:num_clean])
        states, masks = torch.split(states_BLD, sizes), torch.split(mask_BL, sizes)
        features = torch.split(feature_BE, sizes[: len(views) + len(seconds)])
        first_masked = len(views) + len(seconds)
        return [
            EncodedTexts(
                states_BLD=states[k],
                mask_BL=masks[k],
                feature_BE=features[k],
                masked_states_MLD=states[first_masked + k],
                masked_mask_ML=masks[first_masked + k],
                second_feature_BE=features[len(views)] if seconds and isinstance(view, ImageTextBatch) else None,
            )
            for k, view in enumerate(views)
        ]

    def _encode_images(self, batch: Batch) -> dict[type, EncodedImages]:
        """Images of both kinds through the vision encoder and the projection, in one call each."""
        views = [view for view in (batch.image_text, batch.regions) if view is not None]
        if not views:
            return {}
        image_BND = self.model.encode_images(torch.cat([view.images_BCHW for view in views]))
        states, masks, wholes = [], [], list(torch.split(image_BND, [view.images_BCHW.shape[0] for view in views]))
        for view, whole_BND in zip(views, wholes, strict=True):
            if isinstance(view, RegionBatch):
                _refuse_another_grid(view.mask_RN, whole_BND)
                states.append(self.model.pool_regions(whole_BND, view.image_of_R, view.mask_RN))
                masks.append(view.mask_RN)
            else:
                states.append(whole_BND)
                masks.append(torch.ones(whole_BND.shape[:2], dtype=torch.bool, device=whole_BND.device))
        feature_BE = self.model.project_images(torch.cat([state_BND[:, :1] for state_BND in states]))
        features = torch.split(feature_BE, [state_BND.shape[0] for state_BND in states])
        return {
            type(view): EncodedImages(states_BND=state, mask_BN=mask, feature_BE=feature, whole_BND=whole)
            for view, state, mask, feature, whole in zip(views, states, masks, features, wholes, strict=True)
        }

    def _fuse(self, rows: Sequence[ViewRows], tally: Tally, *, reaches_encoders: bool) -> None:
        """One fusion call for everything; then matching, masked-LM and box losses by view."""
        matched = [view.matched for view in rows if view.matched is not None]
        boxes = [view.boxes.rows for view in rows if view.boxes is not None]
        blocks = [matched, [view.masked for view in rows], boxes]
        parts = [part for block in blocks for part in block]
        query_BLD = torch.cat([part.query_FLD for part in parts])
        mask_BL = torch.cat([part.query_mask_FL for part in parts])
        fused_BLD = self._fused(parts, query_BLD, mask_BL, reaches_encoders=reaches_encoders)
        sizes = [sum(part.count for part in block) for block in blocks]
        fused, masks = torch.split(fused_BLD, sizes), torch.split(mask_BL, sizes)
        if matched:
            self._matching(fused[0], masks[0], [view for view in rows if view.matched is not None], tally)
        self._masked_lm(fused[1], rows, tally)
        if boxes:
            self._boxes(fused[2], masks[2], [view for view in rows if view.boxes is not None], tally)

    def _fused(self, parts: list[FusionRows], query_BLD: Tensor, mask_BL: Tensor, *, reaches_encoders: bool) -> Tensor:
        """The fusion encoder on all rows, those with and those without memory."""
        if not reaches_encoders:
            query_BLD = stop_gradient(query_BLD)
        found = memories_of(parts)
        if found is None:
            return self.model.fuse(query_BLD, mask_BL, None)
        memories, has_memory_B = found
        memory_BND, memory_mask_BN = concatenate_padded(memories)
        if not reaches_encoders:
            memory_BND = stop_gradient(memory_BND)
        is_mixed = any(part.memory_FND is None for part in parts)
        return self.model.fuse(query_BLD, mask_BL, memory_BND, memory_mask_BN, has_memory_B if is_mixed else None)

    def _matching(self, fused_BLD: Tensor, mask_BL: Tensor, rows: Sequence[ViewRows], tally: Tally) -> None:
        """Do query and memory belong together? One call of the head."""
        sizes = [view.matched.count for view in rows if view.matched is not None]
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

    def _boxes(self, fused_BLD: Tensor, mask_BL: Tensor, rows: Sequence[ViewRows], tally: Tally) -> None:
        """Where is what the text describes?"""
        boxes = self.model.locate_boxes(fused_BLD, mask_BL)
        (view,) = rows
        assert view.boxes is not None
        distance, overlap = box_losses(boxes, view.boxes.box_F4, view.boxes.whole_F)
        tally.add_loss(f"{view.name}/box", distance, self.objectives.box_weight)
        tally.add_loss(f"{view.name}/giou", overlap, self.objectives.giou_weight)

    def _means(self, tally: Tally, temperature: Tensor) -> Losses:
        """Turn local sums into shares of global means: sum · ranks / global count (or into means of each rank)."""
        per_rank = self.objectives.means == "per_rank"
        means = shares(tally.terms, self.collectives.sum, self.collectives.world_size, per_rank=per_rank)
        total = torch.stack([means[name] * weight for name, weight in tally.weights.items()]).sum()
        metrics = {name: value.detach() for name, value in means.items()}
        return Losses(total=total, metrics={"loss": total.detach(), **metrics, "temperature": temperature.detach()[0]})


def _refuse_another_grid(mask_RN: Tensor, image_BND: Tensor) -> None:
    """Region masks are made for one grid of image tokens."""
    if mask_RN.shape[1] != image_BND.shape[1]:
        raise ConfigError(
            where="data.regions.patch_grid",
            expected=f"masks of 1 + {image_BND.shape[1] - 1} image tokens",
            got=f"1 + {mask_RN.shape[1] - 1}",
            do="Set patch_grid to the side of the image tower's grid (image_size over its stride).",
        )
