"""What a published file is, read off its names and shapes: which layout, which task, which sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt

import torch
from torch import Tensor

from cclm.errors import CheckpointError
from cclm.model.options import ModelOptions, TextOptions, VisionOptions
from cclm.pretrained.families import FAMILIES, beit_family, swin_family
from cclm.pretrained.published_names import pretrained_name

HEAD_WIDTH = 64
"""Width of an attention head of every published text encoder; weights do not tell it."""
ADVICE = (
    "What can be imported: pre-trained files (names end like _epoch_29.th) and files fine-tuned for retrieval, classes "
    "(XVNLI), pairs of images (NLVR2) or answers (GQA, VQA)."
)
TABLE = "attn.relative_position_bias_table"


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
        do=ADVICE,
    )


def _with_heads(options: ModelOptions, published: Mapping[str, Tensor]) -> ModelOptions:
    """Give the model the heads that the file has, and their widths."""
    masked_lm = any(name.startswith(("text_encoder.cls.", "mlm_head.")) for name in published)
    answers = any(name.startswith("text_decoder.") for name in published)
    tied = options.tie_decoder and (masked_lm or answers)
    options = replace(
        options,
        box_head="bbox_head.0.weight" in published,
        masked_lm_head=masked_lm,
        answer_decoder=answers,
        tie_decoder=tied,
        pretraining_heads="itm_head.0.weight" in published,
    )
    if "itm_head.0.weight" in published:
        options = replace(options, matching_width=published["itm_head.0.weight"].shape[0])
    elif "cls_head.0.weight" not in published:
        options = replace(options, matching_width=ModelOptions().matching_width)  # nothing uses it
    if "cls_head.0.weight" not in published:
        return options
    hidden, width = published["cls_head.0.weight"].shape
    num_images = width // options.width
    return replace(
        options,
        num_classes=published["cls_head.3.weight"].shape[0],
        class_images=num_images,
        matching_width=hidden // num_images,
    )


def family_of(options: ModelOptions) -> str | None:
    """The published family of these sizes (at any resolution), or None."""
    for name, family in FAMILIES.items():  # pre-trained ones first
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
    num_memories = _num_memories(published, layer, num_layers - num_fusion)
    family = swin_family(
        width=published["vision_encoder.norm.weight"].shape[0],
        projection_width=_projection_width(published),
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
        fusion_layers=num_fusion // num_memories,
    )
    block = f"vision_encoder.layers.{num_stages - 1}.blocks.0"
    return replace(
        family,
        vision=replace(family.vision, feedforward_width=published[f"{block}.mlp.fc1.weight"].shape[0]),
        fusion=replace(family.fusion, num_memories=num_memories),
    )


def _num_memories(published: Mapping[str, Tensor], layer: str, first_fusion: int) -> int:
    """2 if the fusion layers stand there in pairs with the same keys (NLVR), else 1."""
    first, second = (f"{layer}.{first_fusion + number}.crossattention.self.key.weight" for number in (0, 1))
    if "cls_head.0.weight" not in published or second not in published or published[first].is_meta:
        return 1
    return 2 if torch.equal(published[first], published[second]) else 1


def _projection_width(published: Mapping[str, Tensor]) -> int:
    """Of the contrastive features; a model without them keeps the default, which nothing uses."""
    name = "text_proj.weight"
    return published[name].shape[0] if name in published else ModelOptions().projection_width


def _beit_options(published: Mapping[str, Tensor], text_heads: int | None, image_size: int | None) -> ModelOptions:
    """CCLM-X2VLM."""
    rows, num_heads = published[f"vision_encoder.blocks.0.{TABLE}"].shape
    patch = published["vision_encoder.patch_embed.proj.weight"].shape[-1]
    family = beit_family(
        width=published["vision_encoder.cls_token"].shape[-1],
        projection_width=_projection_width(published),
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
    feedforward_width = published["vision_encoder.blocks.0.mlp.fc1.weight"].shape[0]
    return replace(family, vision=replace(family.vision, feedforward_width=feedforward_width))


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
