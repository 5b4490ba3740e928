"""The losses of one forward call, after the encoders: contrastive, matching, masked-LM, and the views' own heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cclm.data.batch import Batch, ViewBatch
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.packing import concatenate_padded
from cclm.objectives.contrastive import contrastive
from cclm.objectives.matching import matching
from cclm.objectives.options import ObjectiveConfig
from cclm.ops.contrastive import ContrastiveLoss
from cclm.ops.linear_cross_entropy import LinearCrossEntropy
from cclm.track.sections import NO_CLOCK, SectionClock
from cclm.train.sharing import Named, Negatives, Sharing
from cclm.train.teaching import taught_losses
from cclm.views.view import Contrast, Contribution, FusionRows, Pairing, States, memories_of, select, stop_gradient


@dataclass(kw_only=True)
class StepLosses:
    """Computes the losses of this rank's share of an update, and adds them up.

    Each is a sum over the share's rows, scaled so that the mean over ranks and micro-batches is the mean over the rows
    of the global batch (or the mean of the shares' means, as published), however rows are assigned.
    """

    model: CCLMModel
    objectives: ObjectiveConfig
    cross_entropy: LinearCrossEntropy
    contrastive: ContrastiveLoss
    sharing: Sharing
    shared: Named
    batch: Batch
    views: Mapping[str, ViewBatch]
    """The batch's, normalised."""
    parts: Mapping[str, Contribution]
    temperature: Tensor
    bias: Tensor | None
    """Of similarities, in the sigmoid form of the contrastive losses."""
    teacher_maps: nn.ModuleDict
    """To features of the views' teachers."""
    clock: SectionClock = NO_CLOCK
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Every loss and accuracy, detached."""
    _terms: list[Tensor] = field(default_factory=list)

    @property
    def total(self) -> Tensor:
        """The weighted sum of the losses so far."""
        return torch.stack(self._terms).sum()

    def _add(self, name: str, value: Tensor, weight: float | None = None) -> None:
        """Write a value down; with a weight it is a term of the total."""
        self.metrics[name] = value.detach()
        if weight is not None:
            self._terms.append(value * weight)

    def _factor(self, own: Tensor, count: Tensor) -> Tensor:
        """What a sum over this share's rows is multiplied with, by how many of them count, here and everywhere."""
        if self.objectives.means == "per_rank":
            return own.clamp_min(1).float().reciprocal()
        return self.sharing.collectives.world_size * self.sharing.num_parts / count.clamp_min(1)

    def contrast(self) -> None:
        """This share's rows against all rows: means over the global batch, which each published rank computed whole."""
        for name, part in self.parts.items():
            for contrast in part.contrasts:
                key = f"{name}/{contrast.name}"
                self._add(key, self._contrast(key, contrast, None), contrast.weight)
                for width in self.objectives.matryoshka_widths:
                    weight = contrast.weight * self.objectives.matryoshka_weight
                    self._add(f"{key}_{width}", self._contrast(key, contrast, width), weight)

    def _contrast(self, key: str, contrast: Contrast, width: int | None) -> Tensor:
        """Of whole features, or of their first components."""
        num_shares = self.sharing.collectives.world_size * self.sharing.num_parts
        means = []
        for number, (first, second) in enumerate(contrast.pairs):
            pair = f"{key}/{number}"
            total = contrastive(
                first.feature_NE,
                second.feature_NE,
                first.identity_N,
                second.identity_N,
                self.temperature * contrast.temperature_factor,
                everything=self.sharing.all_rows(pair, self.batch.part, self.shared, width),
                label_smoothing=self.objectives.label_smoothing,
                hardness=self.objectives.contrastive_hardness,
                bias=self.bias,
                grad_scale=self.objectives.contrastive_grad_scale,
                width=width,
                loss=self.contrastive,
            )
            means.append(total * (num_shares / max(1, self.shared[f"{pair}/first"].shape[0])))
        return torch.stack(means).mean()

    def teach(self) -> None:
        """Pull features to those of the views' teachers: means over the rows that these know, in the global batch."""
        num_shares, shared = self.sharing.collectives.world_size * self.sharing.num_parts, self.shared
        for name, view in self.views.items():
            teacher = self.sharing.configs[name].teacher
            if teacher is None:
                continue
            told = None if self.sharing.is_alone else shared
            found = taught_losses(name, view, self.parts[name].taught, teacher, self.teacher_maps, told)
            for side, total, num_known in found:
                known, rows = shared[f"{name}/taught/{side}/counts"].sum(0)
                self._add(f"{name}/teacher_{side}", total * (num_shares / known.clamp_min(1)), teacher.weight)
                self._add(f"{name}/teacher_{side}_known", num_known * (num_shares / rows))

    def fuse(self) -> None:
        """One fusion call for the rows of all views; then matching, masked-LM and the views' own heads."""
        pairings = {name: part.pairing for name, part in self.parts.items() if part.pairing is not None}
        located = {name: part.located for name, part in self.parts.items() if part.located is not None}
        hardness = self.objectives.hardness_at(self.batch.step)
        draw = partial(self.sharing.negatives, shared=self.shared, temperature=self.temperature, hardness=hardness)
        negatives = {name: draw(name, self.views[name], pairing) for name, pairing in pairings.items()}
        matched = [self._matching_rows(name, pairing, negatives[name]) for name, pairing in pairings.items()]
        masked = [part.masked for part in self.parts.values() if part.masked is not None]
        others = masked + [part.rows.in_passes(self.model.fusion_encoder.num_memories) for part in located.values()]
        sizes = [*(sum(part.count for part in own) for own in matched), *(part.count for part in others)]
        first, second = sum(sizes[: len(pairings)]), sum(sizes[: len(pairings) + len(masked)])
        reads_all = self.model.pooling[1] == "mean" or not all(head.is_pooled for head in located.values())
        rows = [*(part for own in matched for part in own), *others]
        fused, masked_TD, fused_own = self._fuse(rows, first, second, reads_all)
        if pairings:
            logits = torch.split(self.model.match_logits(*fused), sizes[: len(pairings)])
            for (name, pairing), logits_F2 in zip(pairings.items(), logits, strict=True):
                self._matching(name, pairing, negatives[name], logits_F2)
        self._masked_lm(masked_TD)
        own = (torch.split(values, sizes[len(pairings) + len(masked) :]) for values in fused_own)
        for (name, head), fused_FLD, mask_FL in zip(located.items(), *own, strict=True):
            factor = self._factor(head.counted_F.sum(), self.shared[f"{name}/counts"].sum(0)[1])
            for loss_name, loss in head.losses(self.model, fused_FLD, mask_FL).items():
                self._add(f"{name}/{loss_name}", (loss.loss_F * head.counted_F).sum() * factor, loss.weight)

    def _matching_rows(self, name: str, pairing: Pairing, drawn: Negatives) -> list[FusionRows]:
        """Right pairs, as many with a wrong memory, as many with a wrong query."""
        view, part, longest = self.views[name], self.batch.part, self.sharing.configs[name].max_tokens
        own, row_F = pairing.memory.states, view.matching_row_F
        right = select(pairing.query.states, row_F)
        with self.clock.inside("communication"):
            states, wrong_F = self.sharing.states_of_rows(name, part, pairing.query.states, drawn.query_F, longest)
        wrong = select(states, wrong_F)
        length = longest if view.images is None else None
        with self.clock.inside("communication"):
            memory, memory_F = self.sharing.states_of_rows(name, part, own, drawn.memory_F, length)
        if memory is not own:  # those of several ranks: only what is read shall become keys and values
            memory, memory_F = select(memory, memory_F), torch.arange(memory_F.shape[0], device=memory_F.device)
        return [
            FusionRows(query=right, memory=own, memory_row_F=row_F),
            FusionRows(query=right, memory=memory, memory_row_F=memory_F),
            FusionRows(query=wrong, memory=own, memory_row_F=row_F),
        ]

    def _fuse(
        self, parts: Sequence[FusionRows], first: int, second: int, reads_all: bool
    ) -> tuple[States, Tensor, States]:
        """The fusion encoder on all rows: what is read of those before `first` (matching; all their states or the first
        ones), of those before `second` (masked slots) and of the views' own."""
        with self.clock.inside("fusion"):
            query_BLD, mask_BL, memory = self._fusion_inputs(parts)
            num_rows, length = mask_BL.shape
            slot_T, first_B = self._slots(first, length), torch.arange(num_rows, device=mask_BL.device) * length
            wanted_W = None if reads_all else torch.cat([first_B[:first], slot_T, first_B[second:]])
            fused = self.model.fuse(query_BLD, mask_BL, **memory, wanted_W=wanted_W)
        fused = self.clock.on_backward(fused, "fusion")
        if reads_all:
            return (fused[:first], mask_BL[:first]), fused.flatten(0, 1)[slot_T], (fused[second:], mask_BL[second:])
        matched_FD, masked_TD, own_FD = torch.split(fused, [first, len(slot_T), num_rows - second])
        return (matched_FD[:, None], mask_BL[:first, :1]), masked_TD, (own_FD[:, None], mask_BL[second:, :1])

    def _slots(self, first_row: int, length: int) -> Tensor:
        """Cells of the masked tokens of all views, whose rows are those from `first_row` on."""
        slots = [torch.arange(0, device=self.temperature.device)]
        for name, view in self.views.items():
            if self.parts[name].masked is not None:
                num_rows, own_length = view.masked.tokens.ids_BL.shape
                row_T = first_row + view.masked.slot_T // own_length
                slots.append(row_T * length + view.masked.slot_T % own_length)
                first_row += num_rows
        return torch.cat(slots)

    def _fusion_inputs(self, parts: Sequence[FusionRows]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Rows with and without memory; keys and values of a memory are computed once."""
        query_BLD, mask_BL = concatenate_padded([part.query for part in parts])
        query_BLD = self.clock.on_backward(query_BLD, "losses")
        reaches_encoders = self.batch.step >= self.objectives.fusion_warmup_steps
        if not reaches_encoders:
            query_BLD = stop_gradient(query_BLD)
        found = memories_of(parts)
        if found is None:
            return query_BLD, mask_BL, {"memory": None}
        memories, memory_of_B, has_memory_B = found
        memory_MND, memory_mask_MN = concatenate_padded(memories)
        if not reaches_encoders:
            memory_MND = stop_gradient(memory_MND)
        if memory_of_B.ndim > 1:  # several images of each row at once, every token of which is real
            return query_BLD, mask_BL, {"memory": [memory_MND[of_B] for of_B in memory_of_B.unbind(1)]}
        told = {"memory_mask_MN": memory_mask_MN, "has_memory_B": has_memory_B, "memory_of_B": memory_of_B}
        return query_BLD, mask_BL, {"memory": memory_MND, **told}

    def _matching(self, name: str, pairing: Pairing, drawn: Negatives, logits_F2: Tensor) -> None:
        """Do query and memory belong together? The first third of the rows does."""
        size = logits_F2.shape[0]
        labels_F = (torch.arange(size, device=logits_F2.device) < size // 3).long()
        loss_F, is_right_F = matching(logits_F2, labels_F)
        counted_F = (self.views[name].counted_F * drawn.is_valid_F).repeat(3)
        factor = self._factor(counted_F.sum(), 3 * drawn.num_valid)
        self._add(f"{name}/{pairing.name}", (loss_F * counted_F).sum() * factor, pairing.weight)
        self._add(f"{name}/{pairing.name}_accuracy", (is_right_F * counted_F).sum() * factor)
        self._add(f"{name}/{pairing.name}_rows", drawn.num_valid / drawn.num_rows)

    def _masked_lm(self, fused_TD: Tensor) -> None:
        """Predict the hidden tokens of all views: one call of the head and of the loss."""
        views = {name: view for name, view in self.views.items() if self.parts[name].masked is not None}
        if not views:
            return
        factors = []
        for name, view in views.items():
            counted_T = view.counted_F[view.masked.slot_T // view.masked.tokens.ids_BL.shape[1]]
            factors.append(counted_T * self._factor(counted_T.sum(), self.shared[f"{name}/counts"].sum(0)[0]))
        hidden_TD, factor_T = self.model.masked_lm_states(fused_TD), torch.cat(factors)
        label_T = torch.cat([view.masked.label_T for view in views.values()])
        weight_T = factor_T * self.objectives.mlm_weight  # inside: what stands behind the loss scales V x D
        found = self.model.decode_with(
            hidden_TD,
            lambda rows_TD, words_VD, bias_V: self.cross_entropy(rows_TD, words_VD, bias_V, label_T, weight_T),
        )
        self._terms.append(found.total)
        sizes = [factor.shape[0] for factor in factors]
        values = (torch.split(values_T * factor_T, sizes) for values_T in (found.loss_T, found.correct_T))
        for name, loss_T, correct_T in zip(views, *values, strict=True):
            self._add(f"{name}/mlm", loss_T.sum())
            self._add(f"{name}/mlm_accuracy", correct_T.sum())
