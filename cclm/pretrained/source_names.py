"""What the files are that models start from, and what their tensors are called in a published CCLM file.

    original Swin, BEiT-v2 · their transformers versions · XLM-R and its kin · X2-VLM · an export or import of ours

A placement says for each published name which keys of the source it is made of: usually one; queries, keys and values
of transformers' Swin and BEiT are stacked to one; BEiT's shared position table goes to every block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from cclm.errors import CheckpointError
from cclm.model.options import ModelOptions
from cclm.pretrained.options import Reach
from cclm.pretrained.tower_source import place_tower

Placement = dict[str, tuple[str, ...]]
"""Published name → keys of the source, stacked in this order."""
State = Mapping[str, Tensor]


def place_source(state: State, options: ModelOptions, where: str, reach: Reach = "auto") -> Placement:
    """Find out what a source file is and place its keys.

    Args:
        state: names and tensors of the file.
        options: the model to start.
        where: what to call the file in errors.
        reach: which stacks an XLM-R's layers fill; "auto": as published, text and fusion for a Swin tower's model, else
            text alone.

    Raises:
        CheckpointError: none of the kinds above, or too few layers.
    """
    if OUR_MARK in state:
        return {name: (name,) for name in state}
    if options.vision.architecture == "hf" and (tower := place_tower(state, options)):
        return tower
    for mark, place in _IMAGE_SOURCES.items():
        if mark in state:
            return place(state)
    if X2VLM_MARK in state:
        return _x2vlm(state)
    for prefix in ("roberta.", ""):
        if f"{prefix}embeddings.word_embeddings.weight" in state:
            return _xlm_roberta(state, prefix, options, where, reach)
    raise CheckpointError(
        where=where,
        expected="Swin, BEiT-v2, XLM-R or X2-VLM weights",
        got=f"{len(state)} keys such as {', '.join(list(state)[:3])}",
        do="Give the original files; a published CCLM file is imported with `cclm import`.",
    )


def _swin(state: State) -> Placement:
    """The original files; the classifier is left."""
    kept = (name for name in state if not name.startswith("head.") and not is_index(name))
    return {f"vision_encoder.{name}": (name,) for name in kept}


def _beit(state: State) -> Placement:
    """The original files, fine-tuned on classes: a table in each block or one for all, a norm behind the mean."""
    left = ("head.", "lm_head.", "mask_token", "norm.", "rel_pos_bias.")
    kept = (name for name in state if not name.startswith(left) and not is_index(name))
    return {f"vision_encoder.{name}": (name,) for name in kept} | _shared_table(state, "rel_pos_bias", "blocks")


def _shared_table(state: State, owner: str, blocks: str) -> Placement:
    """BEiT's one table for all blocks, given to each of them, as its authors do."""
    table = f"{owner}.relative_position_bias_table"
    if table not in state:
        return {}
    numbers = {match[1] for name in state if (match := re.match(rf"{blocks}\.(\d+)\.", name))}
    return {f"vision_encoder.blocks.{number}.attn.relative_position_bias_table": (table,) for number in numbers}


def _renamed(state: State, prefix: str, block: str, rules: Mapping[str, str]) -> Placement:
    """transformers' image towers: `rules` turn the end of a name into the published one; q, k and v are stacked."""
    placed: Placement = {}
    for name in state:
        body = name.removeprefix(prefix)
        for pattern, target in rules.items():
            if name.startswith(prefix) and (match := re.fullmatch(pattern, body)):
                placed["vision_encoder." + match.expand(target)] = (name,)
    stacked = re.compile(rf"({block})\.attention\.(?:self|attention)\.query\.(weight|bias)")
    for name in list(state):
        match = stacked.fullmatch(name.removeprefix(prefix))
        keys = tuple(name.replace(".query.", f".{part}.") for part in ("query", "key", "value"))
        if match and all(key in state for key in keys):
            owner = match[1].replace("encoder.layer.", "blocks.").replace("encoder.layers.", "layers.")
            placed[f"vision_encoder.{owner}.attn.qkv.{match[2]}"] = keys
    return placed


BLOCK = r"encoder\.layer\.(\d+)"
_PART = r"(weight|bias)"
HF_SWIN = {
    rf"embeddings\.patch_embeddings\.projection\.{_PART}": r"patch_embed.proj.\1",
    rf"embeddings\.norm\.{_PART}": r"patch_embed.norm.\1",
    rf"encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_before\.{_PART}": r"\1.norm1.\2",
    rf"encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_after\.{_PART}": r"\1.norm2.\2",
    rf"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.output\.dense\.{_PART}": r"\1.attn.proj.\2",
    r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.self\.(relative_position_bias_table)": r"\1.attn.\2",
    rf"encoder\.(layers\.\d+\.blocks\.\d+)\.intermediate\.dense\.{_PART}": r"\1.mlp.fc1.\2",
    rf"encoder\.(layers\.\d+\.blocks\.\d+)\.output\.dense\.{_PART}": r"\1.mlp.fc2.\2",
    rf"encoder\.(layers\.\d+\.downsample\.(?:norm|reduction))\.{_PART}": r"\1.\2",
    rf"layernorm\.{_PART}": r"norm.\1",
}
HF_BEIT = {
    r"embeddings\.(cls_token)": r"\1",
    rf"embeddings\.patch_embeddings\.projection\.{_PART}": r"patch_embed.proj.\1",
    rf"{BLOCK}\.layernorm_before\.{_PART}": r"blocks.\1.norm1.\2",
    rf"{BLOCK}\.layernorm_after\.{_PART}": r"blocks.\1.norm2.\2",
    rf"{BLOCK}\.attention\.output\.dense\.{_PART}": r"blocks.\1.attn.proj.\2",
    rf"{BLOCK}\.attention\.attention\.query\.bias": r"blocks.\1.attn.q_bias",
    rf"{BLOCK}\.attention\.attention\.value\.bias": r"blocks.\1.attn.v_bias",
    rf"{BLOCK}\.attention\.attention\.relative_position_bias\.(relative_position_bias_table)": r"blocks.\1.attn.\2",
    rf"{BLOCK}\.intermediate\.dense\.{_PART}": r"blocks.\1.mlp.fc1.\2",
    rf"{BLOCK}\.output\.dense\.{_PART}": r"blocks.\1.mlp.fc2.\2",
    rf"{BLOCK}\.lambda_([12])": r"blocks.\1.gamma_\2",
    rf"pooler\.layernorm\.{_PART}": r"fc_norm.\1",
}
"""Names as transformers saves them, behind `swin.` or `beit.` → published names."""


