"""Start a published layout from the models that the published ones started from.

    Swin or BEiT-v2 ──▶ image tower             XLM-R ──▶ text encoder (3M/4M: fusion layers and masked-LM head too)
    X2-VLM ──▶ image tower, cross encoder, heads, transform of the masked-LM head (its own text tower is English: left)

Every source is first renamed to the published names, then converted as any published file. What no source gives keeps
its fresh start; its names are those that trained at `lr_mult` times the learning rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from cclm.checkpoint.import_cclm import ImportReport, KeyFate, fit_weights, published_shapes
from cclm.checkpoint.published_file import read_tensors
from cclm.checkpoint.published_names import published_weights, to_ours
from cclm.errors import CheckpointError
from cclm.model.configuration_cclm import ModelOptions

Renamed = dict[str, str]
"""Key of the source file → published name; keys that are left out are dropped."""


def source_weights(paths: Iterable[Path], options: ModelOptions) -> tuple[dict[str, Tensor], ImportReport]:
    """Read source files and turn them into (part of) a state dict of ours.

    Args:
        paths: any of: original Swin or BEiT-v2 files, XLM-R as transformers saves it, X2-VLM. Later ones win.
        options: the model to start.

    Returns:
        What the sources give, by our names; and the fate of every key of every file.

    Raises:
        CheckpointError: a file of another kind, or sizes that do not fit.
    """
    published: dict[str, Tensor] = {}
    fates: list[KeyFate] = []
    for path in paths:
        state = read_tensors(path)
        renamed = rename_source(state, options, str(path))
        published.update({target: state[key] for key, target in renamed.items()})
        fates += [
            KeyFate(key=key, fate="used" if key in renamed else "dropped", how=renamed.get(key, "not of this model"))
            for key in state
        ]
    weights = published_weights(options)
    given = [weight for weight in weights if all(name in published for name in weight.theirs)]
    complete = {name for weight in given for name in weight.theirs}
    if unfit := sorted(set(published) - complete):
        raise CheckpointError(
            where=", ".join(map(str, paths)),
            expected="weights for places that this model has",
            got=f"others, such as {unfit[0]}",
            do="Give sources of the family's sizes.",
        )
    parts, _ = fit_weights(published, given, published_shapes(options, weights), options, "sources")
    return to_ours(parts, given), ImportReport(keys=fates)


def rename_source(state: Mapping[str, Tensor], options: ModelOptions, where: str) -> Renamed:
    """Find out what a source file is and give its keys their published names.

    Raises:
        CheckpointError: none of the kinds in `SOURCES`.
    """
    for mark, rename in SOURCES.items():
        if mark in state:
            return rename(state, options, where)
    raise CheckpointError(
        where=where,
        expected="Swin, BEiT-v2, XLM-R or X2-VLM weights",
        got=f"{len(state)} keys such as {', '.join(list(state)[:3])}",
        do="Give the original files; a published CCLM file is imported with `cclm import`.",
    )


def _swin(state: Mapping[str, Tensor], options: ModelOptions, where: str) -> Renamed:
    """The original files; the classifier is left."""
    kept = (name for name in state if not name.startswith("head.") and not _is_index(name))
    return {name: f"vision_encoder.{name}" for name in kept}


def _beit(state: Mapping[str, Tensor], options: ModelOptions, where: str) -> Renamed:
    """The original files, fine-tuned on classes: each block has its own table, and a norm stands behind the mean."""
    left = ("head.", "lm_head.", "mask_token", "norm.")
    return {name: f"vision_encoder.{name}" for name in state if not name.startswith(left) and not _is_index(name)}


def _xlm_roberta(state: Mapping[str, Tensor], options: ModelOptions, where: str) -> Renamed:
    """transformers' XLM-R with its masked-LM head: evenly spaced layers (the published rule takes every second)."""
    one_stack = options.vision.architecture == "swin"
    encoder = "text_encoder.bert" if one_stack else "text_encoder"
    wanted = options.text.num_layers + (options.fusion.num_layers if one_stack else 0)
    layer_of = _spread_layers(_num_layers(state, r"roberta\.encoder\.layer\.(\d+)\."), wanted, where)
    renamed: Renamed = {}
    for name in state:
        if match := re.fullmatch(r"roberta\.encoder\.layer\.(\d+)\.(.+)", name):
            if (number := layer_of.get(int(match[1]))) is not None:
                renamed[name] = f"{encoder}.encoder.layer.{number}.{match[2]}"
        elif name.startswith("roberta.embeddings.") and not _is_index(name):
            renamed[name] = encoder + name.removeprefix("roberta")
        elif one_stack and name in XLM_R_HEAD:
            renamed[name] = f"text_encoder.cls.predictions.{XLM_R_HEAD[name]}"
    return renamed


XLM_R_HEAD = {
    "lm_head.bias": "bias",
    "lm_head.dense.weight": "transform.dense.weight",
    "lm_head.dense.bias": "transform.dense.bias",
    "lm_head.layer_norm.weight": "transform.LayerNorm.weight",
    "lm_head.layer_norm.bias": "transform.LayerNorm.bias",
}
"""XLM-R's masked-LM head → ours; its decoder is tied to the words, as ours."""


def _x2vlm(state: Mapping[str, Tensor], options: ModelOptions, where: str) -> Renamed:
    """X2-VLM: the layers with cross-attention become the cross encoder; the English text tower and vocabulary go."""
    layer = r"text_encoder\.bert\.encoder\.layer\.(\d+)\.(.+)"
    matches = [match for match in (re.fullmatch(layer, name) for name in state) if match]
    first_cross = min((int(match[1]) for match in matches if match[2].startswith("crossattention.")), default=0)
    renamed: Renamed = {}
    for name in state:
        if match := re.fullmatch(layer, name):
            if int(match[1]) >= first_cross:
                renamed[name] = f"cross_encoder.encoder.layer.{int(match[1]) - first_cross}.{match[2]}"
        elif name.startswith("text_encoder.cls.predictions.transform."):
            renamed[name] = name.replace("text_encoder.cls", "mlm_head")
        elif not name.startswith("text_encoder.") and not _is_index(name):
            renamed[name] = name
    return renamed


SOURCES: dict[str, Callable[[Mapping[str, Tensor], ModelOptions, str], Renamed]] = {
    "layers.0.blocks.0.attn.qkv.weight": _swin,
    "blocks.0.attn.q_bias": _beit,
    "roberta.embeddings.word_embeddings.weight": _xlm_roberta,
    "text_encoder.bert.embeddings.word_embeddings.weight": _x2vlm,
}
"""A key that only this kind of file has → how its keys are renamed."""


def _is_index(name: str) -> bool:
    """Whether a key follows from the sizes."""
    return name.endswith(("relative_position_index", "attn_mask", "position_ids"))


def _num_layers(state: Mapping[str, Tensor], pattern: str) -> int:
    """Layers of a source."""
    return len({match.group(1) for match in (re.match(pattern, name) for name in state) if match})


def _spread_layers(available: int, wanted: int, where: str) -> dict[int, int]:
    """Source layer → target layer: the last of each of `wanted` equal runs of layers."""
    if available % wanted:
        raise CheckpointError(
            where=where,
            expected=f"a multiple of {wanted} layers, to take them evenly",
            got=f"{available} layers",
            do="Give XLM-R in the size of the family (large for CCLM-3M/4M).",
        )
    stride = available // wanted
    return {(number + 1) * stride - 1: number for number in range(wanted)}
