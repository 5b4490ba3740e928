"""Batch meets model: one forward call per update, every module at most once.

    images ──► vision ─┐                                   ┌─► matching head ─► ITM, TTM
    texts    ┐         ├─► features ─► ITC, TTC            │
    masked   ┴► text ──┘      └─ hard negatives ─► fusion ─┼─► a view's own head (boxes, classes, answers)
                                     (rows)                └─► masked-LM head ─► conditional MLM, TLM

Under ZeRO-3 a module's parameters are gathered each time it runs, and ranks that run different modules wait for
each other for ever; so whatever must pass through a module is concatenated into one call, the same on every rank.
What stands in the calls is the views' business (`cclm/views`), what ranks tell each other that of `sharing.py`. Losses
are the published ones (Cross-View Language Modeling, arXiv 2206.00621, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from cclm.data.batch import Batch, ViewBatch
from cclm.data.ledger import hash64
from cclm.distributed.collectives import Collectives
from cclm.engine.protocol import Losses
from cclm.model.kernels import PLAIN, Kernels, use_kernels
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.packing import concatenate_padded
from cclm.objectives.options import ObjectiveConfig
from cclm.ops.contrastive import ContrastiveLoss, LogSums, contrastive_loss
from cclm.ops.contrastive_operator import log_sums
from cclm.ops.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy
from cclm.track.sections import NO_CLOCK, SectionClock
from cclm.train.frozen_texts import FrozenTexts
from cclm.train.losses import StepLosses
from cclm.train.sharing import Sharing, told
from cclm.train.teaching import teacher_maps, told_of_teacher
from cclm.views.view import Contribution, EncodedImages, EncodedRows, EncodedView, View


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
        log_sums: LogSums = log_sums,
        seed: int = 0,
        clock: SectionClock = NO_CLOCK,
    ) -> None:
        super().__init__()
        self.model, self.views = model, dict(views)
        self.objectives, self.collectives, self.clock = objectives, collectives, clock
        self.cross_entropy, self.contrastive, self.log_sums, self.seed = cross_entropy, contrastive, log_sums, seed
        use_kernels(model, kernels)
        configs = {name: view.config for name, view in self.views.items()}
        self.teacher_maps = teacher_maps(configs, model.config.projection_width, seed)
        self.pad_id = model.config.options().text.pad_token_id
        self.has_heads, self.has_words = model.text_projection is not None, model.masked_lm_transform is not None
        self.frozen_texts: FrozenTexts | None = None  # whoever freezes them may set it

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of this rank's share of an update (of a micro-batch of it).

        Their mean over the ranks and micro-batches is the global batch's. A micro-batch without `batch.shared` is only
        encoded: the metrics are then what it tells the others, for `Sharing.share`.
        """
        views, parts, temperature, known = self._contributions(batch)
        if batch.shared is None and batch.num_parts > 1:
            return Losses(total=torch.zeros((), device=temperature.device), metrics=known)
        sharing = self.sharing(batch)
        with self.clock.inside("communication"):
            shared = sharing.share([known]) if batch.shared is None else batch.shared
        bias = None if self.model.similarity_bias is None else self.model.similarity_bias()
        losses = StepLosses(
            model=self.model,
            objectives=self.objectives,
            cross_entropy=self.cross_entropy,
            contrastive=self.contrastive,
            sharing=sharing,
            shared=shared,
            batch=batch,
            views=views,
            parts=parts,
            temperature=temperature,
            bias=bias,
            teacher_maps=self.teacher_maps,
            clock=self.clock,
        )
        losses.contrast()
        losses.teach()
        losses.fuse()
        metrics = {"loss": losses.total.detach(), **losses.metrics}
        if self.has_heads:
            metrics["temperature"] = temperature.detach()[0]
        if bias is not None:
            metrics["similarity_bias"] = bias.detach()[0]
        return Losses(total=losses.total, metrics=metrics)

    def sharing(self, batch: Batch) -> Sharing:
        """Return how an update's rows are assigned."""
        configs = {name: self.views[name].config for name in batch.views}
        sums = partial(self.log_sums, hardness=self.objectives.contrastive_hardness)
        return Sharing(
            collectives=self.collectives,
            configs=configs,
            num_parts=batch.num_parts,
            log_sums=None if self.objectives.contrastive == "sigmoid" else sums,
            widths=self.objectives.matryoshka_widths,
        )

    def _contributions(
        self, batch: Batch
    ) -> tuple[Mapping[str, ViewBatch], dict[str, Contribution], Tensor, dict[str, Tensor]]:
        """The views' batches, normalised; what they contribute; the temperature; what others need of it."""
        views = batch.normalised().views  # bytes came over: a quarter of the traffic
        encoded = self._encode(views, hash64("patches", str(self.seed), str(batch.step)))
        known = dict[str, Tensor]()
        any_view = next(iter(views.values()))
        temperature = self.model.temperature() if self.has_heads else torch.ones(1, device=any_view.row_R.device)
        parts = {
            name: self.views[name].contribute(self.objectives, view, encoded[name]) for name, view in views.items()
        }
        if not self.has_words:
            parts = {name: replace(part, masked=None) for name, part in parts.items()}
        for name, part in parts.items():
            known |= told(name, views[name], part, temperature)
            known |= told_of_teacher(name, views[name], part.taught, self.views[name].config.teacher)
        return views, parts, temperature, known

    def _encode(self, views: Mapping[str, ViewBatch], step_key: int) -> dict[str, EncodedView]:
        """All texts through the text encoder and all images through the vision encoder, in one call each.

        Clean texts of all views come first, then masked texts of all views (of a model without masked-LM head none of
        them); only clean ones are projected, by a model with projections.
        """
        clean = [text for view in views.values() for text in view.texts]
        parts = [*clean, *(view.masked.tokens for view in views.values() if self.has_words)]
        ids_BL, mask_BL = concatenate_padded([(part.ids_BL, part.mask_BL) for part in parts], self.pad_id)
        known = [part.num_tokens for part in parts if part.num_tokens is not None]
        sizes = [part.ids_BL.shape[0] for part in parts]
        num_clean = sum(sizes[: len(clean)])
        with self.clock.inside("text"):
            num_tokens = sum(known) if len(known) == len(parts) else None
            if self.frozen_texts is None:
                states_BLD = self.model.encode_texts(ids_BL, mask_BL, num_tokens)
            else:
                first_BLD, start = self.frozen_texts(ids_BL, mask_BL, num_clean), self.frozen_texts.num_layers
                states_BLD = self.model.text_encoder(
                    ids_BL, mask_BL, num_tokens=num_tokens, first_BLD=first_BLD, start=start
                )
        states_BLD = self.clock.on_backward(states_BLD, "text")
        feature_BE = states_BLD.new_zeros(num_clean, 0)
        if self.has_heads:
            feature_BE = self.model.project_texts(states_BLD[:num_clean], mask_BL[:num_clean])
        states = [*zip(torch.split(states_BLD, sizes), torch.split(mask_BL, sizes), strict=True)]
        features = torch.split(feature_BE, sizes[: len(clean)])
        texts = (EncodedRows(states=rows, feature_BE=own) for rows, own in zip(states, features, strict=False))
        images = self._encode_images({name: view for name, view in views.items() if view.images is not None}, step_key)
        encoded, masked = {}, iter(states[len(clean) :])
        for name, view in views.items():
            own, hidden = tuple(islice(texts, len(view.texts))), next(masked, (states_BLD[:0], mask_BL[:0]))
            encoded[name] = EncodedView(texts=own, masked=hidden, images=images.get(name))
        return encoded

    def _encode_images(self, views: Mapping[str, ViewBatch], step_key: int) -> dict[str, EncodedImages]:
        """Images of all views through the vision encoder, and what stands for each row through the projection."""
        if not views:
            return {}
        images = [view.images for view in views.values() if view.images is not None]
        drops = self.model.keep_patches < 1  # then a sample is an image, in all views that have any
        key_B = torch.cat([view.ledger_S for view in views.values()]) ^ step_key if drops else None
        sizes = [image.shape[0] for image in images]
        with self.clock.inside("vision"):
            every_BND = self.model.encode_images(torch.cat(images), key_B)
        whole_BND = torch.split(self.clock.on_backward(every_BND, "vision"), sizes)
        states = [
            self.views[name].image_states(self.model, view, whole)
            for (name, view), whole in zip(views.items(), whole_BND, strict=True)
        ]
        first_B1D = torch.cat([states_BND[:, :1] for states_BND, _ in states])
        feature_BE = self.model.project_images(first_B1D) if self.has_heads else first_B1D.new_zeros(len(first_B1D), 0)
        features = torch.split(feature_BE, [states_BND.shape[0] for states_BND, _ in states])
        return {
            name: EncodedImages(whole_BND=whole, states=state, feature_BE=feature)
            for name, whole, state, feature in zip(views, whole_BND, states, features, strict=True)
        }
