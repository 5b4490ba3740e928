"""Batch meets model: one forward call per update, every module at most once.

    images ──► vision ─┐                                   ┌─► matching head ─► ITM, TTM
    texts    ┐         ├─► features ─► ITC, TTC            │
    masked   ┴► text ──┘      └─ hard negatives ─► fusion ─┼─► a view's own head (boxes)
                                     (rows)                └─► masked-LM head ─► conditional MLM, TLM

Under ZeRO-3 a module's parameters are gathered each time it runs, and ranks that run different modules wait for
each other for ever; so whatever must pass through a module is concatenated into one call, the same on every rank.
What stands in the calls is the views' business (`cclm/views`). Losses are the published ones (Cross-View Language
Modeling, arXiv 2206.00621, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from cclm.data.batch import Batch, ViewBatch
from cclm.distributed.collectives import Collectives
from cclm.engine.protocol import Losses
from cclm.model.kernels import PLAIN, Kernels, use_kernels
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.packing import concatenate_padded
from cclm.objectives.matching import matching
from cclm.objectives.options import ObjectiveConfig
from cclm.objectives.term import Term, make_term, shares
from cclm.objectives.tokens import masked_lm
from cclm.ops.contrastive import ContrastiveLoss, contrastive_loss
from cclm.ops.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy
from cclm.views.rows import FusionRows, memories_of, stop_gradient
from cclm.views.view import Contribution, EncodedImages, EncodedRows, EncodedView, Loss, StepContext, View


class CrossViewTraining(nn.Module):
    """The module that an engine owns: `forward(batch) -> Losses` and nothing else.

    The network computes attention and layer norm with `kernels`, the masked-LM head its loss with `cross_entropy`, and
    the views theirs between features with `contrastive`.
    """

    def __init__(
        self,
        model: CCLMModel,
        views: Mapping[str, View[Any, Any]],
        objectives: ObjectiveConfig,
        collectives: Collectives,
        kernels: Kernels = PLAIN,
        cross_entropy: LinearCrossEntropy = linear_cross_entropy,
        contrastive: ContrastiveLoss = contrastive_loss,
    ) -> None:
        super().__init__()
        self.model, self.views = model, dict(views)
        self.objectives, self.collectives = objectives, collectives
        self.cross_entropy, self.contrastive = cross_entropy, contrastive
        use_kernels(model, kernels)
        self.pad_id = model.config.options().text.pad_token_id

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of this rank's share of an update; their mean over the ranks is the global batch's."""
        views = batch.normalised().views  # bytes came over: a quarter of the traffic
        options = self.objectives
        encoded = self._encode(views)
        temperature = self.model.temperature()
        context = StepContext(
            objectives=options,
            gather=self.collectives.gather,
            temperature=temperature,
            hardness=options.hardness_at(batch.step),
            contrastive=self.contrastive,
        )
        parts = {name: self.views[name].contribute(context, view, encoded[name]) for name, view in views.items()}
        contrasts = {f"{name}/{loss}": value for name, part in parts.items() for loss, value in part.losses.items()}
        reaches_encoders = batch.step >= options.fusion_warmup_steps
        losses, masked_BLD = self._fused_losses(parts, reaches_encoders=reaches_encoders)
        means, factors = self._means(contrasts, losses, views)
        masked, more_means = self._masked_lm(masked_BLD, views, factors)
        weighted = [means[name] * loss.weight for name, loss in (contrasts | losses).items() if loss.weight is not None]
        total = torch.stack([*weighted, masked]).sum()
        metrics = {name: value.detach() for name, value in {"loss": total, **means, **more_means}.items()}
        return Losses(total=total, metrics={**metrics, "temperature": temperature.detach()[0]})

    def _encode(self, views: Mapping[str, ViewBatch]) -> dict[str, EncodedView]:
        """All texts through the text encoder and all images through the vision encoder, in one call each.

        Clean texts of all views come first, then masked texts of all views; only clean ones are projected.
        """
        clean = [text for view in views.values() for text in view.texts]
        parts = [*clean, *(view.masked.tokens for view in views.values())]
        ids_BL, mask_BL = concatenate_padded([(part.ids_BL, part.mask_BL) for part in parts], self.pad_id)
        known = [part.num_tokens for part in parts if part.num_tokens is not None]
        states_BLD = self.model.encode_texts(ids_BL, mask_BL, sum(known) if len(known) == len(parts) else None)
        sizes = [part.ids_BL.shape[0] for part in parts]
        num_clean = sum(sizes[: len(clean)])
        feature_BE = self.model.project_texts(states_BLD[:num_clean], mask_BL[:num_clean])
        states = [*zip(torch.split(states_BLD, sizes), torch.split(mask_BL, sizes), strict=True)]
        features = torch.split(feature_BE, sizes[: len(clean)])
        texts = (EncodedRows(states=rows, feature_BE=own) for rows, own in zip(states, features, strict=False))
        images = self._encode_images({name: view for name, view in views.items() if view.images is not None})
        encoded = {}
        for number, (name, view) in enumerate(views.items(), start=len(clean)):
            own = tuple(islice(texts, len(view.texts)))
            encoded[name] = EncodedView(texts=own, masked=states[number], images=images.get(name))
        return encoded

    def _encode_images(self, views: Mapping[str, ViewBatch]) -> dict[str, EncodedImages]:
        """Images of all views through the vision encoder, and what stands for each row through the projection."""
        if not views:
            return {}
        images = [view.images for view in views.values() if view.images is not None]
        whole_BND = torch.split(self.model.encode_images(torch.cat(images)), [image.shape[0] for image in images])
        states = [
            self.views[name].image_states(self.model, view, whole)
            for (name, view), whole in zip(views.items(), whole_BND, strict=True)
        ]
        feature_BE = self.model.project_images(torch.cat([states_BND[:, :1] for states_BND, _ in states]))
        features = torch.split(feature_BE, [states_BND.shape[0] for states_BND, _ in states])
        return {
            name: EncodedImages(whole_BND=whole, states=state, feature_BE=feature)
            for name, whole, state, feature in zip(views, whole_BND, states, features, strict=True)
        }

    def _fused_losses(
        self, parts: Mapping[str, Contribution], *, reaches_encoders: bool
    ) -> tuple[dict[str, Loss], Tensor]:
        """One fusion call for the rows of all views, matching and the views' own heads; and the fused masked texts."""
        matched = {name: part.matched for name, part in parts.items() if part.matched is not None}
        located = {name: part.located for name, part in parts.items() if part.located is not None}
        rows = [part.rows for part in matched.values()]
        rows += [part.masked for part in parts.values()]
        rows += [part.rows for part in located.values()]
        mask_BL = torch.cat([part.query[1] for part in rows])
        fused_BLD = self._fuse(rows, mask_BL, reaches_encoders=reaches_encoders)
        num_matched, num_masked = len(matched), len(parts)
        sizes = [part.count for part in rows]
        first, second = sum(sizes[:num_matched]), sum(sizes[: num_matched + num_masked])
        losses: dict[str, Loss] = {}
        if matched:
            logits_B2 = self.model.match_logits(fused_BLD[:first], mask_BL[:first])
            logits = torch.split(logits_B2, sizes[:num_matched])
            for (name, part), logits_F2 in zip(matched.items(), logits, strict=True):
                losses |= matching_losses(f"{name}/{part.name}", logits_F2, part.weight)
        fused = torch.split(fused_BLD[second:], sizes[num_matched + num_masked :])
        masks = torch.split(mask_BL[second:], sizes[num_matched + num_masked :])
        for (name, own), fused_FLD, mask_FL in zip(located.items(), fused, masks, strict=True):
            losses |= {f"{name}/{loss}": value for loss, value in own.losses(self.model, fused_FLD, mask_FL).items()}
        return losses, fused_BLD[first:second]

    def _fuse(self, parts: Sequence[FusionRows], mask_BL: Tensor, *, reaches_encoders: bool) -> Tensor:
        """The fusion encoder on all rows, those with and those without memory."""
        query_BLD = torch.cat([part.query[0] for part in parts])
        if not reaches_encoders:
            query_BLD = stop_gradient(query_BLD)
        found = memories_of(parts)
        if found is None:
            return self.model.fuse(query_BLD, mask_BL, None)
        memories, has_memory_B = found
        memory_BND, memory_mask_BN = concatenate_padded(memories)
        if not reaches_encoders:
            memory_BND = stop_gradient(memory_BND)
        is_mixed = any(part.memory is None for part in parts)
        return self.model.fuse(query_BLD, mask_BL, memory_BND, memory_mask_BN, has_memory_B if is_mixed else None)

    def _means(
        self, contrasts: Mapping[str, Loss], losses: Mapping[str, Loss], views: Mapping[str, ViewBatch]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Turn local sums into shares of global means: sum · ranks / global count (or into means of each rank).

        Contrastive losses always are means over the global batch, of which each published rank computed the whole.

        Returns:
            The shares by loss, and for each view the factor that makes a share of its masked-LM losses.
        """
        own = {name: loss.term for name, loss in losses.items()}
        for name, view in views.items():  # the losses themselves come later, times these shares of one
            slot_T = view.masked.slot_T
            own[f"{name}/mlm"] = make_term(torch.ones((), device=slot_T.device), slot_T.shape[0])
        together = {name: loss.term for name, loss in contrasts.items()}
        is_global, talk = self.objectives.means == "global", self.collectives
        means = shares(together | own if is_global else together, talk.sum, talk.world_size)
        if not is_global:
            means |= shares(own, per_rank=True)
        return means, {name: means.pop(f"{name}/mlm") for name in views}

    def _masked_lm(
        self, fused_BLD: Tensor, views: Mapping[str, ViewBatch], factors: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Predict the hidden tokens of all views: one call of the head and of the loss, on real slots only.

        Returns:
            The weighted sum of all views' losses, and what is written down of each view.
        """
        length = fused_BLD.shape[1]
        slots, first_row = [], 0
        for view in views.values():
            num_rows, own_length = view.masked.tokens.ids_BL.shape
            row_T = first_row + view.masked.slot_T // own_length
            slots.append(row_T * length + view.masked.slot_T % own_length)
            first_row += num_rows
        hidden_TD = self.model.masked_lm_states(fused_BLD.flatten(0, 1)[torch.cat(slots)])
        label_T = torch.cat([view.masked.label_T for view in views.values()])
        sizes = [slot_T.shape[0] for slot_T in slots]
        factor_T = torch.cat([factors[name].expand(size) for name, size in zip(views, sizes, strict=True)])
        found = self.model.decode_with(
            hidden_TD,
            partial(
                masked_lm,
                label_T=label_T,
                factor_T=factor_T * self.objectives.mlm_weight,  # inside: what stands behind the loss scales V x D
                cross_entropy=self.cross_entropy,
            ),
        )
        means: dict[str, Tensor] = {}
        parts = (torch.split(values_T * factor_T, sizes) for values_T in (found.loss_T, found.correct_T))
        for name, loss_T, correct_T in zip(views, *parts, strict=True):
            means |= {f"{name}/mlm": loss_T.sum(), f"{name}/mlm_accuracy": correct_T.sum()}
        return found.total, means


def matching_losses(name: str, logits_F2: Tensor, weight: float) -> dict[str, Loss]:
    """Do query and memory belong together? The first third of the rows does (`MatchingRows.rows`)."""
    size = logits_F2.shape[0]
    labels_F = (torch.arange(size, device=logits_F2.device) < size // 3).long()
    term, correct = matching(logits_F2, labels_F)
    return {name: Loss(term=term, weight=weight), f"{name}_accuracy": accuracy(correct, term)}


def accuracy(correct: Tensor, term: Term) -> Loss:
    """Return the share of right answers among what a loss counts."""
    return Loss(term=Term(correct.float(), term.count), weight=None)
