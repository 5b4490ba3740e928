"""Golden inputs as batches of the training step, with the noise that makes it draw the recorded negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cclm.data.batch import Batch, MaskedTokens, PixelScale, Tokens
from cclm.data.config import ViewConfig
from cclm.distributed.collectives import SINGLE, Collectives
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.packing import concatenate_padded
from cclm.objectives.options import ObjectiveConfig
from cclm.train.step import CrossViewTraining
from cclm.views.image_text.view import ImageTextBatch
from cclm.views.regions.view import RegionBatch
from cclm.views.table import VIEWS, make_views
from cclm.views.text_pair.view import TextPairBatch
from tests.golden.cases import Draws, Inputs

FLOATS = PixelScale(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Not used: the golden images are normalised."""

NAMES = {
    "image_text": {"loss_itc": "itc", "loss_itm": "itm", "loss_mlm": "mlm", "loss_ttc": "ttc"},
    "regions": {"loss_itc": "itc", "loss_itm": "itm", "loss_mlm": "mlm", "loss_bbox": "box", "loss_giou": "giou"},
    "text_pair": {"loss_ttc": "ttc", "loss_ttm": "ttm", "loss_mlm": "mlm"},
}
"""Published names of losses → ours, by view."""


def view_of(inputs: Inputs) -> str:
    """Which view a case belongs to."""
    if "image" not in inputs:
        return "text_pair"
    return "regions" if "target_bbox" in inputs else "image_text"


def training_of(
    model: CCLMModel,
    batch: Batch,
    objectives: ObjectiveConfig | None = None,
    collectives: Collectives = SINGLE,
    *,
    tlm: bool = False,
) -> CrossViewTraining:
    """The training module with the views of a batch, in sizes of which each rank holds so much."""
    configs: dict[str, ViewConfig] = {}
    for name, view in batch.views.items():
        group = len(view.row_R)
        size = group * collectives.world_size
        sizes: dict[str, Any] = {"batch_size": size, "matching_rows": size, "negative_group": group}
        options = {"tlm": tlm} if name == "text_pair" else {}
        configs[name] = VIEWS[name].config(sources={}, **sizes, **options)
    return CrossViewTraining(model, make_views(configs), objectives or ObjectiveConfig(), collectives)


def batch_of(inputs: Inputs, draws: Draws | None, *, first_row: int = 0) -> Batch:
    """The case as a batch with one view; `first_row` is that of this rank in the global batch."""
    make = {"image_text": _image_text, "regions": _regions, "text_pair": _text_pair}[view_of(inputs)]
    return Batch(step=0, views={view_of(inputs): make(inputs, draws, first_row)})


def together(*batches: Batch) -> Batch:
    """One joint batch of several views."""
    found = {name: view for batch in batches for name, view in batch.views.items()}
    return Batch(step=0, views={name: found[name] for name in NAMES if name in found})


def _image_text(inputs: Inputs, draws: Draws | None, first_row: int) -> ImageTextBatch:
    rows = torch.arange(inputs["text_ids"].shape[0])
    second, first = _noise(draws, len(rows))
    return ImageTextBatch(
        images_BCHW=inputs["image"],
        pixel_scale=FLOATS,
        text=_tokens(inputs, "text_ids", "text_atts"),
        identity_R=rows + first_row,
        row_R=rows + first_row,
        matching_row_F=rows,
        counted_F=torch.ones(len(rows)),
        noise_second_FG=second,
        noise_first_FG=first,
        masked=_masked(inputs),
        ledger_S=rows,
        second_text=_tokens(inputs, "text_ids_2", "text_atts_2") if "text_ids_2" in inputs else None,
    )


def _regions(inputs: Inputs, draws: Draws | None, first_row: int) -> RegionBatch:
    rows = torch.arange(inputs["text_ids"].shape[0])
    second, first = _noise(draws, len(rows))
    return RegionBatch(
        images_BCHW=inputs["image"],
        pixel_scale=FLOATS,
        image_of_R=inputs["idx_to_group_img"],
        mask_RN=inputs["image_atts"].bool(),
        box_R4=inputs["target_bbox"],
        whole_R=inputs["is_image"].bool() if "is_image" in inputs else torch.zeros(len(rows), dtype=torch.bool),
        text=_tokens(inputs, "text_ids", "text_atts"),
        identity_R=rows + first_row,
        row_R=rows + first_row,
        matching_row_F=rows,
        counted_F=torch.ones(len(rows)),
        noise_second_FG=second,
        noise_first_FG=first,
        masked=_masked(inputs),
        ledger_S=torch.arange(inputs["image"].shape[0]),
    )


def _text_pair(inputs: Inputs, draws: Draws | None, first_row: int) -> TextPairBatch:
    assert first_row == 0, "the golden sets have no sentence pairs on several ranks"
    size = inputs["text_ids"].shape[0]
    rows = torch.arange(size)
    sides = [(inputs[f"text_ids{end}"], inputs[f"text_atts{end}"].bool()) for end in ("", "_2")]
    ids_BL, mask_BL = concatenate_padded(sides, 1)
    second, first = _noise(draws, size)
    return TextPairBatch(
        text=Tokens(ids_BL=ids_BL, mask_BL=mask_BL),
        first_P=rows,
        second_P=rows + size,
        identity_P=rows,
        row_R=rows + first_row,
        matching_row_F=rows,
        counted_F=torch.ones(len(rows)),
        memory_S=rows,
        query_S=rows + size,
        identity_S=rows,
        noise_second_FG=second,
        noise_first_FG=first,
        masked=_masked(inputs),
        ledger_S=rows,
    )


def _tokens(inputs: Inputs, ids: str, mask: str) -> Tokens:
    return Tokens(ids_BL=inputs[ids], mask_BL=inputs[mask].bool())


def _masked(inputs: Inputs) -> MaskedTokens:
    mask_BL = inputs.get("text_atts_masked", inputs["text_atts"]).bool()
    slot_BS, label_BS = inputs["masked_pos"], inputs["masked_ids"]
    real = label_BS != -100
    flat_BS = slot_BS + torch.arange(len(slot_BS))[:, None] * mask_BL.shape[1]
    return MaskedTokens(
        tokens=Tokens(ids_BL=inputs["text_ids_masked"], mask_BL=mask_BL), slot_T=flat_BS[real], label_T=label_BS[real]
    )


def _noise(draws: Draws | None, size: int) -> tuple[Tensor, Tensor]:
    """Noise for second and for first sides that leaves the recorded draw alone in the race."""
    if draws is None:
        return torch.zeros(size, size), torch.zeros(size, size)
    first_for_second, second_for_first = draws
    forced = [
        torch.full((size, size), -torch.inf).scatter(1, drawn.long()[:, None], 0.0)
        for drawn in (second_for_first, first_for_second)
    ]
    return forced[0], forced[1]
