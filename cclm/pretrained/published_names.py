"""How the parameters of the published files are called, and where each of them goes in our model.

    published file:  …attention.self.query.weight ┐
                     …attention.self.key.weight   ├─ stacked ─ …self_attention.query_key_value.weight :ours
                     …attention.self.value.weight ┘

Everything is derived from the options: the Swin tower names the CCLM-3M/4M layout, the BEiT tower the X2VLM layout. The
table works in both directions, so gradients and exported weights can be compared with the published ones by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from cclm.model.options import ModelOptions, VisionOptions

ONE_STACK = "text_encoder.bert."
"""What stands before the text layers of a pre-trained CCLM-3M/4M file; fine-tuned ones leave out the `bert.`"""
TOWER = "vision_encoder."
TEXT_LAYER = {
    "self_attention.query_key_value.*": "attention.self.query.* attention.self.key.* attention.self.value.*",
    "self_attention.output.*": "attention.output.dense.*",
    "self_norm.*": "attention.output.LayerNorm.*",
    "feedforward.widen.*": "intermediate.dense.*",
    "feedforward.narrow.*": "output.dense.*",
    "feedforward_norm.*": "output.LayerNorm.*",
}
FUSION_LAYER = {
    **TEXT_LAYER,
    "cross_attention.query.*": "crossattention.self.query.*",
    "cross_attention.key_value.*": "crossattention.self.key.* crossattention.self.value.*",
    "cross_attention.output.*": "crossattention.output.dense.*",
    "cross_norm.*": "crossattention.output.LayerNorm.*",
}
EMBEDDINGS = {
    "words.weight": "word_embeddings.weight",
    "positions.weight": "position_embeddings.weight",
    "token_type": "token_type_embeddings.weight",
    "norm.*": "LayerNorm.*",
}
MASKED_LM = {
    "masked_lm_transform.linear.*": "transform.dense.*",
    "masked_lm_transform.norm.*": "transform.LayerNorm.*",
    "masked_lm_decoder.bias": "bias",
}
"""What the masked-LM head does before its decoder, and the decoder's bias."""
PROJECTIONS = {"image_projection.linear.*": "vision_proj.*", "text_projection.linear.*": "text_proj.*"}
HEAD = {"widen.*": "0.*", "norm.*": "1.*", "classify.*": "3.*"}
"""What heads of matching and of classes have; that of boxes has `locate`."""
BOXES = {"widen.*": "0.*", "norm.*": "1.*", "locate.*": "3.*"}
BLOCK = {
    "attention_norm.*": "norm1.*",
    "attention.output.*": "attn.proj.*",
    "attention.position.bias_table": "attn.relative_position_bias_table",
    "feedforward_norm.*": "norm2.*",
    "feedforward.widen.*": "mlp.fc1.*",
    "feedforward.narrow.*": "mlp.fc2.*",
}
"""What the blocks of both image towers share."""
SWIN_BLOCK = {"attention.query_key_value.*": "attn.qkv.*", **BLOCK}
BEIT_BLOCK = {
    "attention.query_key_value.weight": "attn.qkv.weight",
    "attention.query_bias.bias": "attn.q_bias",
    "attention.value_bias.bias": "attn.v_bias",
    "attention_scale": "gamma_1",
    "feedforward_scale": "gamma_2",
    **BLOCK,
}


@dataclass(frozen=True)
class Weight:
    """One of our parameters, and the published one or ones that it holds."""

    ours: str
    theirs: tuple[str, ...]
    """Several are stacked along the first dimension."""
    scalar: bool = False
    """Theirs has no dimensions, ours has one (DeepSpeed cannot broadcast a parameter without)."""


def _weights(table: Mapping[str, str], ours: str = "", theirs: str = "") -> list[Weight]:
    """The rows of a table with what stands before both names; `*` is weight and bias."""
    return [
        Weight(ours + left.replace("*", part), tuple(theirs + name.replace("*", part) for name in right.split()))
        for left, right in table.items()
        for part in (("weight", "bias") if "*" in left else ("",))
    ]


def _layers(table: Mapping[str, str], ours: str, theirs: str, num_layers: int, first: int = 0) -> list[Weight]:
    """The same table for each layer; theirs count from `first`."""
    numbers = range(num_layers)
    return [row for number in numbers for row in _weights(table, f"{ours}{number}.", f"{theirs}{first + number}.")]


def pretrained_name(name: str, published: Mapping[str, Tensor]) -> str:
    """What a key of a fine-tuned CCLM-3M/4M file is called in a pre-trained one; other files' keys stay."""
    is_finetuned = "vision_encoder.norm.weight" in published and name.startswith("text_encoder.")
    if is_finetuned and not name.startswith((ONE_STACK, "text_encoder.cls.")):
        return ONE_STACK + name.removeprefix("text_encoder.")
    return name


def published_weights(options: ModelOptions) -> list[Weight]:
    """Every parameter of the model that these options describe, but for an image tower that no published model has."""
    if options.vision.architecture == "swin":
        tower = _swin(options.vision)
    else:
        tower = _beit(options.vision) if options.vision.architecture == "beit" else []
    return [*tower, *_texts(options), *_heads(options)]