def _hf_swin(prefix: str) -> Callable[[State], Placement]:
    return lambda state: _renamed(state, prefix, r"encoder\.layers\.\d+\.blocks\.\d+", HF_SWIN)


def _hf_beit(prefix: str) -> Callable[[State], Placement]:
    def place(state: State) -> Placement:
        owner = f"{prefix}encoder.relative_position_bias"
        return _renamed(state, prefix, r"encoder\.layer\.\d+", HF_BEIT) | _shared_table(
            state, owner, re.escape(prefix) + r"encoder\.layer"
        )

    return place


def _xlm_roberta(state: State, prefix: str, options: ModelOptions, where: str, reach: Reach) -> Placement:
    """transformers' XLM-R, with or without masked-LM head: evenly spaced layers (the published rule: every second)."""
    one_stack = options.vision.architecture == "swin"
    fills_fusion = one_stack if reach == "auto" else reach == "text_and_fusion"
    encoder, num_text = ("text_encoder.bert" if one_stack else "text_encoder"), options.text.num_layers
    layer = re.compile(re.escape(prefix) + r"encoder\.layer\.(\d+)\.(.+)")
    numbers = {int(match[1]) for match in map(layer.fullmatch, state) if match}
    wanted = num_text + (options.fusion.num_layers if fills_fusion else 0)
    target_of = spread_layers(len(numbers), wanted, where)
    placed: Placement = {}
    for name in state:
        if match := layer.fullmatch(name):
            number = target_of.get(int(match[1]))
            if number is not None and (one_stack or number < num_text):
                placed[f"{encoder}.encoder.layer.{number}.{match[2]}"] = (name,)
            elif number is not None:
                placed[f"cross_encoder.encoder.layer.{number - num_text}.{match[2]}"] = (name,)
        elif name.startswith(f"{prefix}embeddings.") and not is_index(name):
            placed[f"{encoder}.{name.removeprefix(prefix)}"] = (name,)
    if options.masked_lm_head and options.vision.architecture != "beit":  # X2VLM's own head comes from X2-VLM
        head = "text_encoder.cls.predictions" if one_stack else "mlm_head.predictions"
        placed |= {f"{head}.{target}": (name,) for name, target in XLM_R_HEAD.items() if name in state}
        if not options.tie_decoder:
            placed[f"{head}.decoder.weight"] = (f"{prefix}embeddings.word_embeddings.weight",)
    return placed


XLM_R_HEAD = {
    "lm_head.bias": "bias",
    "lm_head.dense.weight": "transform.dense.weight",
    "lm_head.dense.bias": "transform.dense.bias",
    "lm_head.layer_norm.weight": "transform.LayerNorm.weight",
    "lm_head.layer_norm.bias": "transform.LayerNorm.bias",
}
"""XLM-R's masked-LM head → ours; its decoder is tied to its words."""


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
        elif not name.startswith("text_encoder.") and not is_index(name):
            placed[name] = (name,)
    return placed


OUR_MARK = "text_encoder.embeddings.words.weight"
X2VLM_MARK = "text_encoder.bert.embeddings.word_embeddings.weight"
_IMAGE_SOURCES: dict[str, Callable[[State], Placement]] = {
    "layers.0.blocks.0.attn.qkv.weight": _swin,
    "blocks.0.attn.q_bias": _beit,
    "swin.encoder.layers.0.blocks.0.attention.self.query.weight": _hf_swin("swin."),
    "encoder.layers.0.blocks.0.attention.self.query.weight": _hf_swin(""),
    "beit.encoder.layer.0.lambda_1": _hf_beit("beit."),
    "encoder.layer.0.lambda_1": _hf_beit(""),
}
"""A key that only this kind of file has → how its keys are placed."""


def is_index(name: str) -> bool:
    """Whether a key follows from the sizes."""
    return name.endswith(("relative_position_index", "attn_mask", "position_ids"))


def spread_layers(available: int, wanted: int, where: str) -> dict[int, int]:
    """Source layer → target layer: the last of each of `wanted` runs of layers, which are as equal as they can be.

    Raises:
        CheckpointError: fewer layers than wanted.
    """
    if available < wanted:
        raise CheckpointError(
            where=where,
            expected=f"at least {wanted} layers",
            got=f"{available} layers",
            do="Give a deeper source, or lower text.num_layers and fusion.num_layers.",
        )
    return {-(-(number + 1) * available // wanted) - 1: number for number in range(wanted)}
