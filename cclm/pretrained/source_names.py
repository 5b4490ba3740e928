"""What the files are that models start from, and what their tensors are called in a published CCLM file.

    original Swin, BEiT-v2 · their transformers versions · XLM-R, BERT and their kin · X2-VLM · any model of the
    transformers library for an "hf" tower · an export or import of ours

A placement says for each published name which keys of the source it is made of: usually one; queries, keys and values
of transformers' Swin and BEiT are stacked to one; BEiT's shared position table goes to every block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cclm.errors import CheckpointError
from cclm.model.hf_text import build_text_tower, tower_config
from cclm.model.hf_vision import build_tower
from cclm.model.options import ModelOptions
from cclm.pretrained.options import Layers, Reach
from cclm.pretrained.published_names import follows_from_sizes

Placement = dict[str, tuple[str, ...]]
"""Published name → keys of the source, stacked in this order."""
State = Mapping[str, Tensor]
OUR_MARK = "text_encoder.embeddings.words.weight"
X2VLM_MARK = "text_encoder.bert.embeddings.word_embeddings.weight"
"""Keys that only an export or import of ours, and only X2-VLM has."""
IMAGE_TOWER, TEXT_TOWER, WORDS = "vision_encoder.tower.", "text_encoder.tower.", OUR_MARK
"""What stands before the names that "hf" towers have in transformers in our model, and the word table."""


def place_source(
    state: State, options: ModelOptions, where: str, reach: Reach = "auto", layers: Layers = "spread"
) -> Placement:
    """Find out what a source file is and place its keys (CheckpointError: none of the kinds above, too few layers).

    `reach` and `layers`: as `text_fills` and `text_layers` of `StartConfig`.
    """
    as_it_is: Placement = {name: (name,) for name in state}
    if OUR_MARK in state:
        return as_it_is
    if options.vision.architecture == "hf" and (tower := _hf_image_tower(state, options)):
        return tower
    is_own = options.text.architecture == "own"
    if not is_own and (tower := _hf_text_tower(state, options)):
        return tower
    for names in (as_it_is, _authors_names(state)):
        for marks, left in IMAGE_KINDS:
            if marks <= names.keys():
                return _image_tower(names, left)
    if X2VLM_MARK in state:
        return _x2vlm(state)
    for prefix in ("roberta.", "bert.", ""):
        if is_own and f"{prefix}embeddings.word_embeddings.weight" in state:
            return _xlm_roberta(state, prefix, options, where, reach, layers)
    raise CheckpointError(
        where=where,
        expected="Swin, BEiT-v2, XLM-R, BERT or X2-VLM weights"
        + ("" if is_own else ", or the whole text tower that model.text.tower describes"),
        got=f"{len(state)} keys such as {', '.join(list(state)[:3])}",
        do="Give the original files; a published CCLM file is imported with `cclm import`.",
    )


def _image_tower(names: Placement, left: tuple[str, ...]) -> Placement:
    """A tower under its authors' names, but for those that begin with one of `left`.

    BEiT's one table for all blocks is given to each of them, as its authors do.
    """
    placed = {
        f"vision_encoder.{name}": keys
        for name, keys in names.items()
        if not name.startswith(left) and not follows_from_sizes(name)
    }
    if SHARED_TABLE in names:
        blocks = {match[0] for match in map(re.compile(r"blocks\.\d+").match, names) if match}
        placed |= {f"vision_encoder.{block}.attn.relative_position_bias_table": names[SHARED_TABLE] for block in blocks}
    return placed


def _authors_names(state: State) -> Placement:
    """transformers' Swin and BEiT as their authors call them; queries, keys and values are stacked."""
    placed: Placement = {}
    stacked = re.compile(rf"{_START}{_BLOCK}\.attention\.(?:self|attention)\.query\.{_PART}")
    for name in state:
        for pattern, target in HF_IMAGE.items():
            if match := re.fullmatch(_START + pattern, name):
                placed[match.expand(target).replace("layer.", "blocks.")] = (name,)
        keys = tuple(name.replace(".query.", f".{part}.") for part in ("query", "key", "value"))
        if (match := stacked.fullmatch(name)) and all(key in state for key in keys):
            placed[match.expand(r"\1.attn.qkv.\2").replace("layer.", "blocks.")] = keys
            if match[2] == "bias":  # also of the keys: a ViT's, not a BEiT's
                placed.pop(match.expand(r"\1.attn.q_bias").replace("layer.", "blocks."), None)
    return placed


