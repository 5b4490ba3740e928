"""The published CCLM models as configurations of the one model definition.

| family | image tower | text | fusion | positions | masked-LM decoder |
|---|---|---|---|---|---|
| cclm-3m, cclm-4m | Swin-B 224 | 6 layers of XLM-R-large | 6 more | by column, from 0 | tied to the words |
| cclm-x2vlm-base, -large | BEiT-v2 224 | XLM-R base, large | 6 BERT layers | RoBERTa's, from the ids | its own |

Sizes come from the research code's configuration (arXiv 2206.00621, 2211.12402); the counts of parameters are tested.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

from cclm.model.options import FusionOptions, ModelOptions, TextOptions, VisionOptions

DROPOUT = 0.1
"""Of hidden states, attention weights and (highest) paths in every published model."""


def published_options(
    *, width: int, projection_width: int, vision: VisionOptions, text: TextOptions, fusion_layers: int
) -> ModelOptions:
    """A model of a published layout with these sizes.

    An image tower "swin" is CCLM-3M/4M: one BERT stack, cut into text and fusion encoder, positions from 0. "beit" is
    CCLM-X2VLM: text and fusion encoder of different origins, so of different epsilons. Fusion layers have the sizes of
    the text layers.
    """
    is_swin = vision.architecture == "swin"
    shared: dict[str, Any] = {
        "norm_position": "post",
        "dropout": DROPOUT,
        "attention_dropout": DROPOUT,
        "initializer_range": 0.02,
        "pooling": "cls",
    }
    return ModelOptions(
        width=width,
        projection_width=projection_width,
        matching_width=2 * width,
        box_head=True,
        tie_decoder=is_swin,
        masked_lm_norm_eps=None if is_swin else 1e-5,
        vision=replace(vision, norm_eps=1e-5 if is_swin else 1e-6),
        text=replace(
            text,
            norm_eps=1e-5,
            token_type=True,
            position_rule="column" if is_swin else "ids",
            position_offset=0 if is_swin else text.pad_token_id + 1,
            **shared,
        ),
        fusion=FusionOptions(
            num_layers=fusion_layers,
            num_heads=text.num_heads,
            feedforward_width=text.feedforward_width,
            norm_eps=1e-5 if is_swin else 1e-12,
            **shared,
        ),
    )


_XLM_ROBERTA = TextOptions(vocab_size=250_002, max_positions=514)


def _x2vlm(width: int, num_layers: int, num_heads: int) -> ModelOptions:
    """The X2VLM models, whose image and text towers are equally deep and wide."""
    sizes: dict[str, Any] = {"num_layers": num_layers, "num_heads": num_heads, "feedforward_width": 4 * width}
    return published_options(
        width=width,
        projection_width=256,
        vision=VisionOptions(architecture="beit", image_size=224, patch_size=16, drop_path=DROPOUT, **sizes),
        text=replace(_XLM_ROBERTA, **sizes),
        fusion_layers=6,
    )


_CCLM = published_options(
    width=1024,
    projection_width=256,
    vision=VisionOptions(
        architecture="swin",
        image_size=224,
        patch_size=4,
        window=7,
        stage_layers=(2, 2, 18, 2),
        stage_heads=(4, 8, 16, 32),
        num_heads=32,
        feedforward_width=4096,
        drop_path=DROPOUT,
    ),
    text=replace(_XLM_ROBERTA, num_layers=6, num_heads=16, feedforward_width=4096),
    fusion_layers=6,
)
_PRETRAINED: dict[str, ModelOptions] = {
    "cclm-3m": _CCLM,
    "cclm-4m": _CCLM,
    "cclm-x2vlm-base": _x2vlm(768, num_layers=12, num_heads=12),
    "cclm-x2vlm-large": _x2vlm(1024, num_layers=24, num_heads=16),
}

PublishedTask = Literal["retrieval", "xvnli", "nlvr", "vqa"]
Task = PublishedTask | Literal["grounding"]
FINETUNED_SIZE = 384
"""Pixels of every published fine-tuning."""


def finetuned(options: ModelOptions, task: Task, image_size: int = FINETUNED_SIZE) -> ModelOptions:
    """The model that a pre-trained one becomes for a task: other heads, other resolution, no masked-LM head.

    "retrieval" keeps projections and matching head; "xvnli" has three classes; "nlvr" two, and two images; "vqa" writes
    answers (Swin layout only); "grounding" keeps the box head (never published). Windows of a Swin tower grow with the
    image.
    """
    vision, default, is_swin = options.vision, ModelOptions(), options.vision.architecture == "swin"
    window = image_size // vision.stride if is_swin else vision.window
    return replace(
        options,
        vision=replace(vision, image_size=image_size, window=window),
        fusion=replace(options.fusion, num_memories=2 if task == "nlvr" and is_swin else 1),
        projection_width=options.projection_width if task == "retrieval" else default.projection_width,
        matching_width=default.matching_width if task == "vqa" else options.matching_width,
        box_head=task == "grounding",
        masked_lm_head=False,
        tie_decoder=options.tie_decoder and task == "vqa",
        pretraining_heads=task == "retrieval",
        num_classes={"xvnli": 3, "nlvr": 2}.get(task, 0),
        class_images=2 if task == "nlvr" and not is_swin else 1,
        answer_decoder=task == "vqa",
    )


FAMILIES: dict[str, ModelOptions] = {
    **_PRETRAINED,
    **{f"cclm-3m-{task}": finetuned(_CCLM, task) for task in get_args(PublishedTask)},
    **{
        f"{name}-retrieval": finetuned(_PRETRAINED[name], "retrieval")
        for name in ("cclm-x2vlm-base", "cclm-x2vlm-large")
    },
}
"""All of them, by name. 3M and 4M are one network; in the 3M file the box head was never trained. The models that were
fine-tuned from them have 384 pixels."""