def published_ties(options: ModelOptions) -> dict[str, str]:
    """Names under which a parameter stands in the file once more → the name that is read."""
    ties, number = {}, options.fusion.num_memories
    for layer in range(options.fusion.num_layers * number):  # NLVR: once for each image, with the same keys and values
        if copy := layer % number:
            place, stack = options.text.num_layers + layer, f"{ONE_STACK}encoder.layer."
            for part in ("key.weight", "key.bias", "value.weight", "value.bias"):
                name = f"crossattention.self.{part}"
                ties[f"{stack}{place}.{name}"] = f"{stack}{place - copy}.{name}"
    decoders = {"text_decoder.cls.predictions": "text_decoder.bert"} if options.answer_decoder else {}
    if options.masked_lm_head and options.vision.architecture == "swin":
        decoders["text_encoder.cls.predictions"] = "text_encoder.bert"
    elif options.masked_lm_head:
        ties["mlm_head.predictions.decoder.bias"] = "mlm_head.predictions.bias"
    for head, encoder in decoders.items():
        if options.tie_decoder:
            ties[f"{head}.decoder.weight"] = f"{encoder}.embeddings.word_embeddings.weight"
        ties[f"{head}.decoder.bias"] = f"{head}.bias"
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


def to_published(state: Mapping[str, Tensor], weights: Iterable[Weight]) -> dict[str, Tensor]:
    """Tensors with our names (parameters, gradients) by the published ones; absent ones are left out."""
    published: dict[str, Tensor] = {}
    for weight in weights:
        if weight.ours in state:
            value = state[weight.ours]
            parts = value.chunk(len(weight.theirs)) if len(weight.theirs) > 1 else (value,)
            parts = (value.reshape(()),) if weight.scalar else parts
            published.update(zip(weight.theirs, parts, strict=True))
    return published


def follows_from_sizes(name: str) -> bool:
    """Whether a key of any file is one of the buffers, whatever the resolution."""
    return name.endswith((".relative_position_index", ".attn_mask", ".position_ids"))


def answer_decoder_weights(options: ModelOptions) -> list[Weight]:
    """The decoder of a file fine-tuned for question answering: one more stack like the fusion layers."""
    ours, theirs = "answer_decoder.", "text_decoder.bert."
    return [
        *_weights(EMBEDDINGS, f"{ours}embeddings.", f"{theirs}embeddings."),
        *_layers(FUSION_LAYER, f"{ours}stack.layers.", f"{theirs}encoder.layer.", options.fusion.num_layers),
        *_weights(MASKED_LM, ours, "text_decoder.cls.predictions."),
    ]


def _texts(options: ModelOptions) -> list[Weight]:
    """Text and fusion layers, masked-LM head: in CCLM-3M/4M they stand in one BERT, in X2VLM each by itself."""
    one_stack, num_text = options.vision.architecture == "swin", options.text.num_layers
    num_fusion = options.fusion.num_layers * options.fusion.num_memories
    text, head = (ONE_STACK, "text_encoder.cls.") if one_stack else ("text_encoder.", "mlm_head.")
    fusion, first = (ONE_STACK, num_text) if one_stack else ("cross_encoder.", 0)
    weights = _weights(EMBEDDINGS, "text_encoder.embeddings.", f"{text}embeddings.")
    weights += _layers(TEXT_LAYER, "text_encoder.stack.layers.", f"{text}encoder.layer.", num_text)
    weights += _layers(FUSION_LAYER, "fusion_encoder.stack.layers.", f"{fusion}encoder.layer.", num_fusion, first)
    if options.masked_lm_head:
        weights += _weights(MASKED_LM, "", f"{head}predictions.")
        own_decoder = Weight("masked_lm_decoder.weight", ("mlm_head.predictions.decoder.weight",))
        weights += [] if one_stack else [own_decoder]
    ties = published_ties(options)
    return [weight for weight in weights if weight.theirs[0] not in ties]


def _heads(options: ModelOptions) -> list[Weight]:
    """Projections, temperature, matching head, box head, classifier and decoder of answers, as far as there are any."""
    weights = []
    if options.pretraining_heads:
        weights += [Weight("temperature.value", ("temp",), scalar=True), *_weights(PROJECTIONS)]
        weights += _weights(HEAD, "matching_head.", "itm_head.")
    if options.box_head:
        weights += _weights(BOXES, "box_head.", "bbox_head.")
    if options.answer_decoder:
        weights += answer_decoder_weights(options)
    return weights + (_weights(HEAD, "class_head.", "cls_head.") if options.num_classes else [])


def _swin(vision: VisionOptions) -> list[Weight]:
    stem = {"patches.project.*": "patch_embed.proj.*", "patches.norm.*": "patch_embed.norm.*", "final_norm.*": "norm.*"}
    merge = {"norm.*": "norm.*", "reduce.weight": "reduction.weight"}
    weights = _weights(stem, TOWER, TOWER)
    for stage, num_layers in enumerate(vision.stage_layers):
        ours, theirs = f"{TOWER}stages.{stage}.", f"{TOWER}layers.{stage}."
        weights += _layers(SWIN_BLOCK, f"{ours}blocks.", f"{theirs}blocks.", num_layers)
        if stage + 1 < len(vision.stage_layers):
            weights += _weights(merge, f"{ours}merge.", f"{theirs}downsample.")
    return weights


def _beit(vision: VisionOptions) -> list[Weight]:
    stem = {"class_token": "cls_token", "patches.*": "patch_embed.proj.*", "final_norm.*": "fc_norm.*"}
    blocks = f"{TOWER}blocks."
    return _weights(stem, TOWER, TOWER) + _layers(BEIT_BLOCK, blocks, blocks, vision.num_layers)