_START = r"(?:swin\.|beit\.)?"
_BLOCK = r"encoder\.(layers\.\d+\.blocks\.\d+|layer\.\d+)"
_PART = r"(weight|bias)"
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
HF_IMAGE = {
    r"embeddings\.(cls_token)": r"\1",
    rf"embeddings\.patch_embeddings\.projection\.{_PART}": r"patch_embed.proj.\1",
    rf"embeddings\.norm\.{_PART}": r"patch_embed.norm.\1",
    rf"{_BLOCK}\.layernorm_before\.{_PART}": r"\1.norm1.\2",
    rf"{_BLOCK}\.layernorm_after\.{_PART}": r"\1.norm2.\2",
    rf"{_BLOCK}\.attention\.output\.dense\.{_PART}": r"\1.attn.proj.\2",
    rf"{_BLOCK}\.attention\.attention\.query\.bias": r"\1.attn.q_bias",
    rf"{_BLOCK}\.attention\.attention\.value\.bias": r"\1.attn.v_bias",
    rf"{_BLOCK}\.attention\.self\.(relative_position_bias_table)": r"\1.attn.\2",
    rf"{_BLOCK}\.attention\.attention\.relative_position_bias\.(relative_position_bias_table)": r"\1.attn.\2",
    r"encoder\.relative_position_bias\.relative_position_bias_table": SHARED_TABLE,
    rf"{_BLOCK}\.intermediate\.dense\.{_PART}": r"\1.mlp.fc1.\2",
    rf"{_BLOCK}\.output\.dense\.{_PART}": r"\1.mlp.fc2.\2",
    rf"{_BLOCK}\.lambda_([12])": r"\1.gamma_\2",
    rf"encoder\.(layers\.\d+\.downsample\.(?:norm|reduction))\.{_PART}": r"\1.\2",
    rf"layernorm\.{_PART}": r"norm.\1",
    rf"pooler\.layernorm\.{_PART}": r"fc_norm.\1",
}
"""Swin and BEiT as transformers saves them, behind `_START` → as their authors do (BEiT's `blocks` as `layer`)."""
IMAGE_KINDS = (
    ({"layers.0.blocks.0.attn.qkv.weight"}, ("head.",)),
    ({"blocks.0.attn.q_bias"}, ("head.", "lm_head.", "mask_token", "norm.", "rel_pos_bias.")),
)
"""Keys that only Swin and only BEiT have, by their authors' names; beginnings of names that are left. (A BEiT that was
fine-tuned on classes has its norm behind the mean.)"""


def _hf_image_tower(state: State, options: ModelOptions) -> Placement:
    """An image tower of transformers; a mask token may be missing: it is never used."""
    assert options.vision.tower is not None, "an hf tower has its configuration"
    with torch.device("meta"):
        tower = build_tower(options.vision.tower)
    named = {name: IMAGE_TOWER + name for name, _ in tower.named_parameters()}
    return _find(state, tower, named, optional=("mask_token",))


def _hf_text_tower(state: State, options: ModelOptions) -> Placement:
    """A text tower of transformers and its word table; what pools its states is left."""
    assert options.text.tower is not None, "an hf tower has its configuration"
    with torch.device("meta"):
        tower = build_text_tower(tower_config(options.text.tower))
    named = {name: TEXT_TOWER + name for name, one in tower.model.named_parameters() if one.requires_grad}
    return _find(state, tower.model, {**named, tower.words_name: WORDS})


def _find(state: State, tower: nn.Module, wanted: Mapping[str, str], optional: tuple[str, ...] = ()) -> Placement:
    """Place a whole tower that stands behind one prefix in the file; nothing if the file does not hold it.

    `wanted`: the tower's own names → ours; `optional`: how names end that may be missing.
    """
    renamed = _as_loaded(state, tower)
    heads = {tuple(name.split(".")[:parts]) for name in renamed for parts in (0, 1, 2)}
    for prefix in sorted(("".join(f"{part}." for part in head) for head in heads), key=len):
        found: Placement = {
            ours: (renamed[prefix + name],) for name, ours in wanted.items() if prefix + name in renamed
        }
        if all(ours in found or ours.endswith(optional) for ours in wanted.values()):
            return found
    return {}


