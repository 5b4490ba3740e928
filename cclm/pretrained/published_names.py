"""How the parameters of the published files are called, and where each of them goes in our model.

    published file:  …attention.self.query.weight ┐
                     …attention.self.key.weight   ├─ stacked ─ …self_attention.query_key_value.weight :ours
                     …attention.self.value.weight ┘

Everything is derived from the options: the Swin tower names the CCLM-3M/4M layout, the BEiT tower the X2VLM layout. The
table works in both directions, so gradients and exported weights can be compared with the published ones by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cclm.model.options import ModelOptions, VisionOptions
from cclm.pretrained.lazy_tensors import LazyTensors

ONE_STACK = "text_encoder.bert."
"""What stands before the text layers of a pre-trained CCLM-3M/4M file; fine-tuned ones leave out the `bert.`"""


@dataclass(frozen=True)
class Weight:
    """One of our parameters, and the published one or ones that it holds."""

    ours: str
    theirs: tuple[str, ...]
    """Several are stacked along the first dimension."""
    scalar: bool = False
    """Theirs has no dimensions, ours has one (DeepSpeed cannot broadcast a parameter without)."""


def pretrained_name(name: str, published: Mapping[str, Tensor]) -> str:
    """What a key of a fine-tuned CCLM-3M/4M file is called in a pre-trained one; other files' keys stay."""
    is_finetuned = "vision_encoder.norm.weight" in published and name.startswith("text_encoder.")
    if is_finetuned and not name.startswith((ONE_STACK, "text_encoder.cls.")):
        return ONE_STACK + name.removeprefix("text_encoder.")
    return name


def published_weights(options: ModelOptions) -> list[Weight]:
    """Every parameter of the model that these options describe."""
    if options.vision.architecture == "swin":
        return [*_swin(options.vision), *_one_stack(options), *_heads(options), *_finetuned_heads(options)]
    if options.vision.architecture == "beit":
        return [*_beit(options.vision), *_two_stacks(options), *_heads(options), *_finetuned_heads(options)]
    raise ValueError(
        f"vision.architecture: expected swin or beit, got {options.vision.architecture}. "
        "No published CCLM model has another image tower."
    )


def text_weights(options: ModelOptions) -> list[Weight]:
    """What a source of texts can start in a model whose image tower no published model has."""
    return [*_two_stacks(options), *_heads(options)]


def published_ties(options: ModelOptions) -> dict[str, str]:
    """Names under which a parameter stands in the file once more → the name that is read."""
    ties = _ties_of_memories(options)
    if options.answer_decoder:
        ties |= _ties_of_head("text_decoder.cls.predictions", "text_decoder.bert", options.tie_decoder)
    if not options.masked_lm_head:
        return ties
    if options.vision.architecture == "swin":
        return ties | _ties_of_head("text_encoder.cls.predictions", "text_encoder.bert", tied=True)
    return ties | _ties_of_head("mlm_head.predictions", "", tied=False)


def _ties_of_head(head: str, encoder: str, tied: bool) -> dict[str, str]:
    """A masked-LM head holds its bias twice, and maybe the words of its encoder."""
    words = {f"{head}.decoder.weight": f"{encoder}.embeddings.word_embeddings.weight"} if tied else {}
    return {**words, f"{head}.decoder.bias": f"{head}.bias"}


def _ties_of_memories(options: ModelOptions) -> dict[str, str]:
    """NLVR: each fusion layer stands there once for each image, with the same keys and values."""
    first_fusion, number = options.text.num_layers, options.fusion.num_memories
    ties = {}
    for layer in range(options.fusion.num_layers * number):
        for part in ("key.weight", "key.bias", "value.weight", "value.bias"):
            name = f"{ONE_STACK}encoder.layer.%d.crossattention.self.{part}"
            if layer % number:
                ties[name % (first_fusion + layer)] = name % (first_fusion + layer - layer % number)
    return ties


