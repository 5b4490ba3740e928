"""One golden case through the model and the objectives that training uses; only the drawn negatives come from the file.

The published order is kept: positives, then every second side with a wrong first side, then every first side with a
wrong second side. "First" is the image (or text 1), "second" the text that asks (text 2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from cclm.distributed.collectives import SINGLE, Collectives
from cclm.model.modeling_cclm import CCLMModel
from cclm.objectives.boxes import box_losses
from cclm.objectives.contrastive import contrastive
from cclm.objectives.matching import matching
from cclm.ops.linear_cross_entropy import linear_cross_entropy
from tests.gathering import all_rows, gather_of

Inputs = dict[str, Tensor]
Draws = tuple[Tensor, Tensor]


@dataclass
class Outcome:
    """What a case computed: values by the names of the golden files, and loss terms."""

    values: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    """This rank's means, as the published code takes them."""

    def total(self) -> Tensor:
        """Their sum."""
        return torch.stack(list(self.losses.values())).sum()


@dataclass(frozen=True)
class Runner:
    """A model, and how the ranks talk."""

    model: CCLMModel
    talk: Collectives = SINGLE
    grad_scale: float = 1.0

    def run(self, case: str, inputs: Inputs, draws: Draws | None) -> Outcome:
        """The case by its name."""
        outcome = Outcome()
        if case == "tlm":
            self._sentences(inputs, outcome)
            self._translation_lm(inputs, outcome)
        elif "image" in inputs:
            assert draws is not None
            self._image(inputs, draws, outcome, with_boxes="target_bbox" in inputs)
        else:
            assert draws is not None
            first, second, masks = self._sentences(inputs, outcome)
            self._match(outcome, "loss_ttm", (first, masks[0]), (second, masks[1]), draws)
            self._masked_lm(inputs, outcome, second, masks[1])
        return outcome

    def _image(self, inputs: Inputs, draws: Draws, outcome: Outcome, *, with_boxes: bool) -> None:
        """Image-text, with a second caption, or with regions."""
        image_BND, image_mask = self._encode_image(inputs, outcome, with_boxes)
        text_BLD, mask_BL = self._text(inputs, outcome, "text_ids", "text_atts", "")
        image_BE = outcome.values["image_feat"] = self.model.project_images(image_BND)
        text_BE = outcome.values["text_feat"] = self.model.project_texts(text_BLD, mask_BL)
        itc = self._contrast(outcome, "contrastive_logits", image_BE, text_BE)
        if "text_ids_2" in inputs:
            second_BLD, second_mask = self._text(inputs, outcome, "text_ids_2", "text_atts_2", "#1")
            second_BE = outcome.values["text_feat#1"] = self.model.project_texts(second_BLD, second_mask)
            other = self._contrast(outcome, "contrastive_logits#1", image_BE, second_BE)
            itc = 0.5 * (itc + other)
            outcome.losses["loss_ttc"] = self._contrast(outcome, "contrastive_logits#2", text_BE, second_BE)
        outcome.losses["loss_itc"] = itc
        self._match(outcome, "loss_itm", (image_BND, image_mask), (text_BLD, mask_BL), draws)
        self._masked_lm(inputs, outcome, image_BND, image_mask)
        if with_boxes:
            full_BND = outcome.values["image_embeds_fullatts"]
            fused = outcome.values["cross_embeds#2"] = self.model.fuse(text_BLD, mask_BL, full_BND)
            outcome.values["bbox_head_input"] = fused[:, 0]
            boxes = self.model.locate_boxes(fused, mask_BL)
            outcome.values["bbox_head_logits"] = boxes.logit()
            counted = ~inputs["is_image"].bool() if "is_image" in inputs else torch.ones(len(boxes), dtype=torch.bool)
            for name, losses in zip(("loss_bbox", "loss_giou"), box_losses(boxes, inputs["target_bbox"]), strict=True):
                outcome.losses[name] = losses[counted].mean()

    def _encode_image(self, inputs: Inputs, outcome: Outcome, with_boxes: bool) -> tuple[Tensor, Tensor]:
        """Memory and its mask."""
        image_BND = self.model.encode_images(inputs["image"])
        mask_BN = torch.ones(image_BND.shape[:2], dtype=torch.bool)
        if with_boxes:
            image_of, mask_BN = inputs["idx_to_group_img"], inputs["image_atts"].bool()
            outcome.values["image_embeds_fullatts"] = image_BND[image_of]
            image_BND = self.model.pool_regions(image_BND, image_of, mask_BN)
        outcome.values["image_embeds"], outcome.values["image_atts_out"] = image_BND, mask_BN
        return image_BND, mask_BN

    def _text(self, inputs: Inputs, outcome: Outcome, ids: str, mask: str, suffix: str) -> tuple[Tensor, Tensor]:
        """States and mask of one side."""
        mask_BL = inputs[mask].bool()
        text_BLD = self.model.encode_texts(inputs[ids], mask_BL)
        outcome.values[f"text_embeds{suffix}"] = text_BLD
        return text_BLD, mask_BL

    def _sentences(self, inputs: Inputs, outcome: Outcome) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Both sides of a sentence pair and their contrastive loss."""
        first_BLD, first_mask = self._text(inputs, outcome, "text_ids", "text_atts", "")
        second_BLD, second_mask = self._text(inputs, outcome, "text_ids_2", "text_atts_2", "#1")
        first_BE = outcome.values["text_feat"] = self.model.project_texts(first_BLD, first_mask)
        second_BE = outcome.values["text_feat#1"] = self.model.project_texts(second_BLD, second_mask)
        outcome.losses["loss_ttc"] = self._contrast(outcome, "contrastive_logits", first_BE, second_BE)
        return first_BLD, second_BLD, (first_mask, second_mask)

    def _contrast(self, outcome: Outcome, name: str, first_BE: Tensor, second_BE: Tensor) -> Tensor:
        """Each row is its own identity, also over the ranks: the published pre-training knows no duplicates."""
        identity_B = torch.arange(first_BE.shape[0]) + self.talk.rank * first_BE.shape[0]
        temperature = self.model.temperature()
        outcome.values[name] = first_BE @ second_BE.T / temperature
        own = first_BE, second_BE, identity_B, identity_B
        everything = all_rows(gather_of(self.talk), *own, temperature)
        total = contrastive(*own, temperature, everything=everything, grad_scale=self.grad_scale)
        return total / first_BE.shape[0]

    def _match(
        self, outcome: Outcome, name: str, memory: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor], draws: Draws
    ) -> None:
        """Positives and both kinds of negatives in one fusion call."""
        first_of_second, second_of_first = draws
        rows = torch.arange(query[0].shape[0])
        query_rows, memory_rows = torch.cat([rows, rows, second_of_first]), torch.cat([rows, first_of_second, rows])
        mask = query[1][query_rows]
        fused = self.model.fuse(query[0][query_rows], mask, memory[0][memory_rows], memory[1][memory_rows])
        outcome.values["cross_embeds"], outcome.values["cross_embeds#1"] = fused[: len(rows)], fused[len(rows) :]
        outcome.values["itm_head_input"] = fused[:, 0]
        logits = outcome.values["itm_head_logits"] = self.model.match_logits(fused, mask)
        labels = (torch.arange(len(query_rows)) < len(rows)).long()
        outcome.losses[name] = matching(logits, labels)[0].mean()

    def _masked_lm(
        self, inputs: Inputs, outcome: Outcome, memory_BND: Tensor | None, memory_mask_BN: Tensor | None
    ) -> None:
        """Masked texts through both encoders; logits at every slot, loss at the real ones."""
        mask_BL = inputs.get("text_atts_masked", inputs["text_atts"]).bool()
        states = outcome.values["text_embeds_masked"] = self.model.encode_texts(inputs["text_ids_masked"], mask_BL)
        fused = outcome.values["cross_embeds_mlm"] = self.model.fuse(states, mask_BL, memory_BND, memory_mask_BN)
        slot_BS, label_BS = inputs["masked_pos"], inputs["masked_ids"]
        gathered = fused.gather(1, slot_BS[..., None].expand(-1, -1, fused.shape[-1]))
        outcome.values["mlm_gathered_hidden"] = gathered
        real = label_BS != -100
        with torch.no_grad():
            hidden = self.model.masked_lm_states(gathered.flatten(0, 1))
            logits = self.model.decode_with(hidden, functional.linear)
            outcome.values["mlm_logits"] = logits.view(*slot_BS.shape, -1)
        hidden_TD = self.model.masked_lm_states(gathered[real])
        losses = self.model.decode_with(hidden_TD, partial(linear_cross_entropy, label_T=label_BS[real]))
        outcome.losses["loss_mlm"] = losses.total / max(1, hidden_TD.shape[0])

    def _translation_lm(self, inputs: Inputs, outcome: Outcome) -> None:
        """TLM: both sentences in one text, no memory."""
        self._masked_lm(inputs, outcome, None, None)