def _as_loaded(state: State, tower: nn.Module) -> dict[str, str]:
    """Names as this version of transformers has them in memory → keys of the file, and the keys as they are."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    rules = [rule for rule in get_model_conversion_mapping(tower) if isinstance(rule, WeightRenaming)]
    names = {key: key for key in state}
    for key in state:
        name = key
        for rule in rules:
            name, _ = rule.rename_source_key(name)
        names[name] = key
    return names


def _xlm_roberta(
    state: State, prefix: str, options: ModelOptions, where: str, reach: Reach, layers: Layers
) -> Placement:
    """transformers' XLM-R, with or without masked-LM head: the chosen layers (the published rule: every second)."""
    one_stack = options.vision.architecture == "swin"
    fills_fusion = one_stack if reach == "auto" else reach == "text_and_fusion"
    encoder, num_text = ("text_encoder.bert" if one_stack else "text_encoder"), options.text.num_layers
    layer = re.compile(re.escape(prefix) + r"encoder\.layer\.(\d+)\.(.+)")
    numbers = {int(match[1]) for match in map(layer.fullmatch, state) if match}
    wanted = num_text + (options.fusion.num_layers if fills_fusion else 0)
    target_of = choose_layers(layers, len(numbers), wanted, where)
    placed: Placement = {}
    for name in state:
        if match := layer.fullmatch(name):
            number = target_of.get(int(match[1]))
            if number is not None and (one_stack or number < num_text):
                placed[f"{encoder}.encoder.layer.{number}.{_today(match[2])}"] = (name,)
            elif number is not None:
                placed[f"cross_encoder.encoder.layer.{number - num_text}.{_today(match[2])}"] = (name,)
        elif name.startswith(f"{prefix}embeddings.") and not follows_from_sizes(name):
            placed[f"{encoder}.{_today(name.removeprefix(prefix))}"] = (name,)
    if options.masked_lm_head and options.vision.architecture != "beit":  # X2VLM's own head comes from X2-VLM
        head = "text_encoder.cls.predictions" if one_stack else "mlm_head.predictions"
        placed |= {f"{head}.{HEADS[_today(name)]}": (name,) for name in state if _today(name) in HEADS}
        if not options.tie_decoder:
            placed[f"{head}.decoder.weight"] = (f"{prefix}embeddings.word_embeddings.weight",)
    return placed


def _today(name: str) -> str:
    """What a parameter is called today: files of the first BERTs have `gamma` and `beta` in their norms."""
    return re.sub("LayerNorm.beta$", "LayerNorm.bias", re.sub("LayerNorm.gamma$", "LayerNorm.weight", name))


KINDS = ("weight", "bias")
HEADS = {
    "lm_head.bias": "bias",
    "lm_head.dense.weight": "transform.dense.weight",
    "lm_head.dense.bias": "transform.dense.bias",
    "lm_head.layer_norm.weight": "transform.LayerNorm.weight",
    "lm_head.layer_norm.bias": "transform.LayerNorm.bias",
    **{
        f"cls.predictions.{name}": name
        for name in ("bias", *(f"transform.{part}.{kind}" for part in ("dense", "LayerNorm") for kind in KINDS))
    },
}
"""XLM-R's and BERT's masked-LM heads → ours; their decoders are tied to their words."""


def _x2vlm(state: State) -> Placement:
    """X2-VLM: the layers with cross-attention become the cross encoder; the English text tower and vocabulary go."""
    layer = re.compile(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.(.+)")
    matches = [match for match in map(layer.fullmatch, state) if match]
    first_cross = min((int(match[1]) for match in matches if match[2].startswith("crossattention.")), default=0)
    placed: Placement = {}
    for name in state:
        if match := layer.fullmatch(name):
            if int(match[1]) >= first_cross:
                placed[f"cross_encoder.encoder.layer.{int(match[1]) - first_cross}.{match[2]}"] = (name,)
        elif name.startswith("text_encoder.cls.predictions.transform."):
            placed[name.replace("text_encoder.cls", "mlm_head")] = (name,)
        elif not name.startswith("text_encoder.") and not follows_from_sizes(name):
            placed[name] = (name,)
    return placed


def choose_layers(layers: Layers, available: int, wanted: int, where: str) -> dict[int, int]:
    """Source layer → target layer; "spread": the last of each of `wanted` runs of layers, as equal as they can be
    (CheckpointError: fewer layers than wanted, or a list that is not of `wanted` different layers of the source).
    """
    if available < wanted:
        raise CheckpointError(
            where=where,
            expected=f"at least {wanted} layers",
            got=f"{available} layers",
            do="Give a deeper source, or lower text.num_layers and fusion.num_layers.",
        )
    if isinstance(layers, tuple):
        if len(layers) != wanted or len({*layers} & {*range(available)}) != wanted:
            raise CheckpointError(
                where="start.text_layers",
                expected=f"{wanted} different layers of the {available} of {where}, counted from 0",
                got=", ".join(map(str, layers)) or "none",
                do="Give as many as text.num_layers says (and fusion.num_layers, where text_fills reaches so far).",
            )
        chosen: Iterable[int] = layers
    elif layers == "spread":
        chosen = [-(-(number + 1) * available // wanted) - 1 for number in range(wanted)]
    else:
        chosen = range(wanted) if layers == "first" else range(available - wanted, available)
    return {layer: number for number, layer in enumerate(chosen)}
