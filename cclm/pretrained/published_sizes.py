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
from cclm.pretrained.families import DROPOUT, FAMILIES, published_options
from cclm.pretrained.published_names import pretrained_name

HEAD_WIDTH = 64
"""Width of an attention head of every published text encoder; weights do not tell it."""
ADVICE = (
    "What can be imported: pre-trained files (names end like _epoch_29.th) and files fine-tuned for retrieval, classes "
    "(XVNLI), pairs of images (NLVR2) or answers (GQA, VQA)."
)
TABLE = "attn.relative_position_bias_table"
BEIT_MARKS = {"vision_encoder.cls_token", "cross_encoder.encoder.layer.0.output.dense.weight"}
UNUSED = ModelOptions()
"""Its widths stand for those of heads that a model has not."""


def options_of_state(
    published: Mapping[str, Tensor], *, text_heads: int | None = None, image_size: int | None = None, where: str = ""
) -> ModelOptions:
    """Sizes of the model that a file holds (CheckpointError: neither of the two published layouts).

    `text_heads`: of the text and fusion encoders; None: heads of width 64, as in all published ones. `image_size`: of
    the model to make; windows of a Swin tower grow with it, as in the published fine-tuning (224: 7, 384: 12).
    """
    published = {pretrained_name(name, published): value for name, value in published.items()}
    is_swin = f"vision_encoder.layers.0.blocks.0.{TABLE}" in published
    if not is_swin and not published.keys() >= BEIT_MARKS:
        raise CheckpointError(
            where=where,
            expected="a state dict of CCLM-3M/4M (Swin) or CCLM-X2VLM (BEiT-v2)",
            got=f"{len(published)} keys such as {', '.join(list(published)[:3])}",
            do=ADVICE,
        )
    encoder = "text_encoder.bert" if is_swin else "text_encoder"
    vocab_size, width = published[f"{encoder}.embeddings.word_embeddings.weight"].shape
    num_layers = _count(published, rf"{encoder}\.encoder\.layer\.(\d+)\.")
    num_fusion = _count(published, r"(?:text_encoder\.bert|cross_encoder)\.encoder\.layer\.(\d+)\.crossattention\.")
    num_text = num_layers - num_fusion if is_swin else num_layers
    num_memories = _num_memories(published, num_text)
    projection = published.get("text_proj.weight")
    options = published_options(
        width=width,
        projection_width=UNUSED.projection_width if projection is None else projection.shape[0],
        vision=_swin_tower(published, image_size) if is_swin else _beit_tower(published, image_size),
        text=TextOptions(
            vocab_size=vocab_size,
            max_positions=published[f"{encoder}.embeddings.position_embeddings.weight"].shape[0],
            num_layers=num_text,
            num_heads=text_heads or max(1, width // HEAD_WIDTH),
            feedforward_width=published[f"{encoder}.encoder.layer.0.intermediate.dense.weight"].shape[0],
        ),
        fusion_layers=num_fusion // num_memories,
    )
    return _with_heads(replace(options, fusion=replace(options.fusion, num_memories=num_memories)), published)


def _with_heads(options: ModelOptions, published: Mapping[str, Tensor]) -> ModelOptions:
    """Give the model the heads that the file has, and their widths."""
    masked_lm = any(name.startswith(("text_encoder.cls.", "mlm_head.")) for name in published)
    answers = any(name.startswith("text_decoder.") for name in published)
    matching, classes = published.get("itm_head.0.weight"), published.get("cls_head.0.weight")
    options = replace(
        options,
        box_head="bbox_head.0.weight" in published,
        masked_lm_head=masked_lm,
        answer_decoder=answers,
        tie_decoder=options.tie_decoder and (masked_lm or answers),
        pretraining_heads=matching is not None,
        matching_width=UNUSED.matching_width if matching is None else matching.shape[0],
    )
    if classes is None:
        return options
    num_images = classes.shape[1] // options.width
    return replace(
        options,
        num_classes=published["cls_head.3.weight"].shape[0],
        class_images=num_images,
        matching_width=classes.shape[0] // num_images,
    )


def family_of(options: ModelOptions) -> str | None:
    """The published family of these sizes (at any resolution), or None."""
    for name, family in FAMILIES.items():  # pre-trained ones first
        same_sizes = options.width == family.width and options.vision.architecture == family.vision.architecture
        if same_sizes and options.text.num_layers == family.text.num_layers:
            return name
    return None


def _swin_tower(published: Mapping[str, Tensor], image_size: int | None) -> VisionOptions:
    num_stages = _count(published, r"vision_encoder\.layers\.(\d+)\.")
    firsts = [f"vision_encoder.layers.{stage}.blocks.0" for stage in range(num_stages)]
    heads = tuple(published[f"{first}.{TABLE}"].shape[1] for first in firsts)
    window = (isqrt(published[f"{firsts[0]}.{TABLE}"].shape[0]) + 1) // 2
    patch = published["vision_encoder.patch_embed.proj.weight"].shape[-1]
    stride = patch * 2 ** (num_stages - 1)
    return VisionOptions(
        architecture="swin",
        image_size=image_size or stride * window,
        patch_size=patch,
        window=window if image_size is None else max(1, image_size // stride),
        stage_layers=tuple(
            _count(published, rf"vision_encoder\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(num_stages)
        ),
        stage_heads=heads,
        num_heads=heads[-1],
        feedforward_width=published[f"{firsts[-1]}.mlp.fc1.weight"].shape[0],
        drop_path=DROPOUT,
    )


def _beit_tower(published: Mapping[str, Tensor], image_size: int | None) -> VisionOptions:
    rows, num_heads = published[f"vision_encoder.blocks.0.{TABLE}"].shape
    patch = published["vision_encoder.patch_embed.proj.weight"].shape[-1]
    return VisionOptions(
        architecture="beit",
        image_size=image_size or (isqrt(rows - 3) + 1) // 2 * patch,
        patch_size=patch,
        num_layers=_count(published, r"vision_encoder\.blocks\.(\d+)\."),
        num_heads=num_heads,
        feedforward_width=published["vision_encoder.blocks.0.mlp.fc1.weight"].shape[0],
        drop_path=DROPOUT,
    )


def _num_memories(published: Mapping[str, Tensor], first_fusion: int) -> int:
    """2 if the fusion layers stand there in pairs with the same keys (NLVR), else 1."""
    layer = "text_encoder.bert.encoder.layer"
    first, second = (f"{layer}.{first_fusion + number}.crossattention.self.key.weight" for number in (0, 1))
    if "cls_head.0.weight" not in published or second not in published or published[first].is_meta:
        return 1
    return 2 if torch.equal(published[first], published[second]) else 1


def _count(published: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand in the names where the pattern has its group."""
    return len({match[1] for match in map(re.compile(pattern).match, published) if match})
