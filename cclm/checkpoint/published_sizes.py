"""What a published file is, read off its names and shapes: which layout, which task, which sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt

from torch import Tensor

from cclm.checkpoint.families import FAMILIES, beit_family, swin_family
from cclm.checkpoint.published_names import pretrained_name
from cclm.errors import CheckpointError
from cclm.model.configuration_cclm import ModelOptions, TextOptions, VisionOptions

HEAD_WIDTH = 64
"""Width of an attention head of every published text encoder; weights do not tell it."""
ADVICE = "Import a pre-trained file (its names end like _epoch_29.th), or one fine-tuned for retrieval."
TABLE = "attn.relative_position_bias_table"


@dataclass(frozen=True, kw_only=True)
class StateKind:
    """What a state dict seems to be."""

    name: str
    advice: str
    """What to do if it cannot be imported."""


KINDS: dict[str, StateKind] = {
    "text_decoder.": StateKind(name="question answering", advice="A question-answering file has a decoder. " + ADVICE),
    "cls_head.": StateKind(name="classification", advice="A file fine-tuned for classes has its own head. " + ADVICE),
}
"""Prefix of a key that only this kind has → the kind; the first that fits."""


def kind_of_state(published: Mapping[str, Tensor]) -> StateKind:
    """Say what a state dict is, for an error's advice."""
    for prefix, kind in KINDS.items():
        if any(name.startswith(prefix) for name in published):
            return kind
    return StateKind(name="pre-trained", advice=ADVICE)


def options_of_state(
    published: Mapping[str, Tensor], *, text_heads: int | None = None, image_size: int | None = None, where: str = ""
) -> ModelOptions:
    """Sizes of the model that a file holds.

    Args:
        published: names and tensors.
        text_heads: attention heads of the text and fusion encoders; None: heads of width 64, as in all published ones.
        image_size: pixels of the model to make; None: the resolution of the file. Windows of a Swin tower grow with it,
            as in the published fine-tuning (224: 7, 384: 12).
        where: what to call the file in errors.

    Raises:
        CheckpointError: neither of the two published layouts.
    """
    published = {pretrained_name(name, published): value for name, value in published.items()}
    if "vision_encoder.layers.0.blocks.0." + TABLE in published:
        return _with_heads(_swin_options(published, text_heads, image_size), published)
    if "vision_encoder.cls_token" in published and "cross_encoder.encoder.layer.0.output.dense.weight" in published:
        return _with_heads(_beit_options(published, text_heads, image_size), published)
    raise CheckpointError(
        where=where,
        expected="a state dict of CCLM-3M/4M (Swin) or CCLM-X2VLM (BEiT-v2)",
        got=f"{len(published)} keys such as {', '.join(list(published)[:3])}",
        do=kind_of_state(published).advice,
    )


def _with_heads(options: ModelOptions, published: Mapping[str, Tensor]) -> ModelOptions:
    """Leave out the heads that the file has not: files fine-tuned for retrieval have neither of these."""
    masked_lm = any(name.startswith(("text_encoder.cls.", "mlm_head.")) for name in published)
    return replace(
        options,
        box_head="bbox_head.0.weight" in published,
        masked_lm_head=masked_lm,
        tie_decoder=options.tie_decoder and masked_lm,
    )


def family_of(options: ModelOptions) -> str | None:
    """The published family of these sizes (at any resolution), or None."""
    for name, family in FAMILIES.items():
        same_sizes = options.width == family.width and options.vision.architecture == family.vision.architecture
        if same_sizes and options.text.num_layers == family.text.num_layers:
            return name
    return None


def _swin_options(published: Mapping[str, Tensor], text_heads: int | None, image_size: int | None) -> ModelOptions:
    """CCLM-3M/4M."""
    tower, layer = "vision_encoder.layers", "text_encoder.bert.encoder.layer"
    num_stages = _count(published, rf"{tower}\.(\d+)\.")
    depths = [_count(published, rf"{tower}\.{stage}\.blocks\.(\d+)\.") for stage in range(num_stages)]
    heads = [published[f"{tower}.{stage}.blocks.0.{TABLE}"].shape[1] for stage in range(num_stages)]
    window = (isqrt(published[f"{tower}.0.blocks.0.{TABLE}"].shape[0]) + 1) // 2
    patch = published["vision_encoder.patch_embed.proj.weight"].shape[-1]
    stride = patch * 2 ** (num_stages - 1)
    num_layers = _count(published, rf"{layer}\.(\d+)\.")
    num_fusion = len(
        {name.split(".")[4] for name in published if name.startswith(layer) and ".crossattention." in name}
    )
    return swin_family(
        width=published["vision_encoder.norm.weight"].shape[0],
        projection_width=published["text_proj.weight"].shape[0],
        vision=VisionOptions(
            image_size=image_size or stride * window,
            patch_size=patch,
            window=window if image_size is None else max(1, image_size // stride),
            stage_layers=tuple(depths),
            stage_heads=tuple(heads),
            num_heads=heads[-1],
            drop_path=0.1,
        ),
        text=_text_options(published, "text_encoder.bert", num_layers - num_fusion, text_heads),
        fusion_layers=num_fusion,
    )


def _beit_options(published: Mapping[str, Tensor], text_heads: int | None, image_size: int | None) -> ModelOptions:
    """CCLM-X2VLM."""
    rows, num_heads = published[f"vision_encoder.blocks.0.{TABLE}"].shape
    patch = published["vision_encoder.patch_embed.proj.weight"].shape[-1]
    return beit_family(
        width=published["vision_encoder.cls_token"].shape[-1],
        projection_width=published["text_proj.weight"].shape[0],
        vision=VisionOptions(
            image_size=image_size or (isqrt(rows - 3) + 1) // 2 * patch,
            patch_size=patch,
            num_layers=_count(published, r"vision_encoder\.blocks\.(\d+)\."),
            num_heads=num_heads,
            drop_path=0.1,
        ),
        text=_text_options(
            published, "text_encoder", _count(published, r"text_encoder\.encoder\.layer\.(\d+)\."), text_heads
        ),
        fusion_layers=_count(published, r"cross_encoder\.encoder\.layer\.(\d+)\."),
    )


def _text_options(published: Mapping[str, Tensor], prefix: str, num_layers: int, text_heads: int | None) -> TextOptions:
    """Sizes of the text encoder."""
    vocab_size, width = published[f"{prefix}.embeddings.word_embeddings.weight"].shape
    return TextOptions(
        vocab_size=vocab_size,
        max_positions=published[f"{prefix}.embeddings.position_embeddings.weight"].shape[0],
        num_layers=num_layers,
        num_heads=text_heads or max(1, width // HEAD_WIDTH),
        feedforward_width=published[f"{prefix}.encoder.layer.0.intermediate.dense.weight"].shape[0],
    )


def _count(published: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand in the names where the pattern has its group."""
    found = {match.group(1) for match in (re.match(pattern, name) for name in published) if match}
    return len(found)