def published_buffers(options: ModelOptions) -> dict[str, tuple[tuple[int, ...], str]]:
    """Names → shapes and dtypes of what a file holds besides parameters; all of it follows from the sizes."""
    vision = options.vision
    text = "text_encoder.bert" if vision.architecture == "swin" else "text_encoder"
    buffers: dict[str, tuple[tuple[int, ...], str]] = {
        f"{text}.embeddings.position_ids": ((1, options.text.max_positions), "int64")
    }
    if options.answer_decoder:
        buffers["text_decoder.bert.embeddings.position_ids"] = ((1, options.text.max_positions), "int64")
    if vision.architecture == "beit":
        num_tokens = 1 + (vision.image_size // vision.patch_size) ** 2
        for number in range(vision.num_layers):
            name = f"vision_encoder.blocks.{number}.attn.relative_position_index"
            buffers[name] = ((num_tokens, num_tokens), "int64")
        return buffers
    for stage, num_layers in enumerate(vision.stage_layers):
        side = vision.image_size // vision.stride * 2 ** (len(vision.stage_layers) - 1 - stage)
        cells = min(vision.window, side) ** 2
        for number in range(num_layers):
            block = f"vision_encoder.layers.{stage}.blocks.{number}"
            buffers[f"{block}.attn.relative_position_index"] = ((cells, cells), "int64")
            if number % 2 == 1 and side > vision.window:
                buffers[f"{block}.attn_mask"] = ((side * side // cells, cells, cells), "float32")
    return buffers


def answer_decoder_weights(options: ModelOptions) -> list[Weight]:
    """The decoder of a file fine-tuned for question answering: one more stack like the fusion layers."""
    ours, theirs = "answer_decoder", "text_decoder.bert"
    weights = _embeddings(f"{theirs}.embeddings", f"{ours}.embeddings")
    for number in range(options.fusion.num_layers):
        weights += _bert_layer(f"{ours}.stack.layers.{number}", f"{theirs}.encoder.layer.{number}", cross=True)
    transform = _masked_lm_transform("text_decoder.cls.predictions")
    return weights + [Weight(f"{ours}.{weight.ours}", weight.theirs) for weight in transform]


def to_ours(published: Mapping[str, Tensor], weights: list[Weight]) -> LazyTensors:
    """Rename, and stack when a tensor is read; every published name of `weights` must be there."""
    return LazyTensors({weight.ours: partial(_stack, published, weight) for weight in weights})


def _stack(published: Mapping[str, Tensor], weight: Weight) -> Tensor:
    """One of our parameters."""
    parts = [published[name] for name in weight.theirs]
    value = parts[0] if len(parts) == 1 else torch.cat(parts)
    return value.reshape(1) if weight.scalar else value


def to_published(state: Mapping[str, Tensor], weights: list[Weight]) -> dict[str, Tensor]:
    """The inverse of `to_ours`, for any tensors with our names (parameters, gradients); absent ones are left out."""
    published: dict[str, Tensor] = {}
    for weight in weights:
        if weight.ours in state:
            value = state[weight.ours]
            parts = value.chunk(len(weight.theirs)) if len(weight.theirs) > 1 else (value,)
            parts = (value.reshape(()),) if weight.scalar else parts
            published.update(zip(weight.theirs, parts, strict=True))
    return published


def _linear(ours: str, *theirs: str) -> list[Weight]:
    """Weight and bias of a linear or norm, or of several stacked."""
    return [Weight(f"{ours}.{part}", tuple(f"{name}.{part}" for name in theirs)) for part in ("weight", "bias")]


def _bert_layer(ours: str, theirs: str, *, cross: bool) -> list[Weight]:
    """A layer of the text or fusion encoder."""
    attention = f"{theirs}.attention"
    query, key, value = (f"{attention}.self.{part}" for part in ("query", "key", "value"))
    weights = [
        *_linear(f"{ours}.self_attention.query_key_value", query, key, value),
        *_linear(f"{ours}.self_attention.output", f"{attention}.output.dense"),
        *_linear(f"{ours}.self_norm", f"{attention}.output.LayerNorm"),
    ]
    if cross:
        memory = f"{theirs}.crossattention"
        weights += [
            *_linear(f"{ours}.cross_attention.query", f"{memory}.self.query"),
            *_linear(f"{ours}.cross_attention.key_value", f"{memory}.self.key", f"{memory}.self.value"),
            *_linear(f"{ours}.cross_attention.output", f"{memory}.output.dense"),
            *_linear(f"{ours}.cross_norm", f"{memory}.output.LayerNorm"),
        ]
    return [
        *weights,
        *_linear(f"{ours}.feedforward.widen", f"{theirs}.intermediate.dense"),
        *_linear(f"{ours}.feedforward.narrow", f"{theirs}.output.dense"),
        *_linear(f"{ours}.feedforward_norm", f"{theirs}.output.LayerNorm"),
    ]


def _embeddings(theirs: str, ours: str = "text_encoder.embeddings") -> list[Weight]:
    """Words, positions, the token type and their norm."""
    return [
        Weight(f"{ours}.words.weight", (f"{theirs}.word_embeddings.weight",)),
        Weight(f"{ours}.positions.weight", (f"{theirs}.position_embeddings.weight",)),
        Weight(f"{ours}.token_type", (f"{theirs}.token_type_embeddings.weight",)),
        *_linear(f"{ours}.norm", f"{theirs}.LayerNorm"),
    ]


def _masked_lm_transform(theirs: str) -> list[Weight]:
    """What the masked-LM head does before its decoder, and the decoder's bias."""
    return [
        *_linear("masked_lm_transform.linear", f"{theirs}.transform.dense"),
        *_linear("masked_lm_transform.norm", f"{theirs}.transform.LayerNorm"),
        Weight("masked_lm_decoder.bias", (f"{theirs}.bias",)),
    ]


def _one_stack(options: ModelOptions) -> list[Weight]:
    """CCLM-3M/4M: text and fusion layers stand in one BERT."""
    layer, num_text = "text_encoder.bert.encoder.layer", options.text.num_layers
    weights = _embeddings(f"{ONE_STACK}embeddings")
    for number in range(num_text):
        weights += _bert_layer(f"text_encoder.stack.layers.{number}", f"{layer}.{number}", cross=False)
    memories = options.fusion.num_memories
    for number in range(options.fusion.num_layers * memories):
        parts = _bert_layer(f"fusion_encoder.stack.layers.{number}", f"{layer}.{num_text + number}", cross=True)
        weights += [part for part in parts if number % memories == 0 or ".key_value." not in part.ours]
    return weights + (_masked_lm_transform("text_encoder.cls.predictions") if options.masked_lm_head else [])


def _two_stacks(options: ModelOptions) -> list[Weight]:
    """X2VLM: text encoder, cross encoder and masked-LM head stand by themselves."""
    weights = _embeddings("text_encoder.embeddings")
    for number in range(options.text.num_layers):
        theirs = f"text_encoder.encoder.layer.{number}"
        weights += _bert_layer(f"text_encoder.stack.layers.{number}", theirs, cross=False)
    for number in range(options.fusion.num_layers):
        theirs = f"cross_encoder.encoder.layer.{number}"
        weights += _bert_layer(f"fusion_encoder.stack.layers.{number}", theirs, cross=True)
    if not options.masked_lm_head:
        return weights
    weights += _masked_lm_transform("mlm_head.predictions")
    return [*weights, Weight("masked_lm_decoder.weight", ("mlm_head.predictions.decoder.weight",))]


def _heads(options: ModelOptions) -> list[Weight]:
    """Projections, temperature, matching head and box head, as far as the model has them."""
    weights = []
    if options.pretraining_heads:
        weights += [
            Weight("temperature.value", ("temp",), scalar=True),
            *_linear("image_projection.linear", "vision_proj"),
            *_linear("text_projection.linear", "text_proj"),
            *_linear("matching_head.widen", "itm_head.0"),
            *_linear("matching_head.norm", "itm_head.1"),
            *_linear("matching_head.classify", "itm_head.3"),
        ]
    if options.box_head:
        weights += _linear("box_head.widen", "bbox_head.0") + _linear("box_head.norm", "bbox_head.1")
        weights += _linear("box_head.locate", "bbox_head.3")
    return weights


def _finetuned_heads(options: ModelOptions) -> list[Weight]:
    """A classifier, or a decoder of answers."""
    weights = answer_decoder_weights(options) if options.answer_decoder else []
    if options.num_classes:
        weights += _linear("class_head.widen", "cls_head.0") + _linear("class_head.norm", "cls_head.1")
        weights += _linear("class_head.classify", "cls_head.3")
    return weights


def finetuned_name(name: str) -> str:
    """What a parameter of the Swin layout is called in a fine-tuned file: the encoder has lost its masked-LM shell."""
    return "text_encoder." + name.removeprefix(ONE_STACK) if name.startswith(ONE_STACK) else name


def _swin(vision: VisionOptions) -> list[Weight]:
    """The Swin tower."""
    tower = "vision_encoder"
    weights = _linear(f"{tower}.patches.project", f"{tower}.patch_embed.proj")
    weights += _linear(f"{tower}.patches.norm", f"{tower}.patch_embed.norm")
    for stage, num_layers in enumerate(vision.stage_layers):
        theirs_stage, ours_stage = f"{tower}.layers.{stage}", f"{tower}.stages.{stage}"
        for number in range(num_layers):
            ours, theirs = f"{ours_stage}.blocks.{number}", f"{theirs_stage}.blocks.{number}"
            weights += [*_linear(f"{ours}.attention.query_key_value", f"{theirs}.attn.qkv"), *_block(ours, theirs)]
        if stage + 1 < len(vision.stage_layers):
            weights += _linear(f"{ours_stage}.merge.norm", f"{theirs_stage}.downsample.norm")
            weights.append(
                Weight(f"{ours_stage}.merge.reduce.weight", (f"{theirs_stage}.downsample.reduction.weight",))
            )
    return [*weights, *_linear(f"{tower}.final_norm", f"{tower}.norm")]


def _beit(vision: VisionOptions) -> list[Weight]:
    """The BEiT-v2 tower."""
    tower = "vision_encoder"
    weights = [Weight(f"{tower}.class_token", (f"{tower}.cls_token",))]
    weights += _linear(f"{tower}.patches", f"{tower}.patch_embed.proj")
    for number in range(vision.num_layers):
        ours = theirs = f"{tower}.blocks.{number}"
        weights += [
            Weight(f"{ours}.attention.query_key_value.weight", (f"{theirs}.attn.qkv.weight",)),
            Weight(f"{ours}.attention.query_bias.bias", (f"{theirs}.attn.q_bias",)),
            Weight(f"{ours}.attention.value_bias.bias", (f"{theirs}.attn.v_bias",)),
            Weight(f"{ours}.attention_scale", (f"{theirs}.gamma_1",)),
            Weight(f"{ours}.feedforward_scale", (f"{theirs}.gamma_2",)),
            *_block(ours, theirs),
        ]
    return [*weights, *_linear(f"{tower}.final_norm", f"{tower}.fc_norm")]


def _block(ours: str, theirs: str) -> list[Weight]:
    """What the blocks of both image towers share."""
    return [
        *_linear(f"{ours}.attention_norm", f"{theirs}.norm1"),
        *_linear(f"{ours}.attention.output", f"{theirs}.attn.proj"),
        Weight(f"{ours}.attention.position.bias_table", (f"{theirs}.attn.relative_position_bias_table",)),
        *_linear(f"{ours}.feedforward_norm", f"{theirs}.norm2"),
        *_linear(f"{ours}.feedforward.widen", f"{theirs}.mlp.fc1"),
        *_linear(f"{ours}.feedforward.narrow", f"{theirs}.mlp.fc2"),
    ]
